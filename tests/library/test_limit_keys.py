"""Limit keys and costs of what makes jobs: schedules, job templates, callbacks of batches; shares of limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from queue_pg import InvalidJob, NewJob, Queue, SyncQueue, store
from queue_pg.tasks import Tasks

VARIABLES = {"user": "string", "n": {"type": "integer", "default": 7}}


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as made:
        yield made


async def test_a_schedule_gives_its_jobs_key_and_cost(queue: Queue) -> None:
    made = await queue.schedule("ping", "k", every=60, limit_key="tenant-7", cost=3)
    assert (made.limit_key, made.cost) == ("tenant-7", 3)
    job = await queue.get(await queue.run_schedule_now("ping"))
    assert (job.limit_key, job.cost) == ("tenant-7", 3)
    changed = await queue.schedule("ping", "k", every=60)
    assert (changed.limit_key, changed.cost) == (None, 1)
    job = await queue.get(await queue.run_schedule_now("ping"))
    assert (job.limit_key, job.cost) == (None, 1)


async def test_a_schedule_that_is_inserted_has_them_too(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    await conn.execute(
        "insert into queue_pg.schedules (name, kind, every, limit_key, cost) values ('a', 'k', '1 h', 'x', 2)"
    )
    job = await queue.get(await queue.run_schedule_now("a"))
    assert (job.limit_key, job.cost) == ("x", 2)
    with pytest.raises(psycopg.errors.CheckViolation, match="limit_key"):
        await conn.execute("update queue_pg.schedules set limit_key = ''")


async def test_a_task_s_schedule_has_the_task_s_key(queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task(every=60, limit_key="model:{model}", cost=4)
    async def refresh(model: str = "small") -> None: ...

    @tasks.task(every=60, limit_key=lambda payload: payload["model"])
    async def clean(model: str = "large") -> None: ...

    for made, key, cost in ((refresh, "model:small", 4), (clean, "large", 1)):
        assert made.schedule is not None
        params = made.schedule.params()
        assert (params["limit_key"], params["cost"]) == (key, cost)


async def test_a_template_fills_its_key_in(queue: Queue) -> None:
    terms: dict[str, Any] = {
        "variables": VARIABLES,
        "limit_key": "user:{{ variables.user }}/{{variables.n}}",
        "cost": 5,
    }
    made = await queue.put_template("t", "k", {"who": "{{ variables.user }}"}, **terms)
    assert (made.limit_key, made.cost) == ("user:{{ variables.user }}/{{variables.n}}", 5)
    assert (await queue.put_template("t", "k", {"who": "{{ variables.user }}"}, **terms)).version == 1
    assert (await queue.put_template("t", "k", {"who": "{{ variables.user }}"}, **{**terms, "cost": 6})).version == 2
    job = await queue.get((await queue.submit_template("t", {"user": "ann"}, version=1)).id)
    assert (job.limit_key, job.cost) == ("user:ann/7", 5)
    own = await queue.get((await queue.submit_template("t", {"user": "ann"}, limit_key="{{ mine }}", cost=0)).id)
    assert (own.limit_key, own.cost) == ("{{ mine }}", 0)
    # What a variable holds is no template.
    job = await queue.get((await queue.submit_template("t", {"user": "{{ variables.n }}"})).id)
    assert job.limit_key == "user:{{ variables.n }}/7"


async def test_a_template_without_a_key_makes_jobs_without_one(queue: Queue) -> None:
    assert (await queue.put_template("t", "k")).limit_key is None
    job = await queue.get((await queue.submit_template("t")).id)
    assert (job.limit_key, job.cost) == (None, 1)


async def test_a_key_that_gets_too_long_or_empty_is_refused(queue: Queue) -> None:
    await queue.put_template("t", "k", variables={"user": "string"}, limit_key="{{ variables.user }}")
    for user in ("", "x" * 256):
        with pytest.raises(InvalidJob) as refused:
            await queue.submit_template("t", {"user": user})
        assert refused.value.field == "limit_key"
    assert (await queue.list()).jobs == []


@pytest.mark.parametrize("callback", ["on_complete", "on_failed", "on_all"])
async def test_the_callback_of_a_batch_has_them(queue: Queue, callback: str) -> None:
    given: Any = {"kind": "report", "limit_key": "tenant-7", "cost": 3, "queue": "reports"}
    for spec in (given, NewJob(**given)):
        async with queue.batch(**{callback: spec}) as batch:
            await batch.submit("k")
        [job] = await queue.claim("w", ["default"])
        if callback == "on_failed":
            await queue.fail(job.id, job.lease_token, "no", retry=False)
        else:
            await queue.complete(job.id, job.lease_token)
        async with queue.connection() as conn:
            await store.maintain(conn)
        [made] = (await queue.list(queue="reports", limit=1)).jobs
        found = await queue.get(made.id)
        assert (found.limit_key, found.cost) == ("tenant-7", 3)


WRONG = [
    ({"limit_key": ""}, "limit_key"),
    ({"limit_key": "x" * 256}, "limit_key"),
    ({"limit_key": 7}, "limit_key"),
    ({"limit_key": "\x00"}, "limit_key"),
    ({"cost": -1}, "cost"),
    ({"cost": 1_000_001}, "cost"),
    ({"cost": True}, "cost"),
    ({"cost": 1.5}, "cost"),
]


@pytest.mark.parametrize(("terms", "field"), WRONG)
async def test_what_is_wrong_is_refused_by_name(queue: Queue, terms: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        await queue.schedule("s", "k", every=60, **terms)
    assert refused.value.field == field
    with pytest.raises(InvalidJob) as refused:
        await queue.put_template("t", "k", **terms)
    assert refused.value.field == field
    with pytest.raises(InvalidJob) as refused:
        await queue.create_batch(on_all={"kind": "k", **terms})
    assert refused.value.field == f"on_all.{field}"
    await queue.put_template("t", "k")
    with pytest.raises(InvalidJob) as refused:
        await queue.submit_template("t", **terms)
    assert refused.value.field == field


async def test_a_template_s_key_names_its_variables(queue: Queue) -> None:
    for key in ("{{ variables.usr }}", "{{ user }}", "{{ variables.user", "{{ parents.a.output }}"):
        with pytest.raises(InvalidJob) as refused:
            await queue.put_template("t", "k", variables=VARIABLES, limit_key=key)
        assert refused.value.field == "limit_key"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("schedule('s', 'k', every => '1 h', limit_key => '')", "limit_key"),
        ("schedule('s', 'k', every => '1 h', cost => -1)", "cost"),
        ("put_template('t', 'k', limit_key => '')", "limit_key"),
        ("put_template('t', 'k', limit_key => repeat('x', 256))", "limit_key"),
        ("put_template('t', 'k', cost => -1)", "cost"),
        ("put_template('t', 'k', cost => 1000001)", "cost"),
        ('create_batch(on_all => \'{"kind": "k", "limit_key": ""}\')', "on_all"),
        ('create_batch(on_all => \'{"kind": "k", "cost": -1}\')', "on_all"),
        ('create_batch(on_all => \'{"kind": "k", "cost": "much"}\')', "on_all"),
    ],
)
async def test_sql_refuses_it_too(conn: psycopg.AsyncConnection, call: str, field: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute(f"select queue_pg.{call}")
    assert field in str(refused.value)


# --- shares -----------------------------------------------------------------------------------------------------------


async def test_a_share_is_set_read_and_replaced(queue: Queue) -> None:
    made = await queue.set_limit("key", "a", weight=2.5)
    assert (made.weight, made.ageing_seconds, made.status, made.running) == (2.5, None, "open", 0)
    made = await queue.set_limit("queue", "default", weight=1, ageing=timedelta(minutes=5))
    assert (made.weight, made.ageing_seconds) == (1, 300)
    made = await queue.set_limit("queue", "default", max_running=3)
    assert (made.weight, made.ageing_seconds, made.max_running) == (None, None, 3)
    assert [each.weight for each in await queue.limits()] == [2.5, None]


def test_the_blocking_client_shares_too(dsn: str) -> None:
    with SyncQueue(dsn) as queue:
        assert queue.set_limit("queue", "default", ageing=60.5).ageing_seconds == 60.5


@pytest.mark.parametrize(
    ("scope", "terms", "field"),
    [
        ("key", {"weight": 0}, "weight"),
        ("key", {"weight": 1001}, "weight"),
        ("key", {"weight": float("nan")}, "weight"),
        ("key", {"weight": float("inf")}, "weight"),
        ("key", {"weight": "2"}, "weight"),
        ("key", {"weight": True}, "weight"),
        ("key", {"ageing": 60}, "ageing"),
        ("queue", {"ageing": 0}, "ageing"),
        ("queue", {"ageing": float("nan")}, "ageing"),
        ("queue", {"ageing": timedelta(days=366)}, "ageing"),
        ("queue", {"ageing": "1 h"}, "ageing"),
    ],
)
async def test_a_bad_share_is_refused_by_name(queue: Queue, scope: str, terms: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        await queue.set_limit(scope, "a", **terms)
    assert refused.value.field == field
    assert await queue.limits() == []
