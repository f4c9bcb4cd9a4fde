"""While Postgres is away processes ask for it ever more seldom, each at its own times, and say so once."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from queue_pg_workers.outage import MAX_DELAY_SECONDS, Outage
from queue_pg_workers.signals import Signals

from tests.faults import logs
from tests.faults.fleet import Fleet
from tests.faults.lines import Line
from tests.faults.service import Service

ATTEMPTS = 30
# Parts of a worker that connect: claims, ends, handlers, heartbeat, notifications, maintenance and its vacuum.
PARTS = 7


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def test_processes_ask_more_and_more_seldom_each_at_its_own_times(dsn: str, tmp_path: Path) -> None:
    port = int(str(conninfo_to_dict(dsn)["port"]))
    lines = [Line(port, random.Random(1)) for _ in range(3)]
    ways = [make_conninfo(dsn, host="127.0.0.1", port=line.port) for line in lines]
    fleet = Fleet(ways[0], tmp_path, 1)
    api = Service(ways[2], tmp_path, 0)
    try:
        with fleet:
            fleet.add(ways[1])
            api.start()
            until(lambda: all(worker.serves for worker in fleet.workers), "workers work")
            before = [sum(logs.lines_by_second(path).values()) for path in _logs(tmp_path)]
            for line in lines:
                line.target = 1  # where nobody listens
                line.asked.clear()
            for line in lines:
                line.cut()
            begin = time.monotonic()
            until(lambda: all(len(line.asked) >= ATTEMPTS for line in lines[:2]), "workers try again")
            seconds = time.monotonic() - begin
            asked = [[at - begin for at in line.asked[:ATTEMPTS]] for line in lines]
            for line in lines:
                line.target = port
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("insert into queue_pg.jobs (kind, payload) values ('work', '{\"n\": 1}')")
                until(
                    lambda: connection.execute("select 1 from queue_pg.finished_jobs").fetchone() is not None,
                    "workers work again",
                )
            after = [sum(logs.lines_by_second(path).values()) for path in _logs(tmp_path)]
            assert fleet.stop() == [0, 0]
            assert api.stop() == 0
    finally:
        api.close()
        for line in lines:
            line.close()
    for times in asked:
        # Six tries of each part within its first three seconds; without back-off there would be hundreds.
        assert max(_in_a_second(times), default=0) <= 4 * PARTS
    # Had they waited as long as each other, they would have come at the same times.
    apart = [abs(one - other) for one, other in zip(asked[0], asked[1], strict=True)]
    assert max(apart) > 0.1, apart
    # It is away, it is back: a line of each part for either, however long it took.
    assert all(later - earlier <= 3 * PARTS for earlier, later in zip(before, after, strict=True)), (
        before,
        after,
        seconds,
    )


def _logs(folder: Path) -> list[Path]:
    return sorted([*folder.glob("worker-*.log"), *folder.glob("api-*.log")])


def _in_a_second(times: list[float]) -> list[int]:
    return [sum(start <= at < start + 1 for at in times) for start in times]


def test_waits_grow_differ_and_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("claiming", log=logging.getLogger("outage"), signals=Signals())
    with caplog.at_level("INFO"):
        waits = [outage.failed(OSError("away")) for _ in range(60)]
        outage.over()
        outage.over()
    assert [record.getMessage() for record in caplog.records] == [
        "claiming: the database cannot be used, trying again: away",
        "claiming: the database works again",
    ]
    assert all(0.05 <= wait <= MAX_DELAY_SECONDS for wait in waits)
    assert waits[0] < 0.5 < waits[5]
    longest = waits[10:]
    assert min(longest) >= MAX_DELAY_SECONDS / 2
    assert max(longest) - min(longest) > MAX_DELAY_SECONDS / 10
    assert outage.failed(OSError()) < 0.5, "after an outage the waits begin anew"


def test_lines_about_jobs_are_not_counted(tmp_path: Path) -> None:
    job = "0198c5a2-7b1f-7000-8000-0123456789ab"
    (tmp_path / "worker-w0.log").write_text(
        "2026-01-01 00:00:00,100 WARNING a: heartbeat: the database cannot be used\n"
        f"2026-01-01 00:00:00,200 ERROR a: job {job} (work): the worker failed to run it\n"
        "Traceback (most recent call last):\n"
        '  File "a.py", line 1\n'
        "2026-01-01 00:00:00,300 ERROR a: the heartbeat met an error of its own\n"
        "Traceback (most recent call last):\n"
        "2026-01-01 00:00:01,000 INFO a: back\n"
    )
    assert logs.busiest(tmp_path) == logs.Busiest(3, "worker-w0", "2026-01-01 00:00:00")


def test_what_a_run_warned_of_is_told(tmp_path: Path) -> None:
    (tmp_path / "worker-w0.log").write_text(
        "2026-01-01 00:00:00,100 INFO a: worker w0 serves\n2026-01-01 00:00:00,200 WARNING a: one\n"
    )
    (tmp_path / "api-0.log").write_text("2026-01-01 00:00:00,300 ERROR a: two\nTraceback\n")
    told = ["api-0: 2026-01-01 00:00:00,300 ERROR a: two", "worker-w0: 2026-01-01 00:00:00,200 WARNING a: one"]
    assert logs.complaints(tmp_path).splitlines() == told
    assert logs.complaints(tmp_path, most=1).splitlines() == told[1:]
