"""`queue.attempts(id)`: pages, tenants, wrong input, and errors of any size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg import Attempt, AttemptPage, Fail, InvalidJob, JobNotFound, Queue, Snooze, SyncQueue, Unreadable
from queue_pg.tasks import Tasks
from queue_pg.testing import drain


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as client:
        yield client


async def failing(queue: Queue, times: int, message: str = "no") -> UUID:
    job = await queue.submit("k", max_attempts=1000)
    for _ in range(times):
        [claimed] = await queue.claim("w", ["default"])
        await queue.fail(claimed.id, claimed.lease_token, {"code": "x", "message": message}, delay=0)
    return job.id


async def test_what_a_handler_did(queue: Queue) -> None:
    tasks = Tasks()
    at_once = timedelta(0)
    outcomes: list[Any] = [
        {"model": "small", "usage": {"total_tokens": 3}},
        Snooze(at_once),
        Fail("bad luck", delay=at_once),
    ]

    @tasks.task
    async def moody() -> Any:
        return outcomes.pop()

    job = await queue.submit("moody")
    await drain(queue, tasks)
    page = await queue.attempts(job.id)
    assert isinstance(page, AttemptPage)
    assert (page.forgotten_to, page.next_after) == (None, None)
    assert all(isinstance(each, Attempt) for each in page.attempts)
    assert [(each.attempt, each.outcome) for each in page.attempts] == [(1, "failed"), (2, "snoozed"), (2, "completed")]
    failed, _, completed = page.attempts
    assert (failed.error or {})["message"] == "bad luck"
    assert (completed.model, completed.usage, completed.error) == ("small", {"total_tokens": 3}, None)


async def test_page_by_page_and_the_blocking_twin(queue: Queue, dsn: str) -> None:
    job = await failing(queue, 10)
    whole = (await queue.attempts(str(job))).attempts
    assert len(whole) == 10
    found: list[Attempt] = []
    after: int | None = 0
    with SyncQueue(dsn, notify=False) as blocking:
        while after is not None:
            page = blocking.attempts(job, after=after, limit=5)
            assert len(page.attempts) == 5
            found += page.attempts
            after = page.next_after
    assert found == whole


async def test_a_job_that_nobody_claimed_has_none(queue: Queue) -> None:
    job = await queue.submit("k")
    assert await queue.attempts(job.id) == AttemptPage([], None, None)


async def test_what_is_forgotten_is_said(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    job = await failing(queue, 3)
    await conn.execute("delete from queue_pg.job_events where seq <= 3")
    page = await queue.attempts(job, limit=1)
    assert (page.forgotten_to, [each.attempt for each in page.attempts], page.next_after) == (3, [2], 5)
    rest = await queue.attempts(job, after=5, limit=1)
    assert (rest.forgotten_to, [each.attempt for each in rest.attempts], rest.next_after) == (None, [3], None)


async def test_a_page_ends_early_when_errors_are_large(queue: Queue) -> None:
    job = await failing(queue, 5, "x" * 8_000)
    async with queue.connection() as conn:
        await conn.execute(
            "update queue_pg.job_events set data = jsonb_set(data, '{error,message}', to_jsonb(repeat('x', 600000)))"
            " where type = 'failed'"
        )
    sizes: list[int] = []
    after: int | None = 0
    while after is not None:
        page = await queue.attempts(job, after=after)
        sizes.append(len(page.attempts))
        after = page.next_after
    assert sizes == [2, 2, 1]


async def test_what_python_cannot_hold_is_marked(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    job = await failing(queue, 1)
    await conn.execute("update queue_pg.job_events set data = data || '{\"error\": 1e5000}' where type = 'failed'")
    [each] = (await queue.attempts(job)).attempts
    assert isinstance(each.error, Unreadable)


async def test_jobs_of_others_are_nobody_s(queue: Queue, dsn: str) -> None:
    job = await failing(queue, 1)
    async with Queue(dsn, org="acme", notify=False) as other:
        with pytest.raises(JobNotFound):
            await other.attempts(job)
    async with Queue(dsn, org=None, notify=False) as everybody:
        assert len((await everybody.attempts(job)).attempts) == 1


@pytest.mark.parametrize("job", [UUID(int=7), str(UUID(int=7)), "no id", "\x00"], ids=repr)
async def test_no_such_job(queue: Queue, job: Any) -> None:
    with pytest.raises(JobNotFound):
        await queue.attempts(job)


@pytest.mark.parametrize(
    ("field", "value"),
    [("after", value) for value in (-1, 2**31, True, "1", None, 1.5)]
    + [("limit", value) for value in (0, -1, 1001, True, "1", None)],
)
async def test_wrong_input_names_its_field(queue: Queue, field: str, value: Any) -> None:
    job = await queue.submit("k")
    with pytest.raises(InvalidJob) as refused:
        await queue.attempts(job.id, **{field: value})
    assert refused.value.field == field
