"""Settings: every founding system's names, one precedence, errors that name the variable, nothing secret shown."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_pg.dsn import mask_dsn, normalise_dsn, with_database
from queue_pg.errors import ConfigError
from queue_pg.payloads import DEFAULT_MAX_PAYLOAD_BYTES
from queue_pg.settings import SettingInForce, Settings, describe, variables


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def in_force(settings: Settings, name: str) -> SettingInForce:
    return next(setting for setting in describe(settings) if setting.name == name)


def test_defaults() -> None:
    settings = Settings.load()
    assert settings.database_url is None
    assert settings.data_dir == Path(".data/postgres")
    assert (settings.api_host, settings.api_port) == ("127.0.0.1", 8000)
    assert (settings.job_timeout_seconds, settings.block_timeout_seconds) == (30, 5)
    assert (settings.openai_model, settings.llm_provider) == ("gpt-4o-mini", None)
    assert settings.queues == ["default"]
    assert settings.notify is True
    assert settings.max_payload_bytes == DEFAULT_MAX_PAYLOAD_BYTES
    assert {setting.source for setting in describe(settings)} == {"default"}


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("DATABASE_URL", "postgresql://h/d", "database_url", "postgresql://h/d"),
        ("QUEUE_PG_DATA_DIR", "/x y", "data_dir", Path("/x y")),
        ("POOL_SIZE", "3", "pool_size", 3),
        ("QUEUE_PG_NOTIFY", "off", "notify", False),
        ("QUEUE_PG_NOTIFY", "on", "notify", True),
        ("ZDEFAULT_ORG_ID", "acme", "org", "acme"),
        ("ZBRAIN_MAX_RETRIES", "3", "max_attempts", 4),
        ("ZBRAIN_MAX_RETRIES", "0", "max_attempts", 1),
        ("MAX_ATTEMPTS", "3", "max_attempts", 3),
        ("ZBRAIN_DEFAULT_TIMEOUT", "300", "default_timeout_seconds", 300.0),
        ("JOB_TTL_SECONDS", "3600", "job_ttl_seconds", 3600.0),
        ("MAX_PAYLOAD_BYTES", "1000", "max_payload_bytes", 1000),
        ("MAX_ARTIFACT_BYTES", "1000", "max_artifact_bytes", 1000),
        ("MAX_ARTIFACTS", "7", "max_artifacts", 7),
        ("MAX_JOB_ARTIFACT_BYTES", "2000", "max_job_artifact_bytes", 2000),
        ("UNKNOWN_KINDS", "refuse", "unknown_kinds", "refuse"),
        ("API_HOST", "0.0.0.0", "api_host", "0.0.0.0"),  # noqa: S104 - a value, nothing listens
        ("API_HOSTS", "queue.example, b", "api_hosts", ["queue.example", "b"]),
        ("API_PORT", "5000", "api_port", 5000),
        ("PORT", "8080", "api_port", 8080),
        ("JOB_TIMEOUT", "2.5", "job_timeout_seconds", 2.5),
        ("REDIS_JOB_TIMEOUT", "60", "job_timeout_seconds", 60.0),
        ("BLOCK_TIMEOUT", "0", "block_timeout_seconds", 0.0),
        ("REDIS_BLOCK_TIMEOUT", "1", "block_timeout_seconds", 1.0),
        ("WORKER_ID", "w1", "worker_id", "w1"),
        ("WORKER_CONCURRENCY", "2", "worker_concurrency", 2),
        ("ZWORKER_CONCURRENCY", "4", "worker_concurrency", 4),
        ("WORKER_PROCESSES", "3", "worker_processes", 3),
        ("QUEUES", "a, b,", "queues", ["a", "b"]),
        ("GRACE_SECONDS", "1", "grace_seconds", 1.0),
        ("ZBRAIN_LEASE_TTL", "300", "lease_seconds", 300.0),
        ("ZBRAIN_POLL_INTERVAL", "5", "poll_interval_seconds", 5.0),
        ("LLM_PROVIDER", "mock", "llm_provider", "mock"),
        ("OPENAI_API_KEY", "sk-1", "openai_api_key", "sk-1"),
        ("OPENAI_BASE_URL", "http://h/v1", "openai_base_url", "http://h/v1"),
        ("OPENAI_MODEL", "m", "openai_model", "m"),
        ("OLLAMA_HOST", "http://o:11434", "ollama_host", "http://o:11434"),
        ("OLLAMA_MODEL", "qwen", "ollama_model", "qwen"),
        ("WEBHOOK_SECRET", "whsec_x", "webhook_secret", "whsec_x"),
        ("WEBHOOK_SECRETS", "a=whsec_x", "webhook_secrets", "a=whsec_x"),
        ("WEBHOOK_ALLOW_PRIVATE", "10.0.0.0/8, hooks", "webhook_allow_private", ["10.0.0.0/8", "hooks"]),
        ("WEBHOOK_TIMEOUT", "5", "webhook_timeout_seconds", 5.0),
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("LOG_FORMAT", "JSON", "log_format", "json"),
        ("QUEUE_PG_METRICS_PORT", "9090", "metrics_port", 9090),
        ("QUEUE_PG_METRICS_HOST", "0.0.0.0", "metrics_host", "0.0.0.0"),  # noqa: S104
        ("ZDB_DATA", "/x y", "data_dir", Path("/x y")),
        ("QUEUE_PG_COMMANDS", "ls {x}; any {{", "commands", "ls {x}; any {{"),
        ("COMMAND_MODE", "docker", "command_mode", "docker"),
        ("ZWORKER_MODE", "custom", "command_mode", "custom"),
        ("COMMAND_CLASS", "a.b:C", "command_class", "a.b:C"),
        ("COMMAND_TEMP_DIR", "/x", "command_temp_dir", Path("/x")),
        ("ZWORKER_TEMP_DIR", "/tmp/zworker", "command_temp_dir", Path("/tmp/zworker")),  # noqa: S108
        ("COMMAND_USER", "nobody", "command_user", "nobody"),
        ("COMMAND_GRACE_SECONDS", "0", "command_grace_seconds", 0.0),
        ("COMMAND_MAX_LOG_BYTES", "1", "command_max_log_bytes", 1),
        ("COMMAND_MAX_LOG_LINES", "1", "command_max_log_lines", 1),
        ("COMMAND_MAX_ARTIFACTS", "1", "command_max_artifacts", 1),
        ("COMMAND_MAX_ARTIFACT_BYTES", "1", "command_max_artifact_bytes", 1),
        ("COMMAND_MAX_WORKSPACE_BYTES", "1", "command_max_workspace_bytes", 1),
        ("COMMAND_CPU_SECONDS", "1", "command_cpu_seconds", 1),
        ("COMMAND_MEMORY_BYTES", "1", "command_memory_bytes", 1),
        ("COMMAND_FILE_BYTES", "1", "command_file_bytes", 1),
        ("COMMAND_OPEN_FILES", "1", "command_open_files", 1),
        ("COMMAND_PROCESSES", "1", "command_processes", 1),
        ("COMMAND_IMAGE", "debian:12", "command_image", "debian:12"),
        ("COMMAND_NETWORK", "tools", "command_network", "tools"),
        ("COMMAND_CPUS", "0.5", "command_cpus", 0.5),
    ],
)
def test_variable_is_read(
    variable: str, value: str, name: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    settings = Settings.load()
    assert getattr(settings, name) == expected
    assert in_force(settings, name).source == f"environment {variable}"


def test_arguments_go_before_the_environment_and_that_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    # The file uses the first name and the environment the second: the place decides, not the name.
    Path(".env").write_text("API_PORT=1\nOPENAI_MODEL='from file'\nLOG_LEVEL=ERROR # loud\n")
    monkeypatch.setenv("PORT", "2")
    settings = Settings.load(api_host="h", log_level=None)
    assert (settings.api_port, settings.openai_model, settings.log_level) == (2, "from file", "ERROR")
    assert in_force(settings, "api_port").source == "environment PORT"
    assert in_force(settings, "openai_model").source == ".env OPENAI_MODEL"
    assert in_force(settings, "api_host").source == "argument"
    assert Settings.load(env_file=None).openai_model == "gpt-4o-mini"


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("OPENAI_API_KEY=sk-file\n")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    monkeypatch.setenv("API_PORT", "")
    settings = Settings.load()
    assert (settings.openai_api_key, settings.api_port) == ("sk-file", 8000)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("API_PORT", "abc", "API_PORT=abc makes no sense: it should be a valid integer"),
        ("PORT", "70000", "PORT=70000 makes no sense: it should be less than or equal to 65535"),
        ("ZBRAIN_MAX_RETRIES", "-1", "ZBRAIN_MAX_RETRIES=-1 makes no sense"),
        ("ZBRAIN_MAX_RETRIES", "many", "ZBRAIN_MAX_RETRIES=many makes no sense"),
        ("JOB_TIMEOUT", "nan", "JOB_TIMEOUT=nan makes no sense: it should be a finite number"),
        ("QUEUE_PG_NOTIFY", "maybe", "QUEUE_PG_NOTIFY=maybe makes no sense: it should be a valid boolean"),
        ("LOG_FORMAT", "xml", "LOG_FORMAT=xml makes no sense: it should be 'text' or 'json'"),
        ("QUEUE_PG_METRICS_PORT", "65536", "QUEUE_PG_METRICS_PORT=65536 makes no sense"),
        ("LLM_PROVIDER", "gpt", "LLM_PROVIDER=gpt makes no sense: it should be 'mock' or 'openai'"),
        ("QUEUES", ",", "QUEUES=, makes no sense: it should have at least 1 item."),
        ("ZWORKER_MODE", "podman", "ZWORKER_MODE=podman makes no sense: it should be 'local', 'docker' or 'custom'"),
        ("COMMAND_IMAGE", "-v", "COMMAND_IMAGE=-v makes no sense"),
        ("COMMAND_CLASS", "a", "COMMAND_CLASS=a makes no sense"),
        ("COMMAND_GRACE_SECONDS", "61", "COMMAND_GRACE_SECONDS=61 makes no sense"),
        ("OPENAI_BASE_URL", "h/v1", "OPENAI_BASE_URL=h/v1 makes no sense: it should match pattern"),
        ("DATABASE_URL", "mysql://u:secret@h/d", "DATABASE_URL 'mysql://u:***@h/d' cannot be used"),
        ("DATABASE_URL", "postgresql://u:secret@h:no/d", "postgresql://u:***@h:no/d"),
    ],
)
def test_bad_value_is_explained_by_name(variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    assert said in caught.value.message
    assert caught.value.setting == variable
    assert caught.value.hint
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


def test_bad_value_in_the_file_names_the_file() -> None:
    Path(".env").write_text("WORKER_CONCURRENCY=0\n")
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    assert caught.value.hint == "Change or unset WORKER_CONCURRENCY (set in .env)."


def test_bad_argument_and_unreadable_file_are_explained() -> None:
    with pytest.raises(ConfigError, match="api_port = -1 makes no sense"):
        Settings.load(api_port=-1)
    with pytest.raises(ConfigError, match="There is no setting 'nonsense'"):
        Settings.load(nonsense=1)
    Path(".env").write_bytes(b"A=\xff\n")
    with pytest.raises(ConfigError, match=r"\.env cannot be read"):
        Settings.load()


def test_nothing_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    monkeypatch.setenv("DATABASE_URL", "postgres://u:hidden@h/d?sslpassword=hidden")
    settings = Settings.load()
    assert "hidden" not in repr(settings)
    assert "hidden" not in str(describe(settings))
    assert in_force(settings, "openai_api_key").value_masked == "***"
    assert in_force(settings, "database_url").value_masked == "postgresql://u:***@h/d?sslpassword=***"


def test_every_variable_has_one_meaning_and_stands_in_the_example() -> None:
    names = [name for field in Settings.model_fields.values() for name in variables(field)]
    assert len(names) == len(set(names))
    example = (Path(__file__).parents[2] / ".env.example").read_text()
    missing = [variables(field)[0] for field in Settings.model_fields.values() if variables(field)[0] not in example]
    assert missing == []


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("postgres://u:p@h:1/d", "postgresql://u:p@h:1/d"),
        ("postgresql+asyncpg://u:p%40q@h/d", "postgresql://u:p%40q@h/d"),
        ("postgresql+psycopg://u@h/d?ssl=require", "postgresql://u@h/d?sslmode=require"),
        (
            "postgresql+asyncpg://h/d?prepared_statement_cache_size=0&application_name=a%20b",
            "postgresql://h/d?application_name=a%20b",
        ),
        ("postgresql+asyncpg://h/d?command_timeout=5", "postgresql://h/d"),
        ("  postgresql:///d?host=/tmp/x  ", "postgresql:///d?host=%2Ftmp%2Fx"),
        ("host=h dbname=d password='a b'", "host=h dbname=d password='a b'"),
    ],
)
def test_dsn_is_normalised(written: str, expected: str) -> None:
    assert normalise_dsn(written) == expected
    assert normalise_dsn(expected) == expected


@pytest.mark.parametrize(
    "written", ["", "queue", "mysql://h/d", "postgresql://h:x/d", "host=h nonsense=1", "postgres://[::1/d"]
)
def test_bad_dsn_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        normalise_dsn(written)


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u:hidden@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d?password=hidden&x=1", "postgresql://u@h/d?password=***&x=1"),
        ("host=h password='hid\\'den' dbname=d", "host=h password=*** dbname=d"),
        ("host=h password = hidden", "host=h password=***"),
        ("mysql+x://u:hidden@h", "mysql+x://u:***@h"),
        # As people forget to write them: with what ends a password.
        ("postgresql://u:hid@den@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hid/den@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hid#den?@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hidden@h/d?application_name=a@b", "postgresql://u:***@h/d?application_name=a@b"),
        ("postgresql://h:5432/d?application_name=a@b", "postgresql://h:5432/d?application_name=a@b"),
    ],
)
def test_password_is_masked(dsn: str, expected: str) -> None:
    assert mask_dsn(dsn) == expected


@pytest.mark.parametrize("password", ["hid/den", "hid?den", "hid/de@n", "?den", "hid/?den#"])
def test_no_part_of_a_password_is_in_what_is_said_about_a_bad_dsn(password: str) -> None:
    with pytest.raises(ConfigError) as caught:
        normalise_dsn(f"postgresql://u:{password}@h/d")
    assert "hid" not in str(caught.value)
    assert "den" not in str(caught.value)
    assert "%2F" in str(caught.value)


@given(st.sampled_from(["", "postgresql://", "postgres+x://h/d?", "host="]), st.text())
def test_any_text_is_a_dsn_or_a_config_error(start: str, text: str) -> None:
    try:
        normalised = normalise_dsn(start + text)
    except ConfigError:
        return
    psycopg.conninfo.conninfo_to_dict(normalised)


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u:p@h:1/old?sslmode=disable", "postgresql://u:p@h:1/new%20one?sslmode=disable"),
        ("postgresql://h", "postgresql://h/new%20one"),
        ("host=h dbname=old", "host=h dbname='new one'"),
    ],
)
def test_database_is_exchanged(dsn: str, expected: str) -> None:
    assert psycopg.conninfo.conninfo_to_dict(with_database(dsn, "new one")) == psycopg.conninfo.conninfo_to_dict(
        expected
    )
