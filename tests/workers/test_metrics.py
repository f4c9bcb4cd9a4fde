"""The metrics of a worker: on a port of its own, when it is told one."""

from __future__ import annotations

import asyncio
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from in_process import emitted, finished, running, soon
from prometheus_client.parser import text_string_to_metric_families
from queue_pg_workers.config import WorkerConfig, port_of
from queue_pg_workers.tally import WAIT_BUCKETS, Distribution, Tally
from queue_pg_workers.worker import Worker

from queue_pg import Queue
from queue_pg.errors import ConfigError
from queue_pg.models import LeasedJob, Snooze
from queue_pg.schema import package_version
from queue_pg.tasks import Tasks

GUIDE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")


def scrape(worker: Worker) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = httpx.get(f"http://127.0.0.1:{worker.metrics_port}/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def labels(**given: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(given.items()))


async def test_attempts_by_kind_and_outcome(dsn: str, queue: Queue) -> None:
    tasks, release = Tasks(), asyncio.Event()

    @tasks.task(max_attempts=1)
    async def flaky(n: int) -> Any:
        if n == 0:
            raise ValueError(n)
        return Snooze(timedelta(days=1)) if n == 1 else n

    @tasks.task
    async def held() -> None:
        await release.wait()

    async with running(dsn, tasks, metrics_port=0, concurrency=4) as worker:
        async with emitted(worker, "finished") as recorded:
            for n in range(4):
                await queue.submit("flaky", {"n": n}, max_attempts=1)
            for _ in range(4):
                await recorded()
        async with emitted(worker, "handler_started") as started:
            waits = await queue.submit("held")
            await started()
        found = await asyncio.to_thread(scrape, worker)
        name = "queue_pg_worker_attempts_total"
        assert found[name, labels(kind="flaky", outcome="complete")] == 2
        assert found[name, labels(kind="flaky", outcome="fail")] == 1
        assert found[name, labels(kind="flaky", outcome="snooze")] == 1
        assert (name, labels(kind="held", outcome="complete")) not in found
        assert found["queue_pg_worker_attempt_seconds_count", labels(kind="flaky")] == 4
        assert found["queue_pg_worker_pickup_seconds_count", labels(kind="held")] == 1
        assert found["queue_pg_worker_process_slots", labels(status="busy")] == 1
        assert found["queue_pg_worker_process_slots", labels(status="free")] == 3
        assert found["queue_pg_worker_claimed_jobs_total", ()] == 5
        assert found["queue_pg_worker_claim_seconds_count", ()] >= 2
        assert found["queue_pg_worker_finish_seconds_count", ()] >= 1
        assert found["queue_pg_worker_info", labels(worker=worker.id, version=package_version())] == 1
        release.set()
        await finished(queue, waits.id)


async def test_a_lost_lease_is_an_outcome_of_its_own(dsn: str, queue: Queue, conn: psycopg.AsyncConnection) -> None:
    tasks = Tasks()

    @tasks.task
    async def endless() -> None:
        await asyncio.Event().wait()

    async with running(dsn, tasks, metrics_port=0) as worker:
        async with emitted(worker, "handler_started") as started:
            job = await queue.submit("endless")
            await started()
        async with emitted(worker, "slot_freed") as freed:
            await queue.cancel(job.id)
            await freed()
        found = await asyncio.to_thread(scrape, worker)
    assert found["queue_pg_worker_attempts_total", labels(kind="endless", outcome="lease_lost")] == 1


async def test_errors_of_the_database_are_counted(dsn: str, conn: psycopg.AsyncConnection) -> None:
    async with running(dsn, metrics_port=0, notify=False, maintenance=False) as worker:
        async with emitted(worker, "idle") as idle:
            await idle()
        async with emitted(worker, "outage") as outage, emitted(worker, "recovered") as recovered:
            await conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'queue-pg worker%' and datname = current_database()"
            )
            await outage()
            await recovered()
        found = await asyncio.to_thread(scrape, worker)
    assert sum(value for (name, _), value in found.items() if name == "queue_pg_worker_database_errors_total") >= 1


async def test_metrics_are_there_before_the_database(unused_port: int) -> None:
    config = WorkerConfig(dsn="postgresql://nobody@127.0.0.1:1/nothing", metrics_port=unused_port)
    worker = Worker(config, {})
    work = asyncio.create_task(worker.run())
    async with asyncio.timeout(20), emitted(worker, "outage") as outage:
        await outage()
    found = await asyncio.to_thread(scrape, worker)
    assert found["queue_pg_worker_database_errors_total", labels(during="start-up")] >= 1
    worker.stop(now=True)
    await soon(work)
    with socket.socket() as free:
        # Past connections linger; who listens is in the way all the same.
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", unused_port))


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_without_a_port_nothing_is_counted(dsn: str, queue: Queue) -> None:
    async with running(dsn) as worker:
        job = await queue.submit("chat", {"prompt": "x"})
        await finished(queue, job.id)
        assert (worker.tally, worker.metrics_port) == (None, None)


async def test_a_port_in_use_is_named(dsn: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"Port {port} on 127.0.0.1, for the worker's metrics, is in use"
        ) as caught:
            await Worker(WorkerConfig(dsn=dsn, metrics_port=port), {}).run()
        assert caught.value.setting == "QUEUE_PG_METRICS_PORT"
    with pytest.raises(ConfigError, match=r"cannot listen on 'no\.such\.host\.invalid'"):
        await Worker(WorkerConfig(dsn=dsn, metrics_port=0, metrics_host="no.such.host.invalid"), {}).run()


def test_each_process_has_a_port_of_its_own() -> None:
    assert [port_of(9000, index) for index in range(3)] == [9000, 9001, 9002]
    assert (port_of(None, 3), port_of(0, 3)) == (None, 0)
    with pytest.raises(ConfigError, match="leaves no port for the metrics of process 1"):
        port_of(65_535, 1)


@pytest.mark.parametrize(
    ("value", "below"), [(0.0, 0.005), (0.005, 0.005), (0.0051, 0.01), (21_600.0, 21_600), (21_601.0, None)]
)
def test_buckets_hold_what_is_not_more_than_their_bound(value: float, below: float | None) -> None:
    one = Distribution(WAIT_BUCKETS)
    one.add(value)
    first = next(bound for bound, count in one.buckets() if count)
    assert first == ("+Inf" if below is None else str(below))
    assert one.buckets()[-1] == ("+Inf", 1)


class _Held:
    def __init__(self, job_id: str, attempt: int = 1) -> None:
        self.job = LeasedJob(job_id, "o", "q", "k", "{}", None, attempt, 3, 1, 30.0, 300.0, None, None)


def test_how_long_a_job_has_waited_is_told_by_its_id() -> None:
    tally = Tally(wall=lambda: 1_700_000_010.0)
    born = f"{1_700_000_000_000:012x}"
    v7 = f"{born[:8]}-{born[8:]}-7abc-8abc-0123456789ab"
    batch: Any = [_Held(v7), _Held(v7, attempt=2), _Held(str(uuid4()))]
    tally.started(batch)
    assert tally.waits["k"].total == 10.0
    # A clock behind that of the database makes no negative times.
    Tally(wall=lambda: 1_600_000_000.0).started(batch)
    assert sum(tally.waits["k"].counts) == 1


def test_counting_costs_next_to_nothing() -> None:
    tally = Tally()
    held: Any = _Held(f"{time.time_ns() // 1_000_000:012x}"[:8] + "-0000-7abc-8abc-0123456789ab")
    held.times_out_at, held.lost, held.outcome = time.monotonic() + 300, False, None
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(1_000):
            tally.ended(held)
        best = min(best, time.perf_counter() - began)
    # Some 0.5 µs each on any machine of these years; a job takes a hundred times that.
    assert best / 1_000 < 10e-6


async def test_the_guide_lists_every_metric(dsn: str) -> None:
    async with running(dsn, metrics_port=0) as worker:
        answer = (await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{worker.metrics_port}/metrics")).text
    for line in answer.splitlines():
        if line.startswith("# TYPE queue_pg_"):
            assert f"| `{line.split()[2]}" in GUIDE, line
