"""The kind `command`: what a program gets, what becomes of what it says and leaves, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commanding import commands, lines, python, run
from in_process import emitted, running

from queue_pg import Queue

MiB = 1024 * 1024


async def test_a_command_runs_and_reports(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, "sh", "-c", "echo one; echo two >&2; echo three; echo kept > artifacts/a.txt")
    assert job.state == "completed", job.error
    result = job.result
    assert 0 < result.pop("duration_seconds") < 20
    [artifact] = result.pop("artifacts")
    assert (artifact["name"], artifact["size"], len(artifact["sha256"])) == ("a.txt", 5, 64)
    assert result == {"exit_code": 0, "stdout": "one\nthree\n", "stderr": "two\n"}
    assert await (await queue.open_artifact(job.id, "a.txt")).read() == b"kept\n"
    page = await queue.logs(job.id)
    assert [each.line for each in page.lines if each.stream == "stdout"] == ["one", "three"]
    assert [each.line for each in page.lines if each.stream == "stderr"] == ["two"]
    assert not list((tmp_path / "ws").glob("*/*")), "workspaces are removed"


async def test_no_shell_looks_at_the_words(dsn: str, queue: Queue, tmp_path: Path) -> None:
    nasty = ["$HOME", "`id`", "$(id)", "; id", "| id", "&& id", "> x", "*", "~", "'", '"', "\\", "a b", "\n", "", "é\t"]
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python("import sys; print(ascii(sys.argv[1:]))", *nasty))
    assert job.result["stdout"] == ascii(nasty) + "\n"


@pytest.mark.parametrize(("given", "read"), [("text é\n", "text é\n"), ("", ""), (None, ""), ({"a": [1, "é"]}, None)])
async def test_input(dsn: str, queue: Queue, tmp_path: Path, given: Any, read: str | None) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, "cat", input=given)
    if read is None:
        assert json.loads(job.result["stdout"]) == given
    else:
        assert job.result["stdout"] == read


async def test_input_that_nobody_reads(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws"):
        ignored = await run(queue, "true", input="x" * (4 * MiB))
        counted = await run(queue, "wc", "-c", input="x" * (4 * MiB))
    assert ignored.result["exit_code"] == 0
    assert counted.result["stdout"].strip() == str(4 * MiB)


async def test_the_environment_is_clean(
    dsn: str, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("DATABASE_URL", dsn)
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python("import os, json; print(json.dumps(dict(os.environ)))"), env={"GIVEN": "é =x"})
        where = await run(
            queue, *python("import os; print(os.getcwd(), oct(os.umask(0)), os.getsid(0) == os.getpid())")
        )
        descriptors = await run(queue, *python("import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"))
    env = json.loads(job.result["stdout"])
    folder = Path(env["HOME"])
    assert folder.parent.parent == tmp_path / "ws"
    assert env.pop("QUEUE_PG_COMMAND") == folder.name
    # Python itself sets it for the C locale.
    env.pop("LC_CTYPE", None)
    assert env == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "QUEUE_PG_ARTIFACTS": f"{folder}/artifacts",
        "QUEUE_PG_JOB_ID": str(job.id),
        "QUEUE_PG_ATTEMPT": "1",
        "GIVEN": "é =x",
    }
    cwd, umask, leads = where.result["stdout"].split()
    assert Path(cwd).parent.parent == tmp_path / "ws"
    assert cwd != str(folder)
    assert (umask, leads) == ("0o77", "True")
    # The fourth is the listing itself.
    assert descriptors.result["stdout"] == "[0, 1, 2, 3]\n"


async def test_signals_are_those_of_a_fresh_process(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, "cat", "/proc/self/status")
        pipe = await run(queue, "sh", "-c", "(yes; echo $? >&2) | head -n 1")
    values = dict(line.split(":\t") for line in job.result["stdout"].splitlines() if ":\t" in line)
    # Signals 32 and 33 are the C library's own: no program can set them.
    libc = 0b11 << 31
    assert {int(values[name], 16) & ~libc for name in ("SigBlk", "SigIgn", "SigCgt")} == {0}
    assert values["NoNewPrivs"] == "1"
    assert (pipe.result["stdout"], pipe.result["stderr"]) == ("y\n", "141\n")


async def test_a_failed_command_is_retried(dsn: str, queue: Queue, tmp_path: Path) -> None:
    code = "import os, sys; print('at', os.environ['QUEUE_PG_ATTEMPT']); open('artifacts/log', 'w').write('x')"
    async with commands(dsn, tmp_path / "ws"):
        ended = await run(queue, *python(f"{code}; sys.exit(7)"), max_attempts=2)
    assert (ended.state, ended.attempt) == ("failed", 2)
    error = ended.error
    assert (error["code"], error["message"]) == ("exit_code", "the command ended with exit code 7")
    assert (error["exit_code"], error["stdout"]) == (7, "at 2\n")
    assert [each["name"] for each in error["artifacts"]] == ["log"]
    assert await lines(queue, ended) == ["at 1", "at 2"]


async def test_killed_by_a_signal(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    assert job.state == "failed"
    error = job.error
    assert (error["code"], error["message"]) == ("killed_by_signal", "the command was killed by SIGSEGV")
    assert error["signal"] == "SIGSEGV"
    assert "exit_code" not in error


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("no-such-program", "No such file or directory"),
        ("/no/such/program", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
        ("/etc", "Permission denied"),
        ("./relative", "No such file or directory"),
    ],
)
async def test_what_cannot_be_executed_fails_for_good(
    dsn: str, queue: Queue, tmp_path: Path, program: str, said: str
) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, program, max_attempts=5)
    assert (job.state, job.attempt) == ("failed", 1)
    assert (job.error["code"], job.error["message"]) == (
        "command_not_startable",
        f"{program} cannot be started: {said}",
    )


async def test_timeout_secs(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws", grace_seconds=5):
        polite = await run(
            queue,
            "sh",
            "-c",
            "trap 'echo ended; echo left > artifacts/left; exit 3' TERM; echo up; sleep 60 & wait",
            timeout_secs=2,
        )
        rude = await run(queue, *python("import signal; signal.pause()"), timeout_secs=0.2)
    assert (polite.state, polite.error["code"]) == ("failed", "timeout")
    assert polite.error["message"] == "the command ran longer than its timeout_secs of 2 s"
    assert polite.error["stdout"] == "up\nended\n"
    assert [each["name"] for each in polite.error["artifacts"]] == ["left"]
    assert rude.error["code"] == "timeout"


async def test_two_at_once_have_folders_of_their_own(dsn: str, queue: Queue, tmp_path: Path) -> None:
    # The first to see both says so, in case that its folder has gone before the other looks; outside of the worker's
    # folder, of which what does not belong there goes with it.
    code = f"""
import os, pathlib, time
pathlib.Path('mine').write_text('x')
both, seen = pathlib.Path.cwd().parent, pathlib.Path({str(tmp_path / "seen")!r})
while not seen.exists():
    if len(list(both.glob('*/mine'))) == 2: seen.touch()
    time.sleep(0.01)
print(sorted(os.listdir()), oct(os.stat('.').st_mode))
"""
    async with commands(dsn, tmp_path / "ws"):
        one = await queue.submit("command", {"cmd": python(code)})
        two = await queue.submit("command", {"cmd": python(code)})
        for job in (one, two):
            ended = await queue.wait(job.id, timeout=20)
            assert ended.result["stdout"] == "['artifacts', 'mine', 'tmp'] 0o40700\n"


@pytest.mark.parametrize(
    ("payload", "field", "said"),
    [
        ({}, "payload.cmd", "is missing"),
        ({"cmd": []}, "payload.cmd", "at least 1 item"),
        ({"cmd": "ls -l"}, "payload.cmd", "valid list"),
        ({"cmd": ["ls", 1]}, "payload.cmd[1]", "valid string"),
        ({"cmd": [""]}, "payload.cmd", "names no program"),
        ({"cmd": ["x"] * 1001}, "payload.cmd", "at most 1000 items"),
        ({"cmd": ["x", "y" * (128 * 1024)]}, "payload.cmd", "word 1 is longer than 131,071 bytes"),
        ({"cmd": ["y" * 131_000] * 9}, "payload.cmd", "more than 1,048,576 bytes"),
        ({"cmd": ["ls"], "env": {"A=B": "x"}}, "payload.env", "'A=B' is no name of a variable"),
        ({"cmd": ["ls"], "env": {"1": "x"}}, "payload.env", "is no name"),
        ({"cmd": ["ls"], "env": {"QUEUE_PG_JOB_ID": "x"}}, "payload.env", "are the worker's"),
        ({"cmd": ["ls"], "env": {"A": 1}}, "payload.env.A", "valid string"),
        ({"cmd": ["ls"], "env": ["A"]}, "payload.env", "valid dictionary"),
        ({"cmd": ["ls"], "timeout_secs": 0}, "payload.timeout_secs", "greater than 0"),
        ({"cmd": ["ls"], "timeout_secs": -1}, "payload.timeout_secs", "greater than 0"),
        ({"cmd": ["ls"], "timeout_secs": "5"}, "payload.timeout_secs", "valid number"),
        ({"cmd": ["ls"], "timeout_secs": True}, "payload.timeout_secs", "valid number"),
        ({"cmd": ["ls"], "timeout_secs": 1e12}, "payload.timeout_secs", "less than or equal to 31536000"),
        ({"cmd": ["ls"], "shell": True}, "payload.shell", "is not a parameter"),
        ({"cmd": ["ls"], "files": "x"}, "payload.files", "valid list"),
        (["ls"], "payload", "must be a JSON object"),
        ("ls", "payload", "must be a JSON object"),
    ],
)
async def test_a_wrong_payload_fails_for_good(
    dsn: str, queue: Queue, tmp_path: Path, payload: Any, field: str, said: str
) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await queue.submit("command", payload, max_attempts=3)
        ended = await queue.wait(job.id, timeout=20)
    assert (ended.state, ended.attempt, ended.error["code"]) == ("failed", 1, "payload_invalid")
    assert ended.error["field"] == field
    assert said in ended.error["message"]


async def test_the_schema_is_registered(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws"):
        [kind] = [each for each in await queue.kinds() if each.kind == "command"]
    assert (
        kind.description
        == "A program run without a shell, if the worker's settings allow it; its output is the job's log."
    )


async def test_a_worker_without_commands_leaves_them(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with running(dsn) as worker, emitted(worker, "idle") as idle:
        job = await queue.submit("command", {"cmd": ["true"]})
        for _ in range(3):
            await idle()
        [why] = await queue.why_waiting(job.id)
        assert why.reason == "no_worker"
        assert why.detail == "No live worker serves queue default and can run kind command."
    async with commands(dsn, tmp_path / "ws"):
        assert (await queue.wait(job.id, timeout=20)).state == "completed"


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"cpu_seconds": 1}, "while True: pass", "SIGXCPU"),
        ({"file_bytes": MiB}, "open('x', 'wb').write(bytes(2 * 1024 * 1024))", "SIGXFSZ"),
        ({"memory_bytes": 512 * MiB}, "bytearray(1024 * 1024 * 1024)", "MemoryError"),
        ({"open_files": 20}, "[open('/dev/null') for _ in range(30)]", "Too many open files"),
    ],
)
async def test_limits(dsn: str, queue: Queue, tmp_path: Path, settings: dict[str, int], code: str, said: str) -> None:
    async with commands(dsn, tmp_path / "ws", **settings):
        job = await run(queue, *python(f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n{code}"))
    assert job.state == "failed"
    assert said in (job.error.get("signal") or job.error["stderr"])


async def test_all_limits_are_set(dsn: str, queue: Queue, tmp_path: Path) -> None:
    code = """
import resource as r
print([r.getrlimit(getattr(r, 'RLIMIT_' + n))[0] for n in ('CORE', 'CPU', 'AS', 'FSIZE', 'NOFILE', 'NPROC')])
"""
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python(code))
    assert job.result["stdout"] == f"{[0, 3600, 4096 * MiB, 1024 * MiB, 1024, 4096]}\n"


async def test_a_full_workspace_ends_the_command(dsn: str, queue: Queue, tmp_path: Path) -> None:
    code = """
import signal
for n in range(20): open(f'tmp/{n}', 'wb').write(b'x' * 1_000_000)
signal.pause()
"""
    async with commands(dsn, tmp_path / "ws", max_workspace_bytes=10_000_000):
        job = await run(queue, *python(code), max_attempts=3)
    assert (job.state, job.attempt, job.error["code"]) == ("failed", 1, "workspace_full")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
async def test_as_another_user(dsn: str, queue: Queue, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o111)
    (tmp_path / "secret").write_text("s")
    (tmp_path / "secret").chmod(0o600)
    code = f"""
id -u; id -g; id -G
cat; cat /dev/stdin
for path in /proc/{os.getpid()}/environ {tmp_path / "secret"}; do cat $path 2>/dev/null || echo denied; done
ls .. 2>/dev/null || echo denied
echo x > artifacts/mine
ln -s /etc/shadow artifacts/shadow
"""
    async with commands(dsn, tmp_path / "ws", user="65534:65534"):
        job = await run(queue, "sh", "-c", code, input="in\n")
    assert job.state == "completed", job.error
    assert job.result["stdout"].split() == ["65534"] * 3 + ["in"] * 2 + ["denied"] * 3
    assert [each["name"] for each in job.result["artifacts"]] == ["mine"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
def test_the_workers_own_environment_is_hidden() -> None:
    """A process of the same user cannot read it, unless that is root."""
    code = """
import ctypes, os, sys
from queue_pg_workers.commands.hiding import hide_process
def child_reads():
    if not (pid := os.fork()):
        try: open(f'/proc/{os.getppid()}/environ').read()
        except OSError: os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
before = child_reads()
hide_process()
print(before, child_reads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True False\n", done.stderr
