"""`queue-pg run`: a command as if it ran here."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from queue_pg import SyncQueue


@pytest.fixture
def worker(program: Any, tmp_path: Any) -> Iterator[None]:
    """A worker that runs commands."""
    program.env |= {"QUEUE_PG_COMMANDS": "any", "COMMAND_TEMP_DIR": str(tmp_path / "ws")}
    process = program.start("worker")
    for line in process.stderr:
        if "serves default" in line:
            break
    yield
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)


@pytest.mark.usefixtures("worker")
def test_output_and_exit_codes(program: Any) -> None:
    done = program.run("run", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.code, done.out) == (3, "out\n")
    submitted, *said = done.err.splitlines()
    assert submitted.endswith(" submitted")
    assert said == ["err", f"error: Job {submitted.split()[0]} failed: exit_code: the command ended with exit code 3"]
    assert program.run("run", "--", "true").code == 0
    assert program.run("run", "sh", "-c", "kill -TERM $$").code == 128 + signal.SIGTERM
    assert program.run("run", "no-such-program").code == 1
    late = program.run("run", "--timeout", "100ms", "sleep", "60")
    assert late.code == 1
    assert "timeout: the command ran longer than its timeout_secs of 0.1 s" in late.err


@pytest.mark.usefixtures("worker")
def test_input_and_variables(program: Any, tmp_path: Any) -> None:
    (tmp_path / "given").write_text("from a file")
    assert program.run("run", "--input", "text", "cat").out == "text\n"
    assert program.run("run", "--input", "@given", "cat").out == "from a file\n"
    with (tmp_path / "given").open() as file:
        assert program.run("run", "--input", "-", "cat", stdin=file).out == "from a file\n"
    assert program.run("run", "--env", "A=b=c", "--env", "D=", "sh", "-c", 'echo "$A.$D."').out == "b=c..\n"


@pytest.mark.usefixtures("worker")
def test_ctrl_c_cancels(program: Any, dsn: str) -> None:
    running = program.start("run", "sh", "-c", "echo up; exec sleep 60")
    assert running.stdout.readline() == "up\n"
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    job_id = err.split()[0]
    assert err.splitlines()[-1] == f"{job_id} cancelled"
    with SyncQueue(dsn) as queue:
        assert queue.get(job_id).state == "cancelled"


def test_a_worker_without_commands_is_named(program: Any) -> None:
    process = program.start("worker")
    for line in process.stderr:
        if "serves default" in line:
            break
    done = program.run("run", "true")
    assert done.code == 2
    assert "start one with QUEUE_PG_COMMANDS" in done.err


def test_a_worker_with_bad_settings_does_not_start(program: Any) -> None:
    program.env["QUEUE_PG_COMMANDS"] = "ls {x"
    for arguments in (("worker",), ("worker", "--processes", "2")):
        done = program.run(*arguments)
        assert done.code == 2
        assert "QUEUE_PG_COMMANDS makes no sense at character 4 ('{x'): the { is not closed" in done.err
        assert "Traceback" not in done.err


def test_what_makes_no_sense(cli: Callable[..., Any]) -> None:
    assert cli("run").code == 2
    assert "no variable" in cli("run", "--env", "A", "true").err
    assert "cannot be read" in cli("run", "--input", "@nowhere", "true").err
    assert "not a duration" in cli("run", "--timeout", "soon", "true").err
    assert cli("run", "--detach", "true").ids
