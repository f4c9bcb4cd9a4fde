"""Queue and its blocking twin against a real Postgres."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from queue_pg import (
    DatabaseUnavailable,
    InvalidJob,
    InvalidTransition,
    Job,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobState,
    LeaseLost,
    NewJob,
    PayloadTooLarge,
    Queue,
    SchemaError,
    SyncQueue,
    UniqueKeyConflict,
    Unreadable,
    WaitTimeout,
)
from queue_pg.payloads import decode_json
from queue_pg.testing import Clock


@pytest.fixture
async def queue(dsn: str) -> Any:
    async with Queue(dsn, notify=False) as queue:
        yield queue


async def claim(queue: Queue) -> tuple[UUID, int]:
    [claimed] = await queue.claim("w1", ["default"])
    return claimed.id, claimed.lease_token


# --- submitting -------------------------------------------------------------------------------------------------------


async def test_a_submitted_job_reads_back_as_it_was_given(queue: Queue) -> None:
    at = datetime.now(UTC) + timedelta(days=1)
    job = await queue.submit(
        "summarise",
        {"text": "Grüße", "n": [1, 2.5, None]},
        queue="texts",
        priority=7,
        run_at=at,
        max_attempts=3,
        timeout=timedelta(minutes=2),
        expires_at=at + timedelta(days=1),
        unique_key="order-7",
        tags=["a", "b"],
        metadata={"user": 7},
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert (job.kind, job.queue, job.priority, job.max_attempts) == ("summarise", "texts", 7, 3)
    assert (job.run_at, job.expires_at, job.timeout) == (at, at + timedelta(days=1), timedelta(minutes=2))
    assert (job.payload, job.metadata, job.tags) == ({"text": "Grüße", "n": [1, 2.5, None]}, {"user": 7}, ["a", "b"])
    assert (job.unique_key, job.state, job.attempt, job.org) == ("order-7", JobState.SCHEDULED, 0, "default")
    assert job.traceparent is not None
    assert job.created_at.tzinfo is UTC
    assert await queue.get(job.id) == job
    assert await queue.get(str(job.id)) == job


async def test_only_the_kind_is_needed(queue: Queue) -> None:
    job = await queue.submit("k")
    assert (job.state, job.payload, job.queue, job.priority, job.metadata) == ("queued", {}, "default", 0, {})


@pytest.mark.parametrize("payload", [[], [1], "text", 0, False, {"a": None}])
async def test_any_json_is_a_payload(queue: Queue, payload: Any) -> None:
    assert (await queue.submit("k", payload)).payload == payload


async def test_a_delay_is_counted_by_the_database(queue: Queue, clock: Clock) -> None:
    clock.advance(10_000)
    job = await queue.submit("k", delay=60)
    assert job.state is JobState.SCHEDULED
    assert job.run_at - job.created_at == timedelta(seconds=60)
    assert job.created_at > datetime.now(UTC) + timedelta(hours=2)


async def test_a_unique_key_gives_the_same_job_again(queue: Queue) -> None:
    job, created = await queue.submit_new(NewJob(kind="k", payload={"a": 1}, unique_key="x"))
    again, created_again = await queue.submit_new(NewJob(kind="k", payload={"a": 1}, unique_key="x"))
    assert (created, created_again) == (True, False)
    assert again == job
    with pytest.raises(UniqueKeyConflict) as caught:
        await queue.submit("k", {"a": 2}, unique_key="x")
    assert (caught.value.unique_key, caught.value.job_id) == ("x", job.id)


def bad(**fields: Any) -> dict[str, Any]:
    return {"kind": "k", **fields}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (bad(kind=""), "kind"),
        (bad(kind="k" * 201), "kind"),
        (bad(kind=None), "kind"),
        (bad(kind="a\x00"), "kind"),
        (bad(kind="\ud800"), "kind"),
        (bad(queue=""), "queue"),
        (bad(queue="\x00"), "queue"),
        (bad(priority=40_000), "priority"),
        (bad(priority=1.5), "priority"),
        (bad(priority=True), "priority"),
        (bad(run_at=datetime(2026, 1, 1)), "run_at"),
        (bad(run_at="tomorrow"), "run_at"),
        (bad(run_at=datetime.max.replace(tzinfo=UTC)), "run_at"),
        (bad(run_at=datetime.max.replace(tzinfo=UTC), delay=1), "delay"),
        (bad(delay=-1), "delay"),
        (bad(delay=float("nan")), "delay"),
        (bad(delay="5"), "delay"),
        (bad(max_attempts=0), "max_attempts"),
        (bad(max_attempts=1001), "max_attempts"),
        (bad(timeout=0), "timeout"),
        (bad(timeout=timedelta(days=366)), "timeout"),
        (bad(timeout=1e300), "timeout"),
        (bad(unique_key=""), "unique_key"),
        (bad(unique_key="x" * 256), "unique_key"),
        (bad(tags="abc"), "tags"),
        (bad(tags=["x"] * 65), "tags"),
        (bad(tags=["a", "\x00"]), "tags[1]"),
        (bad(tags=[""]), "tags[0]"),
        (bad(tags=["x" * 199 + str(index) for index in range(64)] * 1), "tags[10]"),
        (bad(metadata=[]), "metadata"),
        (bad(metadata={"a": float("inf")}), "metadata.a"),
        (bad(metadata={"a": "x" * 70_000}), "metadata"),
        (bad(payload={"a": "\x00"}), "payload.a"),
        (bad(payload={"a": object()}), "payload.a"),
        (bad(traceparent="x" * 256), "traceparent"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_fields_are_named_and_nothing_is_stored(queue: Queue, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        await queue.submit(**fields)
    assert caught.value.field == field
    assert caught.value.code in ("invalid_job", "too_large")
    assert (await queue.list()).jobs == []


async def test_payloads_are_bounded(dsn: str) -> None:
    async with Queue(dsn, notify=False, max_payload_bytes=100) as queue:
        with pytest.raises(PayloadTooLarge):
            await queue.submit("k", "x" * 99)
        await queue.submit("k", "x" * 98)
        job_id, token = await claim(queue)
        with pytest.raises(PayloadTooLarge, match="result"):
            await queue.complete(job_id, token, "x" * 99)


async def test_many_are_stored_in_order_in_chunks(queue: Queue) -> None:
    made = await queue.submit_many(NewJob(kind="k", payload={"n": number}) for number in range(1234))
    assert [one.created for one in made] == [True] * 1234
    assert [one.id for one in made] == sorted(one.id for one in made)
    page = await queue.list(with_payload=True, limit=1000)
    assert [job.payload["n"] for job in page.jobs] == list(range(1233, 233, -1))
    assert await queue.submit_many([]) == []


async def test_many_are_stored_all_or_none(queue: Queue) -> None:
    jobs = [NewJob(kind="k") for _ in range(700)]
    with pytest.raises(InvalidJob) as caught:
        await queue.submit_many([*jobs, NewJob(kind="k", payload={"a": "\x00"})])
    assert caught.value.field == "jobs[700].payload.a"
    assert "jobs[700]" in str(caught.value)
    await queue.submit("k", {"a": 1}, unique_key="x")
    with pytest.raises(UniqueKeyConflict):
        await queue.submit_many([*jobs, NewJob(kind="k", unique_key="x")])
    assert len((await queue.list()).jobs) == 1
    many = await queue.submit_many([NewJob(kind="k", payload={"a": 1}, unique_key="x"), NewJob(kind="k")])
    assert [one.created for one in many] == [False, True]


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_unknown_ids_are_not_found(queue: Queue) -> None:
    for job_id in (uuid4(), "no uuid", "\x00", "99999999999999999999"):
        for ask in (queue.get, queue.wait, queue.cancel, queue.retry, queue.why_waiting):
            with pytest.raises(JobNotFound):
                await ask(job_id)


async def test_what_python_cannot_hold_hurts_only_itself(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    good = await queue.submit("k", {"a": 1})
    deep = "[" * 3000 + "]" * 3000
    await conn.execute("insert into queue_pg.jobs (kind, payload) values ('k', '{\"n\": 1e5000}'), ('k', %s)", (deep,))
    page = await queue.list(with_payload=True)
    assert [type(job.payload) for job in page.jobs] == [Unreadable, Unreadable, dict]
    poisoned = await queue.get(page.jobs[1].id)
    assert isinstance(poisoned.payload, Unreadable)
    assert poisoned.payload.reason == "a number is too long"
    assert len(poisoned.payload.text) > 5000
    claimed = await queue.claim("w", ["default"], max_jobs=10)
    assert {job.id for job in claimed} == {job.id for job in page.jobs}
    assert decode_json(next(job.payload for job in claimed if job.id == good.id)) == {"a": 1}


async def test_pages_follow_each_other(queue: Queue) -> None:
    ids = [one.id for one in await queue.submit_many([NewJob(kind="k", payload=[n]) for n in range(25)])]
    seen: list[Job] = []
    cursor, pages = None, 0
    while True:
        page = await queue.list(limit=10, cursor=cursor)
        seen += page.jobs
        pages += 1
        # A job that comes in between belongs to no later page.
        await queue.submit("later")
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert [job.id for job in seen] == ids[::-1]
    assert pages == 3
    assert {job.payload for job in seen} == {None}


@pytest.mark.parametrize(
    "cursor", ["", "x", "ü", "\x00", "A" * 22, "AAAAAAAAAAAAAAAAAAAAAAB", "AAAA AAAAAAAAAAAAAAAAAA", 7]
)
async def test_a_foreign_cursor_is_refused(queue: Queue, cursor: Any) -> None:
    if cursor == "A" * 22:
        assert (await queue.list(cursor=cursor)).jobs == []  # the smallest id there is
        return
    with pytest.raises(InvalidJob) as caught:
        await queue.list(cursor=cursor)
    assert caught.value.field == "cursor"


async def test_filters(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    a = await queue.submit("a", queue="q1", tags=["red", "blue"], unique_key="key")
    b = await queue.submit("b", queue="q2", delay=60)
    parent = uuid4()
    batch = (await queue.create_batch()).id
    await conn.execute("insert into queue_pg.jobs (kind, batch_id, parent_id) values ('c', %s, %s)", (batch, parent))

    async def found(**filters: Any) -> list[str]:
        return [job.kind for job in (await queue.list(**filters)).jobs]

    assert await found() == ["c", "b", "a"]
    assert await found(queue="q1") == ["a"]
    assert await found(kind="b") == ["b"]
    assert await found(state="scheduled") == ["b"]
    assert await found(state=JobState.QUEUED) == ["c", "a"]
    assert await found(tag="blue") == ["a"]
    assert await found(unique_key="key") == ["a"]
    assert await found(batch_id=batch) == ["c"]
    assert await found(parent_id=str(parent)) == ["c"]
    await queue.cancel(b.id)
    assert await found(state="cancelled") == ["b"]
    assert await found(state="cancelled", kind="a") == []
    for filters, field in [
        ({"state": "done"}, "state"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"batch_id": "x"}, "batch_id"),
        ({"tag": "\x00"}, "tag"),
        ({"kind": "\ud800"}, "kind"),
    ]:
        with pytest.raises(InvalidJob) as caught:
            await queue.list(**filters)
        assert caught.value.field == field
    assert a.id < b.id


async def test_orgs_do_not_see_each_other(dsn: str, queue: Queue) -> None:
    async with Queue(dsn, org="acme", notify=False) as acme, Queue(dsn, org=None, notify=False) as everybody:
        ours, theirs = await queue.submit("k"), await acme.submit("k")
        assert (ours.org, theirs.org) == ("default", "acme")
        for ask in (queue.get, queue.cancel, queue.retry, queue.why_waiting):
            with pytest.raises(JobNotFound):
                await ask(theirs.id)
        assert [job.id for job in (await queue.list()).jobs] == [ours.id]
        assert [job.id for job in (await everybody.list()).jobs] == [theirs.id, ours.id]
        assert {stats.org for stats in await acme.stats()} == {"acme"}
        assert {stats.org for stats in await everybody.stats()} == {"acme", "default"}
        assert [job.id for job in await queue.claim("w", ["default"], max_jobs=10)] == [ours.id]


async def test_stats_workers_kinds(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    await queue.submit("k", queue="q")
    await queue.submit("k", queue="q", delay=60)
    await queue.pause("q")
    await conn.execute("select queue_pg.register_worker('w1', 'host', 7, '1', '{q}', '{k}', 4)")
    await conn.execute(
        """select queue_pg.register_kinds('[{"kind": "k", "schema": {"a": 1}, "timeout_seconds": 5}]')"""
    )
    [stats] = await queue.stats()
    assert (stats.queue, stats.queued, stats.scheduled, stats.paused, stats.paused_until) == ("q", 1, 1, True, None)
    assert stats.oldest_queued_seconds is not None
    [worker] = await queue.workers()
    assert (worker.id, worker.queues, worker.kinds, worker.live, worker.capacity) == ("w1", ["q"], ["k"], True, 4)
    kinds = {kind.kind: kind for kind in await queue.kinds()}
    assert (kinds["k"].schema, kinds["k"].timeout) == ({"a": 1}, timedelta(seconds=5))


# --- steering ---------------------------------------------------------------------------------------------------------


async def test_cancel_and_retry(queue: Queue) -> None:
    job = await queue.submit("k")
    cancelled = await queue.cancel(job.id, "changed my\x00 mind")
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.error == {"code": "cancelled", "message": "changed my\ufffd mind"}
    assert await queue.cancel(job.id) == cancelled
    again = await queue.retry(job.id, max_attempts=9)
    assert (again.id, again.state, again.max_attempts) == (job.id, JobState.QUEUED, 9)
    with pytest.raises(InvalidTransition) as caught:
        await queue.retry(job.id)
    assert (caught.value.action, caught.value.state, caught.value.job_id) == ("retry", "queued", job.id)
    with pytest.raises(InvalidJob):
        await queue.retry(job.id, max_attempts=0)


async def test_pause_and_resume(queue: Queue) -> None:
    job = await queue.submit("k", queue="q")
    await queue.pause("q")
    assert await queue.claim("w", ["q"]) == []
    [reason] = await queue.why_waiting(job.id)
    assert (reason.reason, reason.until, reason.held_by) == ("paused", None, "q")
    until = datetime.now(UTC) + timedelta(hours=1)
    await queue.pause("q", until)
    assert [(stats.paused, stats.paused_until) for stats in await queue.stats()] == [(True, until)]
    await queue.resume("q")
    assert len(await queue.claim("w", ["q"])) == 1
    with pytest.raises(InvalidJob):
        await queue.pause("q", datetime(2026, 1, 1))


# --- working ----------------------------------------------------------------------------------------------------------


async def test_every_outcome(queue: Queue) -> None:
    job = await queue.submit("k", max_attempts=2)
    job_id, token = await claim(queue)
    assert await queue.release(job_id, token) == "queued"
    job_id, token = await claim(queue)
    assert await queue.snooze(job_id, token, 60) == "scheduled"
    snoozed = await queue.get(job.id)
    assert (snoozed.attempt, snoozed.state) == (0, JobState.SCHEDULED)
    await queue.cancel(job.id)

    job = await queue.submit("k", max_attempts=2)
    job_id, token = await claim(queue)
    assert await queue.fail(job_id, token, ValueError("bad\x00"), delay=0) in ("queued", "scheduled")
    failed = await queue.get(job.id)
    assert failed.error == {"code": "ValueError", "message": "bad\ufffd"}
    await queue.cancel(job.id)

    job = await queue.submit("k")
    job_id, token = await claim(queue)
    assert await queue.fail(job_id, token, {"code": "E", "message": "m", "status": 500}, retry=False) == "failed"
    assert (await queue.get(job.id)).error == {"code": "E", "message": "m", "status": 500}

    job = await queue.submit("k")
    job_id, token = await claim(queue)
    assert await queue.complete(job_id, token, {"text": "ü"}) == "completed"
    assert (await queue.get(job.id)).result == {"text": "ü"}


async def test_a_stale_token_changes_nothing(queue: Queue) -> None:
    job = await queue.submit("k")
    job_id, token = await claim(queue)
    await queue.cancel(job.id)
    for write in (
        queue.complete(job_id, token),
        queue.fail(job_id, token, "x"),
        queue.snooze(job_id, token, 1),
        queue.release(job_id, token),
    ):
        with pytest.raises(LeaseLost) as caught:
            await write
        assert (caught.value.job_id, caught.value.state) == (job.id, "cancelled")
    assert await queue.heartbeat([job_id], [token]) == []
    assert (await queue.get(job.id)).state is JobState.CANCELLED


async def test_heartbeats_extend_leases(queue: Queue, clock: Clock) -> None:
    await queue.submit("k")
    [job] = await queue.claim("w", ["default"], lease_seconds=30)
    clock.advance(20)
    [renewed] = await queue.heartbeat([job.id], [job.lease_token], lease_seconds=60)
    assert renewed.id == job.id
    assert renewed.lease_expires_at - job.lease_expires_at > timedelta(seconds=45)
    with pytest.raises(InvalidJob):
        await queue.heartbeat([job.id], [])


async def test_bad_arguments_of_workers_are_refused(queue: Queue) -> None:
    for call, field in [
        (queue.claim("w", "default"), "queues"),
        (queue.claim("w", ["\x00"]), "queues[0]"),
        (queue.claim("\x00", ["q"]), "worker_id"),
        (queue.claim("w", ["q"], lease_seconds=0), "lease_seconds"),
        (queue.claim("w", ["q"], kinds=["\ud800"]), "kinds[0]"),
        (queue.complete(uuid4(), "1"), "lease_token"),  # type: ignore[arg-type]
        (queue.complete(uuid4(), 2**63), "lease_token"),
        (queue.complete(uuid4(), 1, {"a": "\x00"}), "result.a"),
        (queue.snooze(uuid4(), 1, -5), "delay"),
    ]:
        with pytest.raises(InvalidJob) as caught:
            await call
        assert caught.value.field == field


# --- results ----------------------------------------------------------------------------------------------------------


async def test_result_returns_or_raises(queue: Queue) -> None:
    job = await queue.submit("k")
    job_id, token = await claim(queue)
    with pytest.raises(WaitTimeout) as late:
        await queue.result(job.id, timeout=0)
    assert late.value.job_id == job.id
    await queue.complete(job_id, token, [1])
    assert await queue.result(job.id) == [1]

    await queue.submit("k")
    job_id, token = await claim(queue)
    await queue.fail(job_id, token, {"code": "E", "message": "m"}, retry=False)
    with pytest.raises(JobFailed, match="E: m") as failed:
        await queue.result(job_id)
    assert failed.value.error == {"code": "E", "message": "m"}

    job = await queue.submit("k")
    await queue.cancel(job.id)
    with pytest.raises(JobCancelled):
        await queue.result(job.id)


# --- without a usable database ----------------------------------------------------------------------------------------


async def test_a_wrong_address_is_told_at_once() -> None:
    with pytest.raises(DatabaseUnavailable, match=r"refused|failed") as caught:
        async with Queue("postgresql://nobody@127.0.0.1:1/nothing"):
            pass
    assert caught.value.hint
    with pytest.raises(DatabaseUnavailable), SyncQueue("postgresql://nobody@127.0.0.1:1/nothing"):
        pass


async def test_a_database_without_the_schema_says_what_to_do(empty_dsn: str) -> None:
    async with Queue(empty_dsn, notify=False) as queue:
        with pytest.raises(SchemaError) as caught:
            await queue.submit("k")
    assert caught.value.hint == "Run: queue-pg migrate"


async def test_a_closed_queue_says_so(dsn: str) -> None:
    with pytest.raises(RuntimeError, match="not open"):
        await Queue(dsn).submit("k")
    with pytest.raises(RuntimeError, match="not open"):
        await Queue(dsn).wait(uuid4())


# --- the blocking twin ------------------------------------------------------------------------------------------------


def test_the_blocking_twin_does_the_same(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        job = queue.submit("k", {"a": 1}, unique_key="x", tags=["t"])
        assert queue.get(job.id) == job
        assert queue.submit("k", {"a": 1}, unique_key="x") == job
        assert [one.created for one in queue.submit_many([NewJob(kind="k", delay=timedelta(hours=1))])] == [True]
        assert [found.id for found in queue.list(tag="t").jobs] == [job.id]
        with pytest.raises(WaitTimeout):
            queue.wait(job.id, timeout=0.01)
        [claimed] = queue.claim("w", ["default"])
        assert [renewed.id for renewed in queue.heartbeat([claimed.id], [claimed.lease_token])] == [job.id]
        assert queue.complete(claimed.id, claimed.lease_token, {"b": 2}) == "completed"
        assert queue.result(job.id, timeout=5) == {"b": 2}
        with pytest.raises(InvalidTransition):
            queue.cancel(job.id)
        with pytest.raises(JobNotFound):
            queue.wait(uuid4(), timeout=5)
        assert [stats.completed for stats in queue.stats()] == [1]
        assert queue.workers() == []
        assert "chat" in {kind.kind for kind in queue.kinds()}


@pytest.mark.parametrize("priority", [None, True, "1", 1.5, 32_768, -32_769])
async def test_a_priority_that_cannot_be(queue: Queue, priority: Any) -> None:
    job = await queue.submit("k")
    with pytest.raises(InvalidJob) as refused:
        await queue.reprioritize(job.id, priority)
    assert refused.value.field == "priority"


async def test_another_priority(dsn: str, queue: Queue) -> None:
    job = await queue.submit("k")
    assert (await queue.reprioritize(job.id, 5)).priority == 5
    with SyncQueue(dsn, notify=False) as blocking:
        assert blocking.reprioritize(job.id, -5).priority == -5
    async with Queue(dsn, org="acme", notify=False) as stranger:
        with pytest.raises(JobNotFound):
            await stranger.reprioritize(job.id, 1)
    await queue.cancel(job.id)
    with pytest.raises(InvalidTransition) as ended:
        await queue.reprioritize(job.id, 1)
    assert (ended.value.action, ended.value.state) == ("reprioritize", "cancelled")
