"""What the guides tell people to type into a shell, typed against running services."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

ROOT = Path(__file__).resolve().parents[2]
JQ = """#!/bin/sh
# As much of jq as the guides need, for machines that have none: jq -r .name
exec "{python}" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1][1:]])' "$2"
"""
TASKS = """
from queue_pg import task


@task
async def load(file: str) -> str:
    return f"{file} loaded"


@task
async def report(batch: dict) -> str:
    return f"{batch['completed']} of {batch['total']}"
"""

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")

Shell = Callable[..., list[Any]]


def blocks(guide: str, containing: str = "") -> list[str]:
    text = (ROOT / "docs" / f"{guide}.md").read_text()
    return [block for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if containing in block]


def block(guide: str, containing: str) -> str:
    [found] = blocks(guide, containing)
    return found


@pytest.fixture
def shell(folder: Any, api: str, dsn: str) -> Shell:
    """Run lines of a guide; give the JSON documents that they print. An HTTP error ends them, as any other does.

    `job` takes the place of the id that a guide leaves open.
    """
    programs = folder.path / "programs"
    programs.mkdir()
    if shutil.which("jq") is None:
        (programs / "jq").write_text(JQ.format(python=sys.executable))
        (programs / "jq").chmod(0o755)
    (folder.path / ".curlrc").write_text('fail-with-body\nshow-error\nnoproxy = "*"\n')
    environment = {
        **folder.env,
        "DATABASE_URL": dsn,
        "CURL_HOME": str(folder.path),
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
    }

    def run(lines: str, job: str = "") -> list[Any]:
        text = lines.replace("localhost:8000", api.removeprefix("http://")).replace("<id>", job)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", re.sub(r"\bID\b", job, text)],
            cwd=folder.path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return documents(done.stdout)

    return run


def documents(printed: str) -> list[Any]:
    """Split what several programs have printed: JSON documents one upon the other, and lines that are none."""
    found: list[Any] = []
    decoder = json.JSONDecoder()
    while printed := printed.strip():
        # An id may begin like a number, so only what begins like an object is one.
        if printed[0] in "{[":
            document, end = decoder.raw_decode(printed)
            printed = printed[end:]
        else:
            document, _, printed = printed.partition("\n")
        found.append(document)
    return found


def submit(folder: Any, dsn: str, *words: str) -> str:
    done = folder.run("submit", *words, DATABASE_URL=dsn)
    assert done.returncode == 0, done.stderr
    job_id: str = done.stdout.strip()
    return job_id


def test_http(folder: Any, shell: Shell, dsn: str, http: Any, api: str) -> None:
    [graph] = blocks("http", "/chain")
    resize = submit(folder, dsn, "resize", "{}", "--any-kind")
    [claimed] = shell(block("http", "/jobs/claim"))
    [job] = claimed["jobs"]
    assert (job["id"], job["lease_token"]) == (resize, 1)
    first, *others = block("http", "input.csv").splitlines()
    (folder.path / "input.csv").write_text("a,b\n")
    (folder.path / "out.txt").write_text("out\n" * 500)
    waiting = submit(folder, dsn, "resize", "{}", "--delay", "1h")
    [stored] = shell(first, waiting)
    assert (stored["name"], stored["size"], stored["attempt"]) == ("input.csv", 4, 0)
    stored, listed, *lines = shell("\n".join(others), resize)
    assert [each["name"] for each in listed["artifacts"]] == [stored["name"]] == ["logs/out.txt"]
    assert lines == ["out"] * 250, "its first thousand bytes"

    folder.start("worker", DATABASE_URL=dsn).says("serves default")
    said = submit(folder, dsn, "chat", '{"prompt": "Say hello."}')
    created, read = shell(block("http", "Say hello."), said)
    assert (created["state"], read["state"]) == ("queued", "completed")
    array, chained = shell(graph, said)
    end = http("GET", f"{api}/jobs/{chained['id']}?wait=60").body
    assert (end["state"], end["payload"]["prompt"]) == ("completed", "Shorten: You asked: Say hello.")
    end = http("GET", f"{api}/jobs/{array['jobs'][1]['id']}?wait=60").body
    assert end["payload"]["prompt"] == "Translate: You asked: Write a haiku."
    [bulk] = shell(block("http", "x-ndjson"))
    assert (bulk["count"], bulk["created"], len(bulk["ids"])) == (2, 2, 2)
    [schedule] = shell(block("http", "/schedules/report"))
    assert len(schedule["next_fires"]) == 5
    events = shell(block("http", "curl -N"), said)
    assert [line for line in events if str(line).startswith("event: ")][-2:] == ["event: completed", "event: end"]


def test_batches(folder: Any, shell: Shell, dsn: str, http: Any, api: str) -> None:
    (folder.path / "loading.py").write_text(TASKS)
    folder.start("worker", "loading", DATABASE_URL=dsn).says("serves default")
    added, closed, ended = shell(blocks("batches")[0])
    assert (added["count"], closed["state"]) == (2, "closed")
    assert (ended["state"], ended["completed"], ended["percent"]) == ("completed", 2, 100)
    [callback] = ended["callback_ids"]
    assert http("GET", f"{api}/jobs/{callback}?wait=60").body["result"] == "2 of 2"


def test_scaling(folder: Any, shell: Shell, dsn: str) -> None:
    submit(folder, dsn, "send", "{}", "--queue", "mail", "--any-kind")
    submit(folder, dsn, "send", "{}", "--any-kind")
    drained, *_, draining, active = shell(block("scaling", "queues drain"))
    assert [drained, draining["state"], active["state"]] == ["mail draining", "draining", "active"]
    found, printed = shell(block("scaling", "/scale/default"))
    assert (found["desired_workers"], found["queued"], printed) == (1, 1, "1")


def test_replay(folder: Any, shell: Shell, dsn: str) -> None:
    submit(folder, dsn, "send", "{}", "--queue", "mail", "--any-kind")
    with psycopg.connect(dsn, autocommit=True) as conn:
        fail = (
            'select queue_pg.fail(c.id, c.lease_token, \'{"code": "timeout"}\', false)'
            " from queue_pg.claim('w', '{mail}') c"
        )
        conn.execute(fail)
        listed, counted, replayed = shell(block("replay", "dry_run"))
        assert [len(listed["jobs"]), counted["matched"], replayed["changed"]] == [1, 1, 1]
        conn.execute(fail)
    commands, deletions = block("replay", "queue-pg act retry"), block("replay", "queue-pg delete")
    printed = [each for each in shell(commands) if each]
    assert printed == [listed["jobs"][0]["id"], "1 job(s) match", "1 job(s) put back"]
    delete, act, curl = (line.replace("...", "") for line in deletions.splitlines())
    assert shell(act) == ["0 job(s) deleted"]
    shell(delete.replace("ID", "<id> --cancel"), printed[0])
    assert folder.run("get", printed[0], DATABASE_URL=dsn).returncode == 4
    waiting = submit(folder, dsn, "send", "{}", "--any-kind")
    assert folder.run("cancel", waiting, DATABASE_URL=dsn).returncode == 0
    shell(curl, waiting)
    assert folder.run("get", waiting, DATABASE_URL=dsn).returncode == 4


def test_steps(folder: Any, shell: Shell, dsn: str) -> None:
    waiting = submit(folder, dsn, "post", "{}", "--delay", "1h", "--any-kind")
    signalled, *again = shell(block("steps", "/signals/review"), waiting)
    assert (signalled["created"], len(again)) == (True, 1)
    by_curl, by_command = block("steps", "/retry").splitlines()
    for line in (by_curl, by_command):
        cancelled = submit(folder, dsn, "post", "{}", "--any-kind")
        assert folder.run("cancel", cancelled, DATABASE_URL=dsn).returncode == 0
        shell(line, cancelled)
        assert folder.json("get", cancelled, DATABASE_URL=dsn)["max_attempts"] == 5
    origin = submit(folder, dsn, "chat", '{"prompt": "Hello", "stop": "."}')
    rerun, listed, *printed = shell(block("steps", "/rerun"), origin)
    assert rerun["payload"] == {"prompt": "Hello", "model": "large", "temperature": 0.2}
    assert [job["id"] for job in listed["jobs"]] == [rerun["id"]]
    assert printed[0] in printed[1:], "the command line's own rerun is listed, too"
    assert rerun["id"] in printed[1:]


def test_templates(shell: Shell, folder: Any, dsn: str) -> None:
    stored, by_curl, *_, by_command = shell(blocks("templates")[0])
    assert (stored["name"], stored["version"]) == ("greeting", 1)
    assert (by_curl["payload"], by_curl["priority"]) == ({"prompt": "Greet Ada"}, 10)
    assert folder.json("get", by_command, DATABASE_URL=dsn)["payload"] == {"prompt": "Greet Ada"}
    [_, *lines] = blocks("templates")
    version, alone = shell(*lines)
    assert version == "note version 1"
    assert folder.json("get", alone, DATABASE_URL=dsn)["payload"] == {"prompt": "short"}


def test_workers_and_webhooks(folder: Any, shell: Shell, dsn: str) -> None:
    [rivers] = shell(block("workers", "Name three rivers"))
    [throttled] = shell(block("workers", '"status": 429'))
    by_curl, by_command = shell(blocks("webhooks")[0])
    hook = folder.json("get", by_command, DATABASE_URL=dsn)
    assert (hook["kind"], hook["payload"]) == ("webhook", by_curl["payload"])
    # Nobody is to ask example.org for a test.
    for job in (by_curl["id"], by_command):
        assert folder.run("cancel", job, DATABASE_URL=dsn).returncode == 0
    folder.start("worker", DATABASE_URL=dsn).says("serves default")
    assert folder.run("wait", rivers, "--timeout", "60s", DATABASE_URL=dsn).returncode == 0
    found = folder.json("get", throttled, DATABASE_URL=dsn)
    assert (found["state"], found["attempt"]) in (("scheduled", 0), ("running", 1), ("queued", 0))


def test_tasks(folder: Any, shell: Shell, dsn: str) -> None:
    folder.start("worker", "--queues", "default,work_queue", DATABASE_URL=dsn).says("serves default")
    job = submit(folder, dsn, "chat", '{"prompt": "Hello"}')
    assert folder.run("wait", job, "--timeout", "60s", DATABASE_URL=dsn).returncode == 0
    planned, later, read = shell(block("tasks", "Build a REST API"), job)
    assert (len(planned["subtasks"]), later["status"], read["status"]) == (4, "scheduled", "completed")
    [chained] = shell(block("tasks", "/chain"), job)
    assert (chained["parent_task_id"], chained["prompt"]) == (job, "Shorten this:\n\nYou asked: Hello")
    assert folder.run("wait", planned["id"], "--timeout", "60s", DATABASE_URL=dsn).returncode == 0


def test_a_planner_by_curl(folder: Any, shell: Shell, dsn: str) -> None:
    described = folder.run("tasks", "submit", "The mail", "--planner", "llm", DATABASE_URL=dsn)
    task = described.stdout.strip()
    claimed, ended = shell(block("tasks", "/plan"), task)
    assert [job["id"] for job in claimed["jobs"]] == [task]
    assert ended == {"id": task, "state": "waiting"}
    assert folder.json("tasks", "show", f"{task}-1", DATABASE_URL=dsn)["description"] == "Read it"
