"""`queue-pg events` and `queue-pg logs`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from queue_pg import SyncQueue


@pytest.fixture
def job(dsn: str) -> tuple[str, int]:
    """A running job that has said something."""
    with SyncQueue(dsn, notify=False) as queue:
        queue.submit("k")
        [claimed] = queue.claim("w", ["default"])
        said = [("out", "stdout"), ("oh \x1b[31m", "stderr"), ("two\nlines", "stdout")]
        queue.append_events(
            claimed.id, claimed.lease_token, [("log", {"line": line, "stream": stream}) for line, stream in said]
        )
        queue.progress(claimed.id, claimed.lease_token, 0.5)
        return str(claimed.id), claimed.lease_token


def test_what_is_there_now(cli: Callable[..., Any], job: tuple[str, int]) -> None:
    shown = cli("events", job[0])
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    assert "fraction=0.5" in lines[-1]
    assert "\x1b" not in shown.out
    found = [json.loads(line) for line in cli("events", job[0], "--after", "4", "--json").out.splitlines()]
    assert [(event["seq"], event["type"]) for event in found] == [(5, "log"), (6, "progress")]


def test_the_log(cli: Callable[..., Any], job: tuple[str, int]) -> None:
    assert cli("logs", job[0]).out.splitlines()[0] == "out"
    assert cli("logs", job[0], "--after", "4").out == "two\nlines\n"
    [line] = cli("logs", job[0], "--stream", "stderr", "--json").out.splitlines()
    assert json.loads(line)["data"]["stream"] == "stderr"


def test_following_ends_with_the_job(cli: Callable[..., Any], job: tuple[str, int], dsn: str) -> None:
    job_id, token = job

    def finish() -> None:
        with SyncQueue(dsn, notify=False) as queue:
            for event in queue.events(job_id, after=5):
                if event.type == "progress":
                    queue.append_events(job_id, token, [("log", {"line": "last", "stream": "stdout"})])
                    queue.complete(job_id, token)

    worker = threading.Thread(target=finish)
    worker.start()
    shown = cli("logs", "-f", job_id)
    worker.join()
    assert shown.out.splitlines()[-1] == "last"
    assert "  completed  attempt=1" in cli("events", "--follow", job_id).out.splitlines()[-1]


def test_refusals(cli: Callable[..., Any]) -> None:
    assert cli("events", str(uuid4())).code == 4
    assert cli("logs", str(uuid4()), "-f").code == 4
    assert cli("events", "nonsense").code in (2, 4)
    assert cli("events", str(uuid4()), "--after", "-1").code == 2
