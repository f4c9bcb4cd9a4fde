"""`act_on_jobs` and `delete` of Queue and SyncQueue."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from queue_pg import InvalidJob, InvalidTransition, JobFilter, JobNotFound, JobState, NewJob, Queue, SyncQueue
from queue_pg.action_model import cursor_of, place_of


async def fail(queue: Queue, code: str, name: str) -> UUID:
    job = await queue.submit("send", queue=name)
    for claimed in await queue.claim("w", [job.queue]):
        await queue.fail(claimed.id, claimed.lease_token, {"code": code}, retry=False)
    return job.id


async def test_replay_what_failed(dsn: str) -> None:
    async with Queue(dsn, notify=False) as queue:
        mine = [await fail(queue, "timeout", "mail") for _ in range(2)]
        await fail(queue, "boom", "mail")
        failed = JobFilter(state=JobState.FAILED, queue="mail", error_code="timeout")
        counted = await queue.act_on_jobs("retry", failed, dry_run=True)
        assert (counted.matched, counted.changed, counted.done, counted.cursor) == (2, 0, True, None)
        listed = await queue.list(state="failed", error_code="timeout")
        assert [job.id for job in listed.jobs] == mine[::-1]
        replayed = await queue.act_on_jobs("retry", failed, max_attempts=9)
        assert (replayed.action, replayed.changed, replayed.skipped) == ("retry", 2, {})
        assert (await queue.get(mine[0])).max_attempts == 9


async def test_a_mapping_is_a_filter_too_and_the_blocking_twin_does_the_same(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        job = queue.submit("send", tags=["a"])
        queue.submit("send")
        assert queue.act_on_jobs("reprioritize", {"tag": "a"}, priority=3).changed == 1
        assert queue.act_on_jobs("cancel", {"tag": "a", "created_after": job.created_at}, reason="x").changed == 1
        assert queue.get(job.id).error == {"code": "cancelled", "message": "x"}
        queue.delete(job.id)
        with pytest.raises(JobNotFound):
            queue.get(job.id)
        assert queue.act_on_jobs("cancel", JobFilter(all=True)).changed == 1


async def test_it_stops_in_time_and_goes_on(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queue_pg.acting.JOBS_AT_ONCE", 2)
    async with Queue(dsn, notify=False) as queue:
        await queue.submit_many([NewJob(kind="send") for _ in range(5)])
        cursor, changed = None, []
        while True:
            result = await queue.act_on_jobs("cancel", {"all": True}, cursor=cursor, max_seconds=0)
            changed.append(result.changed)
            cursor = result.cursor
            if result.done:
                break
        assert (changed, cursor) == ([2, 2, 1], None)


async def test_other_organisations_are_left_alone(dsn: str) -> None:
    async with Queue(dsn, notify=False, org="a") as mine, Queue(dsn, notify=False, org="b") as other:
        job = await other.submit("send")
        assert (await mine.act_on_jobs("cancel", {"all": True})).matched == 0
        with pytest.raises(JobNotFound):
            await mine.delete(job.id, cancel=True)
        assert (await other.get(job.id)).state is JobState.QUEUED
    async with Queue(dsn, notify=False, org=None) as every:
        assert (await every.act_on_jobs("cancel", {"all": True})).changed == 1


@pytest.mark.parametrize(
    ("action", "wanted", "options", "field"),
    [
        ("cancel", {}, {}, "filter"),
        ("cancel", JobFilter(), {}, "filter"),
        ("cancel", "all", {}, "filter"),
        ("cancel", {"color": "red"}, {}, "filter.color"),
        ("cancel", {"queue": 3}, {}, "filter.queue"),
        ("cancel", {"queue": "a\x00"}, {}, "filter.queue"),
        ("cancel", {"created_after": datetime(2026, 1, 1)}, {}, "filter.created_after"),
        ("cancel", {"state": "failed"}, {}, "filter.state"),
        ("explode", {"all": True}, {}, "action"),
        ("reprioritize", {"all": True}, {"priority": 2**20}, "priority"),
        ("retry", {"all": True}, {"max_attempts": 0}, "max_attempts"),
        ("cancel", {"all": True}, {"cursor": "x"}, "cursor"),
    ],
)
async def test_what_is_wrong_is_named(
    dsn: str, action: Any, wanted: Mapping[str, Any], options: dict[str, Any], field: str
) -> None:
    async with Queue(dsn, notify=False) as queue:
        with pytest.raises(InvalidJob) as refused:
            await queue.act_on_jobs(action, wanted, **options)
        assert refused.value.field == field


async def test_deleting(dsn: str) -> None:
    async with Queue(dsn, notify=False) as queue:
        job = await queue.submit("send")
        with pytest.raises(InvalidTransition, match="cancel it first") as refused:
            await queue.delete(job.id)
        assert refused.value.state == "queued"
        await queue.delete(job.id, cancel=True)
        for unknown in (job.id, uuid4(), "x"):
            with pytest.raises(JobNotFound):
                await queue.delete(unknown)


async def test_whoever_waits_for_a_deleted_job_is_told(dsn: str) -> None:
    async with Queue(dsn, notify=False) as queue:
        job = await queue.submit("send")
        await queue.delete(job.id, cancel=True)
        with pytest.raises(JobNotFound):
            await queue.wait(job.id, timeout=5)
        with pytest.raises(JobNotFound):
            async for _ in queue.events(job.id):
                pass


def test_cursors() -> None:
    after, as_of = uuid4(), datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=UTC)
    assert place_of(cursor_of(after, as_of)) == (after, as_of)
    for wrong in ("", "x", "=" * 32, cursor_of(after, as_of)[:-1], "~" + cursor_of(after, as_of)[1:]):
        with pytest.raises(InvalidJob):
            place_of(wrong)
