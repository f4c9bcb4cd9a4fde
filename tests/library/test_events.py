"""`queue.events(id)`: whole lists for early and late readers, from whichever process, through outages; bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from queue_pg import InvalidJob, JobEvent, JobNotFound, LeaseLost, Queue, SyncQueue
from queue_pg import feed as feed_module
from queue_pg.feed import Feed
from queue_pg.models import EventsRead
from queue_pg.testing import Clock

PATIENCE_SECONDS = 60.0


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as client:
        yield client


async def soon(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE_SECONDS)


async def running(queue: Queue) -> tuple[UUID, int]:
    job = await queue.submit("k")
    [claimed] = await queue.claim("w", ["default"])
    assert claimed.id == job.id
    return claimed.id, claimed.lease_token


async def say(queue: Queue, job: UUID, token: int, *lines: str) -> None:
    await queue.append_events(job, token, [("log", {"line": line, "stream": "stdout"}) for line in lines])


async def all_of(queue: Queue, job: UUID, after: int = 0) -> list[JobEvent]:
    return [event async for event in queue.events(job, after=after)]


async def test_a_late_reader_gets_the_whole_list_and_its_end(queue: Queue) -> None:
    job, token = await running(queue)
    await say(queue, job, token, "one", "two")
    await queue.progress(job, token, 0.5)
    await queue.complete(job, token, "done")
    found = await soon(all_of(queue, job))
    assert [(event.seq, event.type) for event in found] == [
        *((1, "submitted"), (2, "started"), (3, "log"), (4, "log"), (5, "progress"), (6, "completed")),
    ]
    assert found[2].data == {"line": "one", "stream": "stdout"}
    assert found[4].data == {"fraction": 0.5}
    assert [event.seq for event in await soon(all_of(queue, job, after=4))] == [5, 6]
    assert await soon(all_of(queue, job, after=6)) == []
    assert await soon(all_of(queue, job, after=10**6)) == []


@pytest.mark.parametrize("notify", [True, False])
async def test_an_early_reader_sees_the_same_as_a_late_one(dsn: str, notify: bool) -> None:
    async with Queue(dsn, notify=notify) as queue, Queue(dsn) as other:
        job = (await queue.submit("k")).id
        reader = asyncio.create_task(all_of(queue, job))
        following = queue.follow(job)
        assert [event.seq for event in await soon(following.more()) or []] == [1]
        [claimed] = await other.claim("w", ["default"])
        assert [event.type for event in await soon(following.more()) or []] == ["started"]
        await say(other, job, claimed.lease_token, "hello")
        assert [event.type for event in await soon(following.more()) or []] == ["log"]
        await other.complete(job, claimed.lease_token)
        assert [event.type for event in await soon(following.more()) or []] == ["completed"]
        assert await soon(following.more()) == []
        following.close()
        assert await soon(reader) == await soon(all_of(other, job))


async def test_nothing_is_lost_or_said_twice_while_events_come_fast(queue: Queue) -> None:
    job, token = await running(queue)
    readers = [asyncio.create_task(all_of(queue, job)) for _ in range(5)]
    for n in range(200):
        await say(queue, job, token, str(n))
    await queue.complete(job, token)
    for found in await soon(asyncio.gather(*readers)):
        assert [event.seq for event in found] == list(range(1, 204))


async def test_a_reader_that_was_away_goes_on_elsewhere(dsn: str, queue: Queue) -> None:
    job, token = await running(queue)
    await say(queue, job, token, "one", "two")
    seen: list[JobEvent] = []
    stream = queue.events(job)
    async for event in stream:
        seen.append(event)
        if event.seq == 3:
            break
    await stream.aclose()
    await say(queue, job, token, "three")
    await queue.complete(job, token)
    async with Queue(dsn) as other:
        seen += await soon(all_of(other, job, after=seen[-1].seq))
    assert seen == await soon(all_of(queue, job))
    assert [event.seq for event in seen] == [1, 2, 3, 4, 5, 6]


async def test_a_retried_job_is_followed_on(queue: Queue) -> None:
    job, token = await running(queue)
    following = queue.follow(job)
    assert len(await soon(following.more()) or []) == 2
    # Between two looks: this reader never sees that the job had ended.
    async with queue.connection() as conn, conn.transaction():
        await conn.execute("select queue_pg.fail(%s, %s, '{}', false)", (job, token))
        await conn.execute("select queue_pg.retry(%s)", (job,))
    assert [event.type for event in await soon(following.more()) or []] == ["failed", "retried"]
    more = asyncio.create_task(following.more())
    await queue.claim("w", ["default"])
    assert [event.type for event in await soon(more) or []] == ["started"]
    following.close()


async def test_time_outs_end_a_wait_and_nothing_else(queue: Queue) -> None:
    job, token = await running(queue)
    with queue.follow(job, after=2) as following:
        assert await following.more(0.01) is None
        assert following.after == 2
        await say(queue, job, token, "late")
        assert [event.seq for event in await soon(following.more()) or []] == [3]
        assert following.state == "running"


async def test_unknown_jobs_and_wrong_numbers(dsn: str, queue: Queue) -> None:
    with pytest.raises(JobNotFound):
        await soon(all_of(queue, uuid4()))
    job, _ = await running(queue)
    for wrong in (-1, 2**31, True, "1", 1.0, None):
        with pytest.raises(InvalidJob, match="after"):
            await soon(all_of(queue, job, after=wrong))  # type: ignore[arg-type]
    async with Queue(dsn, org="another") as stranger:
        with pytest.raises(JobNotFound):
            await soon(all_of(stranger, job))
        with pytest.raises(JobNotFound):
            await stranger.events_page(job)
        with pytest.raises(JobNotFound):
            await stranger.logs(job)


async def test_pages_and_logs(queue: Queue) -> None:
    job, token = await running(queue)
    await say(queue, job, token, *(f"line {n}" for n in range(5)))
    await queue.append_events(job, token, [("log", {"line": "oh", "stream": "stderr", "level": 3})])
    page = await queue.events_page(job, limit=3)
    assert ([event.seq for event in page.events], page.state, page.last_seq) == ([1, 2, 3], "running", 8)
    first = await queue.logs(job, limit=2)
    assert ([line.line for line in first.lines], first.next_seq) == (["line 0", "line 1"], 5)
    rest = await queue.logs(job, from_seq=first.next_seq or 0)
    assert ([line.line for line in rest.lines], rest.next_seq) == (["line 2", "line 3", "line 4", "oh"], None)
    [wrong] = (await queue.logs(job, stream="stderr")).lines
    assert (wrong.stream, wrong.line, wrong.data) == ("stderr", "oh", {"level": 3})


async def test_what_is_appended_is_checked(queue: Queue, clock: Clock) -> None:
    job, token = await running(queue)
    refused: list[tuple[list[tuple[str, Any]], str]] = [
        ([], "events"),
        ([("log", {"line": "\x00"})], r"events\[0\]\.data\.line"),
        ([("log", {}), ("log", {"line": "x" * 70_000})], r"events\[1\]\.data"),
        ([("completed", {})], "type"),
        ([("NO", {})], "type"),
        ([("log", {}), ("a\x00", {})], r"events\[1\]\.type"),
        ([("log", {"n": float("nan")})], r"events\[0\]\.data\.n"),
        ([("log", {})] * 1001, "events"),
    ]
    for events, field in refused:
        with pytest.raises(InvalidJob, match=rf"^{field}"):
            await queue.append_events(job, token, events)
    for value in (-0.1, 1.1, float("nan"), True, "half"):
        with pytest.raises(InvalidJob, match=r"^progress"):
            await queue.progress(job, token, value)  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match="lease_token"):
        await queue.append_events(job, -1, [("a", {})])
    clock.advance(31)
    async with queue.connection() as conn:
        await conn.execute("select queue_pg.reap()")
    with pytest.raises(LeaseLost) as lost:
        await say(queue, job, token, "late")
    assert lost.value.state == "queued"
    with pytest.raises(JobNotFound):
        await say(queue, uuid4(), token, "whom?")
    assert [event.type for event in (await queue.events_page(job)).events] == ["submitted", "started", "lease_lost"]


async def test_an_outage_while_reading_is_waited_out(dsn: str, queue: Queue) -> None:
    job, token = await running(queue)
    with queue.follow(job) as following:
        assert len(await soon(following.more()) or []) == 2
        waiting = asyncio.create_task(following.more())
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as admin:
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        async with Queue(dsn) as other:
            await say(other, job, token, "afterwards")
        assert [event.seq for event in await soon(waiting) or []] == [3]


async def test_closing_ends_the_readers(dsn: str) -> None:
    queue = Queue(dsn)
    await queue.open()
    job, _ = await running(queue)
    reader = asyncio.create_task(all_of(queue, job))
    following = queue.follow(job)
    await soon(following.more())
    await queue.close()
    with pytest.raises(Exception, match="closed"):
        await soon(reader)
    with pytest.raises(RuntimeError, match="not open"):
        queue.follow(job)


def test_the_blocking_twin(dsn: str) -> None:
    with SyncQueue(dsn) as queue:
        job = queue.submit("k")
        [claimed] = queue.claim("w", ["default"])
        queue.append_events(job.id, claimed.lease_token, [("chunk", {"text": "Hel"}), ("chunk", {"text": "lo"})])
        seen: list[str] = []
        for event in queue.events(job.id):
            seen.append(event.type)
            if event.seq == 4:
                queue.complete(job.id, claimed.lease_token)
        assert seen == ["submitted", "started", "chunk", "chunk", "completed"]


# --- the loop that all followers share --------------------------------------------------------------------------------


class Unheard:
    """Wake-ups that never come."""

    enabled = True
    listening = True

    def start(self) -> None: ...
    def subscribe(self, *_: Any, callback: Any) -> Any:
        self.callback = callback
        return self

    def close(self) -> None: ...


async def test_many_followers_are_one_statement_and_a_slow_one_holds_nobody_up() -> None:
    """Who does not ask is not read for: it holds one page at most, and the others go on."""
    reads: list[list[tuple[UUID, int]]] = []
    jobs = [uuid4() for _ in range(50)]
    last = 5

    async def read(places: list[tuple[UUID, int]]) -> list[EventsRead | None]:
        reads.append(places)
        return [_read(after, last) for _, after in places]

    async def follow(ids: list[UUID]) -> None: ...

    wakeups = Unheard()
    feed = Feed(follow=follow, read=read, wakeups=wakeups)  # type: ignore[arg-type]
    # Two of the same job at the same place are read for once.
    followings = [feed.join(job, 0) for job in jobs for _ in range(2)]
    pages = await soon(asyncio.gather(*(following.more() for following in followings)))
    assert all([event.seq for event in page or []] == [1, 2, 3, 4, 5] for page in pages)
    assert sum(len(places) for places in reads) == len(jobs)
    assert len(reads) <= 2
    # All but the first have taken theirs, and wait for more; the first does not ask.
    reads.clear()
    waiting = [asyncio.create_task(following.more()) for following in followings[2:]]
    await asyncio.sleep(0)
    last = 6
    for following in followings:
        feed._make_stale(following._follower)
    assert all([event.seq for event in page or []] == [6] for page in await soon(asyncio.gather(*waiting)))
    assert jobs[0] not in {job for places in reads for job, _ in places}
    assert [event.seq for event in await soon(followings[0].more()) or []] == [6]
    for following in followings:
        following.close()
    await soon(feed.close())


def _read(after: int, last: int) -> EventsRead:
    from queue_pg.models import JobState, StoredEvent

    events = [StoredEvent(seq, None, "log", "{}") for seq in range(after + 1, last + 1)]
    return EventsRead(org="default", state=JobState.RUNNING, followed=True, last_seq=last, events=events)


async def test_a_notification_that_is_lost_costs_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "RECHECK_SECONDS", 0.01)
    lasts = iter([1, 1, 1, 2])

    async def read(places: list[tuple[UUID, int]]) -> list[EventsRead | None]:
        last = next(lasts)
        return [_read(after, last) for _, after in places]

    async def follow(ids: list[UUID]) -> None: ...

    feed = Feed(follow=follow, read=read, wakeups=Unheard())  # type: ignore[arg-type]
    with feed.join(uuid4(), 0) as following:
        assert [event.seq for event in await soon(following.more()) or []] == [1]
        assert [event.seq for event in await soon(following.more()) or []] == [2]
    await soon(feed.close())
