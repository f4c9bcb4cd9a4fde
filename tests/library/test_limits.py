"""Limits by the library, both clients; submission with a key and a cost by every way in."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from queue_pg import InvalidJob, LimitNotFound, NewJob, Queue, SyncQueue
from queue_pg.tasks import Tasks


async def test_a_limit_is_set_read_paused_resumed_and_removed(dsn: str) -> None:
    async with Queue(dsn) as queue:
        made = await queue.set_limit("key", "tenant-7", max_running=5, rate=60, per="minute", burst=10)
        assert (made.scope, made.name, made.status, made.running) == ("key", "tenant-7", "open", 0)
        assert (made.max_running, made.rate, made.per, made.burst, made.units_left) == (5, 60, "minute", 10, 10)
        until = (await queue.set_limit("queue", "default", max_running=1)).paused_until
        assert until is None
        assert [(each.scope, each.name) for each in await queue.limits()] == [("key", "tenant-7"), ("queue", "default")]
        assert [each.name for each in await queue.limits(scope="queue")] == ["default"]
        assert [each.name for each in await queue.limits(limit=1, after=("key", "tenant-7"))] == ["default"]
        assert (await queue.pause_limit("key", "tenant-7")).status == "paused"
        assert not (await queue.resume_limit("key", "tenant-7")).paused
        await queue.remove_limit("key", "tenant-7")
        for act in (queue.get_limit, queue.remove_limit, queue.resume_limit):
            with pytest.raises(LimitNotFound):
                await act("key", "tenant-7")
    async with Queue(dsn, org="other") as other:
        assert await other.limits() == []


def test_the_blocking_client_limits_too(dsn: str) -> None:
    with SyncQueue(dsn) as queue:
        queue.set_limit("queue", "gpu", max_running=1)
        job = queue.submit("k", queue="gpu")
        second = queue.submit("k", queue="gpu")
        [held] = queue.claim("w", ["gpu"], max_jobs=5)
        assert held.id == job.id
        assert queue.get_limit("queue", "gpu").status == "full"
        [why] = queue.why_waiting(second.id)
        assert (why.reason, why.held_by) == ("limit_full", str(job.id))


async def test_every_way_in_carries_key_and_cost(dsn: str) -> None:
    many = [NewJob(kind="k", payload=n, limit_key=f"key-{n}", cost=n) for n in range(60)]
    async with Queue(dsn) as queue:
        job = await queue.submit("k", limit_key="key-7", cost=3)
        assert (job.limit_key, job.cost) == ("key-7", 3)
        for stored in (await queue.submit_many(many), await queue.submit_many(many[:3])):
            for given, each in zip(many, stored, strict=False):
                read = await queue.get(each.id)
                assert (read.limit_key, read.cost) == (given.limit_key, given.cost)
        child = await queue.submit("k", limit_key="key-8", cost=4, depends_on=[job.id])
        assert (child.limit_key, child.cost) == ("key-8", 4)


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"limit_key": ""}, "limit_key"),
        ({"limit_key": "x" * 256}, "limit_key"),
        ({"limit_key": 7}, "limit_key"),
        ({"limit_key": "\x00"}, "limit_key"),
        ({"cost": -1}, "cost"),
        ({"cost": 1_000_001}, "cost"),
        ({"cost": 1.5}, "cost"),
        ({"cost": True}, "cost"),
    ],
)
async def test_a_bad_key_or_cost_is_refused_by_name(dsn: str, terms: dict[str, Any], field: str) -> None:
    async with Queue(dsn) as queue:
        with pytest.raises(InvalidJob) as refused:
            await queue.submit("k", **terms)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("scope", "name", "terms", "field"),
    [
        ("worker", "a", {"max_running": 1}, "scope"),
        ("key", "", {"max_running": 1}, "name"),
        ("queue", "x" * 201, {"max_running": 1}, "name"),
        ("key", "\x00", {"max_running": 1}, "name"),
        ("key", "a", {"max_running": 0}, "max_running"),
        ("key", "a", {"max_running": True}, "max_running"),
        ("key", "a", {"rate": 1, "per": "week"}, "per"),
        ("key", "a", {"rate": 0}, "rate"),
        ("key", "a", {"max_running": 1, "burst": 2}, "burst"),
        ("key", "a", {}, "max_running"),
    ],
)
async def test_a_bad_limit_is_refused_by_name(
    dsn: str, scope: str, name: str, terms: dict[str, Any], field: str
) -> None:
    async with Queue(dsn) as queue:
        with pytest.raises(InvalidJob) as refused:
            await queue.set_limit(scope, name, **terms)
        assert refused.value.field == field
        assert await queue.limits() == []


async def test_a_pause_needs_a_time_with_its_zone(dsn: str) -> None:
    async with Queue(dsn) as queue:
        with pytest.raises(InvalidJob):
            await queue.pause_limit("key", "a", datetime.now() + timedelta(hours=1))


async def test_a_task_makes_its_key_of_the_payload(dsn: str) -> None:
    tasks = Tasks()

    @tasks.task(limit_key="user:{user}/{model}", cost=2)
    async def ask(user: int, model: str = "small") -> None: ...

    @tasks.task(limit_key=lambda payload: payload["user"][:3])
    def tell(user: str) -> None: ...

    async with Queue(dsn) as queue:
        job = await ask.using(queue=queue).submit(user=7)
        assert (job.limit_key, job.cost) == ("user:7/small", 2)
        own = await ask.using(queue=queue, limit_key="mine", cost=5).submit(user=7)
        assert (own.limit_key, own.cost) == ("mine", 5)
        assert (await tell.using(queue=queue).submit(user="abcdef")).limit_key == "abc"
    with pytest.raises(TypeError, match="no parameter"):
        tasks.task(limit_key="user:{usr}")(lambda user: None)
