"""A process that a run leaves behind is seen, wherever it has gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import leftovers

WAIT = [sys.executable, "-c", "print(flush=True); input()"]


def start(cwd: Path, environment: dict[str, str] | None) -> subprocess.Popen[bytes]:
    """Start something that stays until its input is closed, and wait until it is itself."""
    process = subprocess.Popen(WAIT, cwd=cwd, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_who_has_the_mark_is_seen_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(leftovers.MARK, "")
    mark = leftovers.mark()
    assert leftovers.processes(mark, tmp_path / "cluster") == []
    with start(tmp_path, None) as process:
        assert leftovers.processes(mark, tmp_path / "cluster") == [process.pid]
        assert leftovers.processes(f"{mark}0", tmp_path / "cluster") == []
        process.communicate()
    assert leftovers.processes(mark, tmp_path / "cluster") == []


def test_who_works_in_the_data_of_a_server_is_seen(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    with start(cluster, {}) as process:
        assert leftovers.processes("nobody", cluster) == [process.pid]
        assert leftovers.processes("nobody", tmp_path / "other") == []
        process.communicate()
