"""Commands in containers, by a stub of the docker program, and by a class of the user's."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from commanding import PYTHON, all_gone, children_of, command_runner, commands, run
from in_process import emitted, soon
from queue_pg_workers.commands.modes import Command, Launch, standard_environment
from worker_process import worker_process

from queue_pg import Queue
from queue_pg.errors import ConfigError

# Who runs it in a container may not reach the interpreter of the tests.
SLEEP = ["sh", "-c", "echo $$; exec sleep 60"]
STUBS = Path(__file__).parent / "stubs"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put the stub on the PATH; return the folder of what it was called with."""
    folder = tmp_path / "docker"
    folder.mkdir()
    # By the interpreter of the tests, whose path may have a space, which a first line cannot.
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "docker"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(PYTHON))} {shlex.quote(str(STUBS / "docker"))} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_STUB_FOLDER", str(folder))
    with subprocess.Popen([str(script), "daemon"], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"ready\n"
        yield folder
        daemon.kill()


def calls(folder: Path) -> list[list[str]]:
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_a_command_in_a_container(dsn: str, queue: Queue, tmp_path: Path, docker: Path) -> None:
    async with commands(dsn, tmp_path / "ws", mode="docker", image="tools:1"):
        job = await run(
            queue, "sh", "-c", 'cat; echo "$A"; echo x > artifacts/out; echo e >&2', input="in\n", env={"A": "a b"}
        )
    assert job.state == "completed", job.error
    assert (job.result["stdout"], job.result["stderr"]) == ("in\na b\n", "e\n")
    assert [each["name"] for each in job.result["artifacts"]] == ["out"]
    listed, called = calls(docker)
    assert listed[:2] == ["ps", "--all"]
    assert called[0] == "run"
    at = called.index("tools:1")
    assert called[at - 2 :] == ["--entrypoint", "sh", "tools:1", *job.payload["cmd"][1:]]
    flags = called[:at]
    assert f"queue-pg-{job.id}-1" == flags[flags.index("--name") + 1]
    user = "1000:1000" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"
    for option, value in {
        "--network": "none",
        "--cap-drop": "ALL",
        "--security-opt": "no-new-privileges",
        "--user": user,
        "--pids-limit": "4096",
        "--memory": str(4096 * 1024 * 1024),
        "--memory-swap": str(4096 * 1024 * 1024),
        "--cpus": "1",
        "--workdir": "/workspace",
    }.items():
        assert flags[flags.index(option) + 1] == value, option
    assert {"--rm", "--init", "--interactive", "--read-only"} <= set(flags)
    env = dict(value.split("=", 1) for option, value in pairwise(flags) if option == "--env")
    assert "PATH" not in env
    assert (env["HOME"], env["TMPDIR"], env["A"]) == ("/workspace", "/workspace/tmp", "a b")
    assert not [word for word in called if "DOCKER_STUB" in word or dsn in word]


async def test_failures(dsn: str, queue: Queue, tmp_path: Path, docker: Path) -> None:
    async with commands(dsn, tmp_path / "ws", mode="docker", image="tools:1"):
        failed = await run(queue, "sh", "-c", "exit 9")
    assert failed.error["exit_code"] == 9
    async with commands(dsn, tmp_path / "ws", mode="docker", image="broken"):
        broken = await run(queue, "true", max_attempts=2)
    assert (broken.attempt, broken.error["code"]) == (2, "docker_failed")
    assert broken.error["message"] == "docker could not run the command: docker: no such image"


async def test_cancel_kills_the_container(dsn: str, queue: Queue, tmp_path: Path, docker: Path) -> None:
    async with (
        commands(dsn, tmp_path / "ws", mode="docker", image="i") as worker,
        emitted(worker, "slot_freed") as freed,
    ):
        job = await queue.submit("command", {"cmd": SLEEP})
        [pid] = await first_lines(queue, job, 1)
        await queue.cancel(job.id)
        await all_gone([int(pid)], 5)
        await freed()
    name = f"queue-pg-{job.id}-1"
    assert ["kill", name] in calls(docker)
    assert ["rm", "--force", name] in calls(docker)


@pytest.mark.parametrize("killed", ["the keeper", "the docker program"])
async def test_a_killed_keeper_leaves_no_container(
    dsn: str, queue: Queue, tmp_path: Path, docker: Path, killed: str
) -> None:
    async with commands(dsn, tmp_path / "ws", mode="docker", image="i"):
        job = await queue.submit("command", {"cmd": SLEEP}, max_attempts=1)
        [pid] = await first_lines(queue, job, 1)
        [keeper] = children_of(os.getpid(), "keeper.py")
        [program] = children_of(keeper, "--network")
        os.kill(keeper if killed == "the keeper" else program, signal.SIGKILL)
        await all_gone([int(pid)], 5)
        ended = await queue.wait(job.id, timeout=20)
    assert ended.error["code"] == ("command_lost" if killed == "the keeper" else "killed_by_signal")
    assert ["rm", "--force", f"queue-pg-{job.id}-1"] in calls(docker)


async def test_a_killed_worker_leaves_no_container(dsn: str, queue: Queue, tmp_path: Path, docker: Path) -> None:
    settings = {
        "QUEUE_PG_COMMANDS": "any",
        "ZWORKER_TEMP_DIR": str(tmp_path / "ws"),
        "ZWORKER_MODE": "docker",
        "COMMAND_IMAGE": "i",
    }
    async with worker_process(dsn, env=settings) as process:
        await process.logged("serves default")
        job = await queue.submit("command", {"cmd": SLEEP})
        [pid] = await first_lines(queue, job, 1)
        process.signal(signal.SIGKILL)
        await all_gone([int(pid)], 2 + 3)  # starts of the stub take their time
    assert ["kill", f"queue-pg-{job.id}-1"] in calls(docker)


def test_leftovers_are_removed_at_the_start(tmp_path: Path, docker: Path) -> None:
    import socket

    mine = {"queue-pg": "command", "queue-pg.host": socket.gethostname()}
    with command_runner(tmp_path / "ws") as other:
        alive = str(other._workspaces.path)
        for name, labels in {
            "dead": {**mine, "queue-pg.worker": str(tmp_path / "ws" / "gone")},
            "alive": {**mine, "queue-pg.worker": alive},
            "elsewhere": {**mine, "queue-pg.host": "another", "queue-pg.worker": "/gone"},
            "foreign": {"queue-pg.worker": "/gone"},
        }.items():
            (docker / f"container-{name}").write_text(json.dumps({"pid": 2**22 + 1, "labels": labels}))
        # What cannot be killed any more is no reason not to start.
        with command_runner(tmp_path / "ws", mode="docker", image="i"):
            pass
    assert ["rm", "--force", "dead"] in calls(docker)
    assert len([call for call in calls(docker) if call[0] == "rm"]) == 1


def test_docker_that_cannot_be_used_is_refused(tmp_path: Path, docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (docker / "away").touch()
    with (
        pytest.raises(ConfigError, match="Cannot connect to the Docker daemon"),
        command_runner(tmp_path / "ws", mode="docker", image="i"),
    ):
        pass
    assert [path.name for path in (tmp_path / "ws").iterdir()] == ["lock"]
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(ConfigError, match="no program docker on the PATH"),
        command_runner(tmp_path / "ws", mode="docker", image="i"),
    ):
        pass


class Prefixed:
    """A way to run commands that a user could have written."""

    swept: ClassVar[list[Any]] = []

    def environment(self, workspace: Path) -> Mapping[str, str]:
        return {**standard_environment(str(workspace)), "PATH": "/usr/bin:/bin", "WAY": "custom"}

    def launch(self, command: Command) -> Launch:
        return Launch(argv=["env", "EXTRA=1", *command.argv], env=command.env)

    def failure(self, exit_code: int, stderr: str) -> tuple[str, str] | None:
        return ("my_way", stderr) if exit_code == 99 else None

    def sweep(self, is_alive: Callable[[Path], bool]) -> None:
        self.swept.append(is_alive(Path("/nowhere")))


async def test_a_class_of_the_users(dsn: str, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_mode.py").write_text("from test_command_modes import Prefixed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    async with commands(dsn, tmp_path / "ws", mode="custom", mode_class="my_mode:Prefixed"):
        job = await run(queue, "sh", "-c", "echo $WAY $EXTRA")
        failed = await run(queue, "sh", "-c", "echo why >&2; exit 99")
    assert (failed.error["code"], failed.error["message"]) == ("my_way", "why\n")
    assert job.result["stdout"] == "custom 1\n"


async def first_lines(queue: Queue, job: Any, count: int) -> list[str]:
    found: list[str] = []

    async def read() -> None:
        async for event in queue.events(job.id):
            if event.type == "log":
                found.append(event.data["line"])
                if len(found) == count:
                    return

    await soon(read())
    return found
