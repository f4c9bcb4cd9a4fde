"""The guide to commands: what it shows, runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commanding import commands, run
from queue_pg_workers.commands.templates import parse_commands

from queue_pg import Queue
from queue_pg.settings import Settings, variables

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "commands.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def test_the_session_runs_as_it_stands(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "queue-pg"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m queue_pg.cli "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "DATABASE_URL": dsn,
        "COMMAND_TEMP_DIR": str(tmp_path / "ws"),
    }
    done = subprocess.run(
        ["bash", "-ec", blocks("sh")[0]], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90
    )
    assert (done.returncode, done.stdout) == (0, blocks("text")[0]), done.stderr
    assert "{from} begins with '-', as an option does" in done.stderr


async def test_the_request(dsn: str, queue: Queue, tmp_path: Path) -> None:
    body = re.search(r"-d '(.*)'", blocks("sh")[1])
    assert body is not None
    given = json.loads(body[1])
    async with commands(dsn, tmp_path / "ws"):
        job = await queue.submit(given["kind"], given["payload"])
        assert (await queue.wait(job.id, timeout=20)).result["stdout"] == "HELLO"


def test_the_templates() -> None:
    found = parse_commands(blocks("text")[1])
    assert len(found.templates) == 3
    assert found.allow(["convert", "a", "-resize", "10x20", "b"], {}) == {}
    assert found.allow(["/opt/report", "x"], {"ORDER": "asc"}) == {"LC_ALL": "C", "ORDER": "asc"}


async def test_the_class(dsn: str, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [_, code] = blocks("python")
    (tmp_path / "nice_mode.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    async with commands(dsn, tmp_path / "ws", mode="custom", mode_class="nice_mode:Nice"):
        job = await run(queue, "nice")
    assert job.result["stdout"] == "10\n"


def test_all_settings_are_named_with_their_defaults() -> None:
    for name, field in Settings.model_fields.items():
        if not name.startswith("command"):
            continue
        for variable in variables(field):
            assert f"`{variable}`" in GUIDE, variable
    defaults: dict[str, Any] = {name: field.default for name, field in Settings.model_fields.items()}
    from queue_pg_workers.commands.settings import CommandSettings

    # Tests and other programs make these without Settings.
    for name, value in defaults.items():
        if name.startswith("command_") and name not in ("command_mode", "command_class"):
            assert getattr(CommandSettings(), name.removeprefix("command_")) == value, name
