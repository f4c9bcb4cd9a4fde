"""What `demo` and `dev` tell to type next starts the same command line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from queue_pg.cli.dev import addresses, command_name


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made = tmp_path / ".venv" / "bin" / "queue-pg"
    made.parent.mkdir(parents=True)
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return made


@pytest.mark.parametrize("absolute", [False, True])
def test_a_script_below_the_folder(script: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool) -> None:
    monkeypatch.setattr(sys, "argv", [str(script) if absolute else ".venv/bin/queue-pg"])
    assert command_name() == ".venv/bin/queue-pg"
    assert any(".venv/bin/queue-pg submit chat" in line for line in addresses("http://x", "postgresql://x"))


def test_a_script_on_the_path(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert command_name() == "queue-pg"


def test_a_script_elsewhere(script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "a folder"
    other.mkdir()
    monkeypatch.chdir(other)
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert command_name() == str(script)


def test_the_module(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/queue_pg/cli/__main__.py"])
    assert command_name() == f"{shlex.quote(sys.executable)} -m queue_pg.cli"
