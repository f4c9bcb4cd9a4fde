"""What a command writes and leaves: its log, its tails, its files."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
from commanding import commands, lines, python, run
from in_process import soon
from queue_pg_workers.commands.output import Lines

from queue_pg import Queue

MiB = 1024 * 1024


def test_lines_are_cut_at_line_ends_only() -> None:
    cutter = Lines()
    assert cutter.add(b"one\ntw") == [("one", False)]
    assert cutter.add(b"o\r\n\nthree \xc3") == [("two", False), ("", False)]
    assert cutter.add(b"\xa9\nfour") == [("three é", False)]
    assert cutter.add(b"", end=True) == [("four", False)]


def test_a_line_that_is_too_long_comes_in_pieces() -> None:
    cutter = Lines()
    text = "é" * 20_000
    found = cutter.add(text.encode()[:30_001]) + cutter.add(text.encode()[30_001:] + b"\nnext\n")
    assert [continued for _, continued in found] == [True, True, False, False]
    assert "".join(line for line, _ in found[:-1]) == text
    assert max(len(line) for line, _ in found) == 8_000
    exact = Lines()
    assert [continued for _, continued in exact.add(b"x" * 16_000 + b"\n")] == [True, False]


def test_what_is_no_text_is_replaced() -> None:
    assert Lines().add(b"a\x00b\xff\xfe\n", end=True)[0] == ("a\x00b\ufffd\ufffd", False)
    assert Lines().add(b"half \xe2\x82", end=True) == [("half \ufffd", False)]


async def test_bytes_that_are_no_text(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python(r"import os; os.write(1, b'a\0b\xff\n\x1b[1m'); os.write(2, b'\xed\xa0\x80')"))
    assert job.result["stdout"] == "a\ufffdb\ufffd\n\x1b[1m"
    assert await lines(queue, job, "stdout") == ["a\ufffdb\ufffd", "\x1b[1m"]
    assert await lines(queue, job, "stderr") == ["\ufffd\ufffd\ufffd"]


async def test_it_is_said_while_the_command_runs(dsn: str, queue: Queue, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = "import sys; print('first', flush=True); print(open(sys.argv[1]).read())"
    async with commands(dsn, tmp_path / "ws"):
        job = await queue.submit("command", {"cmd": python(code, str(fifo))})
        seen: list[Any] = []

        async def follow() -> None:
            async for event in queue.events(job.id):
                if event.type == "log":
                    seen.append((event.seq, event.data["line"]))
                    if len(seen) == 1:
                        # It waits for this: only one that is told early can say it.
                        fifo.write_text("second")

        await soon(follow())
    assert [line for _, line in seen] == ["first", "second"]
    assert seen[0][0] < seen[1][0]


async def test_a_hundred_megabytes_take_no_memory(dsn: str, queue: Queue, tmp_path: Path) -> None:
    code = """
import os
line = b'x' * 99 + b'\\n'
for _ in range(1024): os.write(1, line * 1024)
os.write(1, b'the end\\n'); os.write(2, b'late\\n')
"""
    async with commands(dsn, tmp_path / "ws", max_log_bytes=MiB):
        await run(queue, "true")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        job = await run(queue, *python(code))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert job.state == "completed", job.error
    assert job.result["stdout"].endswith("\nthe end\n")
    assert len(job.result["stdout"]) == 16 * 1024
    assert grown < 40 * 1024  # kilobytes
    page = await queue.events_page(job.id, after=10_400)
    logged = [event.data for event in page.events if event.type == "log"]
    kept = MiB // 100
    total = 100 * 1024 * 1024 + 8
    [cut] = [data for data in logged if data["stream"] == "stdout" and "cut_bytes" in data]
    assert cut["cut_bytes"] == total - kept * 100
    assert cut["line"] == f"[{cut['cut_bytes']:,} more bytes of stdout are not in the log]"
    # The allowance is for both: what comes too late is counted too.
    assert [data["cut_bytes"] for data in logged if data["stream"] == "stderr"] == [5]


async def test_many_lines_are_cut_too(dsn: str, queue: Queue, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path / "ws", max_log_lines=3):
        job = await run(queue, *python("print('\\n' * 9)"))
    assert await lines(queue, job) == ["", "", "", "[7 more bytes of stdout are not in the log]"]


async def test_streams_closed_early(dsn: str, queue: Queue, tmp_path: Path) -> None:
    code = "import os, sys; [os.close(n) for n in (0, 1, 2)]; open('artifacts/on', 'w').close(); sys.exit(4)"
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python(code))
    assert job.error["exit_code"] == 4
    assert [each["name"] for each in job.error["artifacts"]] == ["on"]


# --- artifacts --------------------------------------------------------------------------------------------------------


async def test_only_plain_files_below_artifacts_are_kept(dsn: str, queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    code = r"""
import os, socket, sys
secret = sys.argv[1]
os.chdir('artifacts')
os.makedirs('logs/deep'); open('logs/deep/out.txt', 'w').write('kept')
open('empty', 'w').close()
os.symlink(secret, 'link'); os.symlink('logs', 'folder-link'); os.symlink('nowhere', 'dangling')
os.mkfifo('fifo')
socket.socket(socket.AF_UNIX).bind('socket')
open(b'bad-\xff', 'w').close(); open('back\\slash', 'w').close(); open('con', 'w').close()
os.makedirs('/'.join(['d'] * 20)); open('/'.join(['d'] * 15) + '/ok', 'w').close()
open('../outside', 'w').close()
os.mkdir('closed'); open('closed/in', 'w').close()
"""
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python(code, str(tmp_path / "secret")))
    assert job.state == "completed", job.error
    deep = "d/" * 15 + "ok"
    assert [each["name"] for each in job.result["artifacts"]] == ["closed/in", deep, "empty", "logs/deep/out.txt"]
    assert [each.name for each in await queue.artifacts(job.id)] == ["closed/in", deep, "empty", "logs/deep/out.txt"]
    said = await lines(queue, job, "system")
    for name, reason in {
        "link": "is a symbolic link",
        "folder-link": "is a symbolic link",
        "dangling": "is a symbolic link",
        "fifo": "is no plain file",
        "socket": "is no plain file",
        "bad-\ufffd\ufffd\ufffd": "lone surrogate",
        "back\\slash": "name",
        "con": "name",
        "d/" * 15 + "d": "nested deeper than 16 folders",
    }.items():
        assert [line for line in said if line.startswith(f"artifacts/{name} is not kept: ") and reason in line], name
    assert len(said) == 9


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.rmdir('artifacts')", None),
        ("os.rmdir('artifacts'); os.symlink('/etc', 'artifacts')", "Not a directory"),
        ("os.rmdir('artifacts'); open('artifacts', 'w').close()", "Not a directory"),
        ("os.rmdir('artifacts'); os.mkfifo('artifacts')", "Not a directory"),
        # The workspace itself renamed, and a link to elsewhere in its place.
        ("h = os.getcwd(); os.rename(h, h + 'x'); os.symlink('/etc', h); open('artifacts/x', 'w').close()", "x"),
    ],
)
async def test_artifacts_that_is_no_folder(dsn: str, queue: Queue, tmp_path: Path, code: str, said: str | None) -> None:
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python(f"import os; {code}"))
    assert job.state == "completed", job.error
    if said == "x":
        assert [each["name"] for each in job.result["artifacts"]] == ["x"]
    else:
        assert job.result["artifacts"] == []
        expected = [] if said is None else [f"artifacts/artifacts is not kept: is no folder ({said})"]
        assert await lines(queue, job, "system") == expected
    assert os.listdir(tmp_path / "ws") == ["lock"]
    assert "passwd" in os.listdir("/etc")


async def test_number_and_size_of_artifacts_are_bounded(dsn: str, queue: Queue, tmp_path: Path) -> None:
    code = """
for n in range(40): open(f'artifacts/{n:02}', 'w').write('x')
open('artifacts/00', 'w').write('y' * 2000)
"""
    async with commands(dsn, tmp_path / "ws", max_artifacts=3, max_artifact_bytes=1000):
        job = await run(queue, *python(code))
    assert [each["name"] for each in job.result["artifacts"]] == ["01", "02", "03"]
    said = await lines(queue, job, "system")
    assert said[0] == "artifacts/00 is not kept: has 2,000 bytes, of which 1,000 are left"
    assert said[1] == "artifacts/04 is not kept: there are more than 3"
    assert said[-1] == "17 more files are not kept"
    assert len(said) == 21


async def test_a_workspace_that_resists_removal(dsn: str, queue: Queue, tmp_path: Path) -> None:
    code = """
import os
# Deeper than any path may be long, with folders that their owner cannot enter.
for n in range(1500):
    os.mkdir('d'); open('f', 'w').close(); os.chdir('d')
os.chmod('.', 0)
os.chdir(os.environ['HOME']); os.mkdir('shut'); open('shut/f', 'w').close(); os.chmod('shut', 0)
os.symlink('/etc', 'etc'); os.chmod('.', 0)
"""
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python(code))
        assert job.state == "completed", job.error
        [folder] = set(os.listdir(tmp_path / "ws")) - {"lock"}
        assert os.listdir(tmp_path / "ws" / folder) == ["lock"]
    assert "passwd" in os.listdir("/etc")


async def test_what_is_put_in_the_place_of_a_workspace_is_removed_too(dsn: str, queue: Queue, tmp_path: Path) -> None:
    code = """
import os
home = os.getcwd()
os.rename(home, home + '-moved'); os.makedirs(home + '/full/of'); open(home + '/full/of/things', 'w').close()
open(home + '-file', 'w').close(); os.symlink('/etc', home + '-link'); os.mkdir(home + '-shut', 0)
"""
    async with commands(dsn, tmp_path / "ws"):
        job = await run(queue, *python(code))
        assert job.state == "completed", job.error
        [folder] = set(os.listdir(tmp_path / "ws")) - {"lock"}
        assert os.listdir(tmp_path / "ws" / folder) == ["lock"]
    assert "passwd" in os.listdir("/etc")


# --- inputs -----------------------------------------------------------------------------------------------------------


async def test_artifacts_as_inputs(dsn: str, queue: Queue, tmp_path: Path) -> None:
    job = await queue.submit("command", {"cmd": ["cat", "in/a.txt", "b"], "files": ["in/a.txt", "b"]}, delay=3600)
    await queue.put_artifact(job.id, "in/a.txt", b"one\n")
    await queue.put_artifact(job.id, "b", b"x" * (2 * MiB))
    async with queue.connection() as conn:
        await conn.execute("update queue_pg.jobs set run_at = queue_pg.now() where id = %s", [job.id])
    async with commands(dsn, tmp_path / "ws"):
        ended = await queue.wait(job.id, timeout=20)
        assert ended.state == "completed", ended.error
        assert ended.result["stdout"] == "x" * 16 * 1024
        missing = await run(queue, "cat", files=["none"], max_attempts=3)
        upward = await run(queue, "cat", files=["../x"], max_attempts=3)
    assert (missing.state, missing.attempt, missing.error["code"]) == ("failed", 1, "artifact_not_found")
    assert (upward.state, upward.attempt, upward.error["code"]) == ("failed", 1, "invalid_artifact")


async def test_inputs_that_have_no_place(dsn: str, queue: Queue, tmp_path: Path) -> None:
    for names, code in (
        (["artifacts"], "invalid_artifact"),
        (["a", "a/b"], "invalid_artifact"),
        (["a", "a"], "invalid_artifact"),
        (["large"], "artifact_too_large"),
    ):
        job = await queue.submit("command", {"cmd": ["true"], "files": names}, delay=3600)
        for name in {*names, "a"} - {"a/b"}:
            await queue.put_artifact(job.id, name, b"x" * (2000 if name == "large" else 1))
        if "a/b" in names:
            await queue.put_artifact(job.id, "a/b", b"x")
        async with queue.connection() as conn:
            await conn.execute("update queue_pg.jobs set run_at = queue_pg.now() where id = %s", [job.id])
        async with commands(dsn, tmp_path / "ws", max_workspace_bytes=1000):
            ended = await queue.wait(job.id, timeout=20)
        assert (ended.state, ended.attempt, ended.error["code"]) == ("failed", 1, code), names
