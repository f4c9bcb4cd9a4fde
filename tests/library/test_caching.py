"""Results shared by the library: both clients, many at once, tasks and templates; one execution over four processes."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from queue_pg import InvalidJob, JobState, NewJob, Queue, SyncQueue, store
from queue_pg.tasks import Tasks
from queue_pg.testing import Clock, drain


async def test_the_same_work_is_answered(dsn: str) -> None:
    tasks = Tasks()
    runs: list[str] = []

    @tasks.task(cache=True)
    async def summarise(text: str) -> str:
        runs.append(text)
        return text[:3]

    async with Queue(dsn) as queue:
        submit = summarise.using(queue=queue).submit
        first, second = await submit("abcdef"), await submit("abcdef")
        assert (first.state, second.state, second.cached_from) == (JobState.QUEUED, JobState.WAITING, None)
        [why] = await queue.why_waiting(second.id)
        assert (why.reason, why.held_by) == ("shared", str(first.id))
        await drain(queue, tasks)
        second = await queue.wait(second.id, timeout=30)
        assert (second.result, second.cached_from) == ("abc", first.id)
        third = await submit("abcdef")
        assert (third.state, third.result, third.cached_from) == (JobState.COMPLETED, "abc", first.id)
        assert await queue.result(third.id) == "abc"
        assert [event.data.get("cached_from") async for event in queue.events(third.id)] == [None, str(first.id)]
        assert (await submit("other")).state is JobState.QUEUED
        assert (await summarise.using(queue=queue, cache=False).submit("abcdef")).state is JobState.QUEUED
        # A task that is of the cache can wait for others all the same.
        assert (await summarise.using(queue=queue, depends_on=[third.id]).submit("abcdef")).state is JobState.QUEUED
    assert runs == ["abcdef"]


async def test_one_that_waits_is_woken(dsn: str) -> None:
    async with Queue(dsn) as queue:
        first, second = [await queue.submit("k", {"a": 1}, cache=True) for _ in range(2)]
        result = asyncio.create_task(queue.result(second.id, timeout=30))
        [claimed] = await queue.claim("w", ["default"], max_jobs=5)
        assert claimed.id == first.id
        await queue.complete(claimed.id, claimed.lease_token, {"done": True})
        async with queue.connection() as conn:
            # It may have been locked at that moment, to be watched: then maintenance answers it.
            while not result.done():
                await store.maintain(conn)
                await asyncio.wait({result}, timeout=0.02)
        assert await result == {"done": True}


def test_the_blocking_client_shares_too(dsn: str) -> None:
    with SyncQueue(dsn) as queue:
        first = queue.submit("k", {"a": 1}, cache_for=timedelta(hours=1), cache_version="v")
        [claimed] = queue.claim("w", ["default"])
        queue.complete(claimed.id, claimed.lease_token, "made")
        job = queue.submit("k", {"a": 1}, cache_for=60, cache_version="v", metadata={"mine": 1})
        assert (job.result, job.cached_from, job.metadata) == ("made", first.id, {"mine": 1})
        assert queue.get(job.id) == job
        assert queue.submit("k", {"a": 1}, cache_version="w").state is JobState.QUEUED


async def test_many_at_once_share(dsn: str) -> None:
    async with Queue(dsn) as queue:
        # More than travel by COPY, and every second one is of the cache.
        jobs = [NewJob(kind="k", payload=n % 3, cache=n % 2 == 0 or None) for n in range(90)]
        made = await queue.submit_many(jobs)
        assert all(each.created for each in made)
        states = [(await queue.get(each.id)).state for each in made]
        assert [state for state, job in zip(states, jobs, strict=True) if not job.caches] == [JobState.QUEUED] * 45
        shared = [state for state, job in zip(states, jobs, strict=True) if job.caches]
        assert (shared.count(JobState.QUEUED), shared.count(JobState.WAITING)) == (3, 42)
        graph = await queue.submit_graph(
            [NewJob(kind="k", payload=1, cache=True, key="a"), NewJob(kind="k", depends_on=["a"])]
        )
        assert [(await queue.get(each.id)).state for each in graph] == [JobState.WAITING, JobState.WAITING]


async def test_templates_take_the_options(dsn: str) -> None:
    async with Queue(dsn) as queue:
        await queue.put_template("note", "k", {"text": "{{ variables.text }}"}, variables={"text": "string"})
        first = await queue.submit_template("note", {"text": "a"}, cache=True)
        for options, state in (
            ({"cache": True}, JobState.WAITING),
            ({"cache_for": 60}, JobState.WAITING),
            ({"cache_version": "v"}, JobState.QUEUED),
            ({"cache": False, "cache_for": 60}, JobState.QUEUED),
            ({}, JobState.QUEUED),
        ):
            assert (await queue.get((await queue.submit_template("note", {"text": "a"}, **options)).id)).state is state
        assert (await queue.get(first.id)).state is JobState.QUEUED


async def test_templates_may_say_it_themselves(dsn: str) -> None:
    async with Queue(dsn) as queue:

        async def put(**terms: Any) -> int:
            return (await queue.put_template("note", "k", {"n": 1}, **terms)).version

        assert [await put(), await put(cache_for=60), await put(cache_for=60), await put(cache=True)] == [1, 2, 2, 3]
        assert await put(cache_version="v", cache_for=timedelta(minutes=1)) == 4
        assert await put(cache=False, cache_version="v") == 5
        found = await queue.get_template("note", 4)
        assert (found.cache, found.cache_for, found.cache_version) == (None, timedelta(seconds=60), "v")
        assert (await queue.get_template("note")).cache is False
        first = await queue.submit("k", {"n": 1}, cache=True)
        versioned = await queue.submit("k", {"n": 1}, cache_version="v")
        for version, options, waits_for in (
            (1, {}, None),
            (1, {"cache": True}, first),
            (2, {}, first),
            (2, {"cache": False}, None),
            (2, {"cache": False, "cache_for": 60}, None),
            (2, {"cache_version": "v"}, versioned),
            (3, {}, first),
            (4, {}, versioned),
            # The template asks for nothing by itself; whoever does gets its version.
            (5, {}, None),
            (5, {"cache": True}, versioned),
            (5, {"cache_for": 60}, versioned),
        ):
            made = await queue.submit_template("note", version=version, **options)
            job = await queue.get(made.id)
            held_by = [why.held_by for why in await queue.why_waiting(job.id) if why.reason == "shared"]
            assert held_by == ([] if waits_for is None else [str(waits_for.id)]), (version, options)


async def test_how_old_an_answer_of_a_template_may_be(dsn: str, clock: Clock) -> None:
    async with Queue(dsn) as queue:
        await queue.put_template("note", "k", {"n": 1}, cache_for=60)
        first = await queue.submit_template("note")
        [claimed] = await queue.claim("w", ["default"])
        await queue.complete(claimed.id, claimed.lease_token, "made")
        assert (await queue.get((await queue.submit_template("note")).id)).cached_from == first.id
        clock.advance(61)
        for options, answered in (({}, False), ({"cache_for": 3600}, True)):
            job = await queue.get((await queue.submit_template("note", **options)).id)
            assert (job.cached_from == first.id) is answered


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"cache": "yes"}, "cache"),
        ({"cache": 3600}, "cache"),
        ({"cache_for": -1}, "cache_for"),
        ({"cache_for": timedelta(days=40_000)}, "cache_for"),
        ({"cache_for": "1h"}, "cache_for"),
        ({"cache_for": float("nan")}, "cache_for"),
        ({"cache_version": ""}, "cache_version"),
        ({"cache_version": 7}, "cache_version"),
        ({"cache_version": "x" * 256}, "cache_version"),
        ({"cache_version": "a\x00b"}, "cache_version"),
    ],
)
async def test_wrong_input_is_refused_by_name(dsn: str, options: dict[str, Any], field: str) -> None:
    async with Queue(dsn) as queue:
        with pytest.raises(InvalidJob) as refused:
            await queue.submit("k", **options)
        assert refused.value.field == field
        with pytest.raises(InvalidJob):
            await queue.submit_template("note", {}, **options)
        with pytest.raises(InvalidJob) as refused:
            await queue.put_template("note", "k", **options)
        assert refused.value.field == field


async def test_a_job_that_waits_for_others_cannot_ask(dsn: str) -> None:
    async with Queue(dsn) as queue:
        parent = await queue.submit("k")
        with pytest.raises(InvalidJob) as refused:
            await queue.submit("k", cache=True, depends_on=[parent])
        assert refused.value.field == "cache"


async def test_a_submission_in_a_transaction_of_ones_own(dsn: str, conn: psycopg.AsyncConnection) -> None:
    async with Queue(dsn) as queue:
        async with conn.transaction(force_rollback=True):
            await queue.submit("k", cache=True, connection=conn)
        assert (await queue.submit("k", cache=True)).state is JobState.QUEUED


SUBMITTER = """
import sys, threading
from queue_pg import SyncQueue

with SyncQueue(sys.argv[1], max_connections=5) as queue:
    ready = threading.Barrier(6)
    ids = []

    def one():
        with queue.connection():
            pass
        ready.wait()
        ids.append(queue.submit("work", {"n": 1}, cache=True).id)

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    ready.wait()
    for thread in threads:
        thread.join()
    # Not by the threads: the end of a line of print is a write of its own, and two lines become one.
    print(*ids)
"""


async def test_twenty_submissions_from_four_processes_run_once(dsn: str) -> None:
    tasks = Tasks()
    runs: list[int] = []

    @tasks.task
    async def work(n: int) -> dict[str, int]:
        runs.append(n)
        return {"run": len(runs)}

    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", SUBMITTER, dsn, stdin=pipe, stdout=pipe)
        for _ in range(4)
    ]
    for process in processes:
        # Its threads are connected and wait for that.
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    async with Queue(dsn) as queue:
        # Workers are at it while they submit: some find it in flight, some done.
        drained = asyncio.create_task(_drain_until(queue, tasks, jobs=20))
        outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
        assert [process.returncode for process in processes] == [0] * 4
        ids = [line for output, _ in outputs for line in output.decode().split()]
        assert len(set(ids)) == 20
        results = [await queue.result(job_id, timeout=60) for job_id in ids]
        await drained
        jobs = [await queue.get(job_id) for job_id in ids]
    assert results == [{"run": 1}] * 20
    assert runs == [1]
    assert sorted(job.attempt for job in jobs) == [0] * 19 + [1]
    [worked] = [job for job in jobs if job.attempt]
    assert {job.cached_from for job in jobs} == {None, worked.id}


async def _drain_until(queue: Queue, tasks: Tasks, *, jobs: int) -> None:
    while True:
        await drain(queue, tasks)
        async with queue.connection() as conn:
            await conn.execute("select queue_pg.maintain()")
            row = await (await conn.execute("select count(*) from queue_pg.finished_jobs")).fetchone()
        if row == (jobs,):
            return
