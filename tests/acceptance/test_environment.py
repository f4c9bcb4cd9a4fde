"""Every variable that a founding system reads is honoured here, or named with what takes its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from queue_pg.retired_settings import RETIRED, retired_variables
from queue_pg.settings import Settings, describe, variables

ROOT = Path(__file__).parents[2]

HONOURED: list[tuple[str, str, str, str, Any]] = [
    ("Cerebro", "API_PORT", "5000", "api_port", 5000),
    ("Cerebro", "REDIS_JOB_TIMEOUT", "30", "job_timeout_seconds", 30.0),
    ("Cerebro", "JOB_TIMEOUT", "31", "job_timeout_seconds", 31.0),
    ("Cerebro", "REDIS_BLOCK_TIMEOUT", "5", "block_timeout_seconds", 5.0),
    ("Cerebro", "BLOCK_TIMEOUT", "6", "block_timeout_seconds", 6.0),
    ("Cerebro", "JOB_TTL_SECONDS", "3600", "job_ttl_seconds", 3600.0),
    ("Orchestrator", "PORT", "8001", "api_port", 8001),
    ("BRAiN", "DATABASE_URL", "postgresql+asyncpg://u:p@h:5432/d", "database_url", "postgresql://u:p@h:5432/d"),
    ("BRAiN", "WORKER_ID", "worker-1", "worker_id", "worker-1"),
    ("BRAiN", "WORKER_CONCURRENCY", "2", "worker_concurrency", 2),
    ("BRAiN", "OLLAMA_HOST", "http://ollama:11434", "ollama_host", "http://ollama:11434"),
    ("BRAiN", "OLLAMA_MODEL", "qwen2.5:0.5b", "ollama_model", "qwen2.5:0.5b"),
    ("ZBrain", "ZDB_DATA", "/var/lib/zdb", "data_dir", Path("/var/lib/zdb")),
    ("ZBrain", "ZWORKER_MODE", "docker", "command_mode", "docker"),
    ("ZBrain", "ZWORKER_TEMP_DIR", "/tmp/zworker", "command_temp_dir", Path("/tmp/zworker")),  # noqa: S108
    ("ZBrain", "ZBRAIN_LEASE_TTL", "300", "lease_seconds", 300.0),
    ("ZBrain", "ZBRAIN_POLL_INTERVAL", "5", "poll_interval_seconds", 5.0),
    ("ZBrain", "ZBRAIN_MAX_RETRIES", "3", "max_attempts", 4),
    ("ZBrain", "ZBRAIN_DEFAULT_TIMEOUT", "300", "default_timeout_seconds", 300.0),
    ("ZBrain", "ZWORKER_CONCURRENCY", "4", "worker_concurrency", 4),
    ("ZBrain", "ZDEFAULT_ORG_ID", "default", "org", "default"),
    ("ZBrain", "ZDB_DATA", "/var/lib/zdb", "data_dir", Path("/var/lib/zdb")),
    ("ZBrain", "ZWORKER_MODE", "docker", "command_mode", "docker"),
    ("ZBrain", "ZWORKER_TEMP_DIR", "/var/tmp/zworker", "command_temp_dir", Path("/var/tmp/zworker")),  # noqa: S108
    ("Vinci4D", "DATABASE_URL", "postgresql+psycopg://app:app@localhost:5432/app", "database_url",
     "postgresql://app:app@localhost:5432/app"),
    ("Vinci4D", "LLM_PROVIDER", "openai", "llm_provider", "openai"),
    ("Vinci4D", "OPENAI_API_KEY", "sk-1", "openai_api_key", "sk-1"),
    ("Vinci4D", "OPENAI_MODEL", "gpt-4o-mini", "openai_model", "gpt-4o-mini"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in RETIRED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("system", "name", "value", "setting", "expected"), HONOURED, ids=[f"{row[0]} {row[1]}" for row in HONOURED]
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_the_variable_is_honoured(
    system: str, name: str, value: str, setting: str, expected: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == ".env":
        Path(".env").write_text(f"{name}={value}\n")
    else:
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert getattr(settings, setting) == expected, system
    [told] = [each for each in describe(settings) if each.name == setting]
    assert told.source == f"{place} {name}"


@pytest.mark.parametrize("name", RETIRED)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_variable_without_effect_is_named_with_what_takes_its_place(
    name: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert retired_variables() == []
    if place == ".env":
        Path(".env").write_text(f"{name}=something\n")
    else:
        monkeypatch.setenv(name, "something")
    [found] = retired_variables()
    assert (found.name, found.place, found.instead) == (name, place, RETIRED[name])
    assert name not in {each for field in Settings.model_fields.values() for each in variables(field)}
    assert name in (ROOT / ".env.example").read_text()


def test_config_tells_people_and_programs(tmp_path: Path) -> None:
    environment = {**os.environ, "REDIS_HOST": "redis", "QDRANT_URL": " ", "ZBRAIN_LEASE_TTL": "300"}
    command = [sys.executable, "-m", "queue_pg.cli", "config"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert f"REDIS_HOST (environment) has no effect. {RETIRED['REDIS_HOST']}\n" in told.stderr
    assert "QDRANT_URL" not in told.stderr
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert found["without_effect"] == {"REDIS_HOST": RETIRED["REDIS_HOST"]}
    assert (found["lease_seconds"], found["sources"]["lease_seconds"]) == (300, "environment ZBRAIN_LEASE_TTL")
