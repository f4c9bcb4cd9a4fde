"""Many jobs by COPY: the same jobs, ids, refusals and transactions as by the function, whichever way they go."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_pg import InvalidJob, NewJob, PayloadTooLarge, Queue, SyncQueue, UniqueKeyConflict, bulk
from queue_pg.payloads import encode_json
from queue_pg.plain_json import plain_json
from queue_pg.submission import JobChecker

FAR = datetime(2999, 7, 1, 12, 0, 0, 123_456, tzinfo=UTC)
HOSTILE = [
    "\t\n\r\\ \\N \\. \"quoted\" 'single' {} [] , ; \x01 \x7f",
    "\\\\u0000 is no NUL",
    "ü 🙂 \u2028 \ufeff 日本",
    "PGCOPY\n\xff\r\n",
    "x" * 100_000,
]


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as queue:
        yield queue


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many jobs each COPY took; from one job on, COPY is used."""
    sizes: list[int] = []
    end = bulk.AsyncBulk.end

    async def counting_end(self: bulk.AsyncBulk) -> None:
        if self._copy is not None:
            sizes.append(len(self._places))
        await end(self)

    monkeypatch.setattr(bulk.AsyncBulk, "end", counting_end)
    monkeypatch.setattr(bulk, "COPY_JOBS", 1)
    return sizes


async def stored(queue: Queue) -> list[str]:
    return [job.kind for job in (await queue.list(limit=1000)).jobs][::-1]


# --- what is stored ---------------------------------------------------------------------------------------------------


async def test_every_field_arrives_as_by_the_function(queue: Queue, conn: psycopg.AsyncConnection, copied: Any) -> None:
    jobs = [
        NewJob(kind="plain"),
        NewJob(kind=HOSTILE[0], queue=HOSTILE[2], payload={HOSTILE[0]: HOSTILE}),
        NewJob(kind="labelled", tags=HOSTILE[:4], metadata={HOSTILE[0]: HOSTILE[:4]}),
        NewJob(kind="p", priority=-32768, max_attempts=1000, timeout=timedelta(days=365), traceparent="t" * 255),
        NewJob(kind="later", run_at=FAR, expires_at=FAR + timedelta(microseconds=1), timeout=timedelta(milliseconds=1)),
        NewJob(kind="delayed", delay=timedelta(days=3650), tags={"one"}, timeout=timedelta(seconds=90.000001)),
        NewJob(kind="values", payload=[None, True, False, 0, -1, 1.5, 10**17, 2**63, 1e300, 1e23, -0.0, "", {}, []]),
        NewJob(kind="none", payload=None, metadata={}),
    ]  # fmt: skip
    made = await queue.submit_many(jobs)
    assert copied == [len(jobs)]
    one_by_one = [(await queue.submit_new(job))[0] for job in jobs]
    read = [await queue.get(each.id) for each in made]
    for by_copy, by_function in zip(read, one_by_one, strict=True):
        ours, theirs = _comparable(by_copy), _comparable(by_function)
        assert ours == theirs
        assert abs(by_copy.run_at - by_function.run_at) < timedelta(minutes=1)
    columns = "max_attempts, timeout::text, state, created_at = run_at, lease_token, attempt, cost, watched, unique_key"
    rows = await (await conn.execute(f"select kind, {columns} from queue_pg.jobs order by id")).fetchall()
    assert sorted(map(str, rows[: len(jobs)])) == sorted(map(str, rows[len(jobs) :]))


def _comparable(job: Any) -> dict[str, Any]:
    varying = {"id", "run_at", "created_at"}
    return {name: repr(getattr(job, name)) for name in job.__slots__ if name not in varying}


async def test_ids_are_in_order_and_made_of_the_databases_clock(
    queue: Queue, conn: psycopg.AsyncConnection, clock: Any, copied: Any
) -> None:
    now = clock.advance(timedelta(days=400))
    made = await queue.submit_many(NewJob(kind="k", payload=n) for n in range(2500))
    ids = [each.id for each in made]
    assert ids == sorted(ids)
    assert len(set(ids)) == 2500
    assert {(each.version, each.variant) for each in ids} == {(7, "specified in RFC 4122")}
    milliseconds = ids[0].int >> 80
    assert abs(milliseconds / 1000 - now.timestamp()) < 60
    found = await (await conn.execute("select id, payload from queue_pg.jobs order by id")).fetchall()
    assert found == [(each, n) for n, each in enumerate(ids)]
    row = await (
        await conn.execute("select queue_pg.uuid7_at(created_at), id from queue_pg.jobs order by id")
    ).fetchone()
    assert row is not None
    assert 0 <= (row[1].int >> 64) - (row[0].int >> 64) <= 8  # a microsecond is four


async def test_later_jobs_are_scheduled_by_the_databases_clock(queue: Queue, clock: Any, copied: Any) -> None:
    now = clock.advance(timedelta(days=400))
    made = await queue.submit_many(
        [
            NewJob(kind="past", run_at=now - timedelta(hours=1)),
            NewJob(kind="soon", run_at=now + timedelta(hours=1)),
            NewJob(kind="delayed", delay=timedelta(hours=1)),
            NewJob(kind="now", delay=timedelta(0)),
        ]
    )
    states = [(await queue.get(each.id)).state for each in made]
    assert states == ["queued", "scheduled", "scheduled", "queued"]


async def test_copies_end_now_and_then(queue: Queue, copied: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "JOBS_PER_COPY", 1000)
    await queue.submit_many([NewJob(kind="k")] * 2200)
    assert copied == [1000, 1000, 200]
    copied.clear()
    monkeypatch.setattr(bulk, "SECONDS_PER_COPY", 0)
    await queue.submit_many([NewJob(kind="k")] * 1200)
    assert copied == [500, 500, 200]


async def test_large_payloads_go_in_small_chunks(queue: Queue, copied: list[int]) -> None:
    made = await queue.submit_many(NewJob(kind="k", payload="x" * 3_000_000) for _ in range(8))
    assert sum(copied) == 8
    assert len((await queue.get(made[7].id)).payload) == 3_000_000


async def test_keys_go_by_the_function_in_between(queue: Queue, copied: list[int]) -> None:
    known = await queue.submit("k", unique_key="x")
    jobs = [*[NewJob(kind="k")] * 500, *[NewJob(kind="k", unique_key="x")] * 500, *[NewJob(kind="k")] * 500]
    made = await queue.submit_many(jobs)
    assert copied == [500, 500]
    assert [each.created for each in made] == [True] * 500 + [False] * 500 + [True] * 500
    assert {each.id for each in made[500:1000]} == {known.id}
    fresh = [each.id for each in made if each.created]
    assert fresh == sorted(fresh)


async def test_few_jobs_are_one_statement(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("no COPY for these")

    monkeypatch.setattr(bulk.AsyncBulk, "_begin", fail)
    await queue.submit_many([NewJob(kind="k")] * (bulk.COPY_JOBS - 1))
    with pytest.raises(AssertionError):
        await queue.submit_many([NewJob(kind="k")] * bulk.COPY_JOBS)


async def test_an_async_generator_is_streamed(queue: Queue) -> None:
    async def jobs() -> AsyncIterator[NewJob]:
        for n in range(1200):
            yield NewJob(kind="k", payload=n)

    made = await queue.submit_many(jobs())
    assert [(await queue.get(made[n].id)).payload for n in (0, 1199)] == [0, 1199]
    assert len(made) == 1200

    async def bad() -> AsyncIterator[NewJob]:
        async for job in jobs():
            yield job
        yield NewJob(kind="")

    with pytest.raises(InvalidJob) as caught:
        await queue.submit_many(bad())
    assert caught.value.field == "jobs[1200].kind"
    assert len((await queue.list(limit=1000)).jobs) == 1000
    assert sum(each.queued for each in await queue.stats()) == 1200


# --- what is refused --------------------------------------------------------------------------------------------------

BIG = {f"k{n}": n for n in range(5_000)}  # 60 kB as text, and more than 64 KiB as jsonb


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (NewJob(kind="k", metadata=BIG), "metadata"),
        (NewJob(kind="k", tags=["ü" * 199 + chr(256 + n) for n in range(64)]), "tags"),
        (NewJob(kind="k", expires_at=datetime(9999, 12, 31, 12, tzinfo=UTC)), "expires_at"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [0, 700, 1234])
async def test_what_only_postgres_refuses_names_the_job(queue: Queue, bad: NewJob, field: str, before: int) -> None:
    jobs = [*[NewJob(kind="good")] * before, bad, *[NewJob(kind="good")] * 1300]
    with pytest.raises(InvalidJob) as caught:
        await queue.submit_many(jobs)
    assert caught.value.field == f"jobs[{before}].{field}"
    with pytest.raises(InvalidJob) as caught:
        await queue.submit_new(bad)
    assert caught.value.field == field
    assert await stored(queue) == []


async def test_a_refusal_in_the_servers_language(dsn: str, queue: Queue) -> None:
    for line in (
        'COPY jobs, line 7, column payload: "x"',
        "COPY jobs, Zeile 7, Spalte payload: »x«",
        "SQL\nCOPY jobs, 行 7",
    ):
        found = bulk._LINE.search(line)
        assert found is not None
        assert found[1] == "7"


async def test_a_callers_transaction_goes_on_after_a_refusal(queue: Queue, dsn: str) -> None:
    jobs = [NewJob(kind="bad")] * 700
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        for refused in (NewJob(kind="k", payload=math.nan), NewJob(kind="k", metadata=BIG)):
            with pytest.raises(InvalidJob, match=r"jobs\[700\]"):
                await queue.submit_many([*jobs, refused], connection=conn)
        await queue.submit("key", 1, unique_key="x", connection=conn)
        with pytest.raises(UniqueKeyConflict):
            await queue.submit_many([*jobs, NewJob(kind="k", unique_key="x")], connection=conn)
        await queue.submit_many([NewJob(kind="good")] * 700, connection=conn)
        assert await stored(queue) == []
        await conn.commit()
    assert await stored(queue) == ["key", *["good"] * 700]


async def test_an_autocommit_connection_stores_all_or_none(queue: Queue, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        with pytest.raises(InvalidJob):
            await queue.submit_many([*[NewJob(kind="bad")] * 700, NewJob(kind="k", metadata=BIG)], connection=conn)
        await queue.submit_many([NewJob(kind="good")] * 100, connection=conn)
    assert await stored(queue) == ["good"] * 100


async def test_the_transaction_is_left_open(queue: Queue, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await queue.submit_many([NewJob(kind="k")] * 100, connection=conn)
        assert conn.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
        await conn.rollback()
        await queue.submit_many([NewJob(kind="k")], connection=conn)
        assert conn.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
        await conn.rollback()
    assert await stored(queue) == []


@pytest.mark.parametrize("options", ["-c client_encoding=LATIN1", "-c datestyle=German -c intervalstyle=sql_standard"])
async def test_the_callers_settings_do_not_matter(queue: Queue, dsn: str, options: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, options=options, autocommit=True) as conn:
        job = NewJob(kind="ü", payload="ü\t\\", delay=timedelta(hours=1), timeout=timedelta(seconds=90.5))
        made = await queue.submit_many([job] * 100, connection=conn)
    read = await queue.get(made[99].id)
    assert (read.kind, read.payload, read.timeout) == ("ü", "ü\t\\", timedelta(seconds=90.5))


async def test_a_generator_may_use_the_connection_it_is_given_with(queue: Queue, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:

        async def jobs() -> AsyncIterator[NewJob]:
            for _ in range(1200):
                row = await (await conn.execute("select 7")).fetchone()
                assert row is not None
                yield NewJob(kind="k", payload=row[0])

        made = await queue.submit_many(jobs(), connection=conn)
        await conn.commit()
    assert len(made) == 1200
    with SyncQueue(dsn, notify=False) as blocking, psycopg.connect(dsn) as plain:
        rows = (NewJob(kind="k", payload=plain.execute("select 8").fetchone()) for _ in range(600))
        assert len(blocking.submit_many(rows, connection=plain)) == 600


async def test_a_pipeline_takes_no_copy(queue: Queue, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn, conn.pipeline():
        made = await queue.submit_many([NewJob(kind="k")] * 600, connection=conn)
    assert len(made) == 600
    assert (await queue.get(made[599].id)).kind == "k"


async def test_what_is_acknowledged_is_on_disk(dsn: str) -> None:
    show = "show synchronous_commit"
    check = JobChecker(org="default")
    async with await psycopg.AsyncConnection.connect(dsn, options="-c synchronous_commit=off", autocommit=True) as conn:
        for own, expected in ((True, "on"), (False, "off")):
            async with bulk.AsyncBulk(conn, own_transaction=own, streams=False) as storing:
                await storing.add([check(NewJob(kind="k"))] * 100, range(100))
                assert await (await conn.execute(show)).fetchone() == (expected,)
        assert await (await conn.execute(show)).fetchone() == ("off",)


# --- the fast way into JSON and the careful one -----------------------------------------------------------------------


class Word(StrEnum):
    A = "a"


class Number(IntEnum):
    ONE = 1


class Other(Enum):
    A = "a"


class Shouting(str):
    __slots__ = ()


def deep(levels: int, make: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = make(value)
    return value


PLAIN: list[Any] = [
    None, True, 0, -5, 1.5, -0.0, "", "ü🙂", [], {}, {"a": [1, {"b": None}]}, HOSTILE[0], HOSTILE[2:],
]  # fmt: skip
NOT_PLAIN: list[Any] = [
    math.nan, math.inf, [-math.inf], 10**400, {"a": 10**309}, {1: 2}, {None: 1}, {True: 1}, {1.5: 2}, "\x00",
    ["\ud800"], {"\x00": 1}, {"\udc00": 1}, {1, 2}, b"x", object(), datetime.now(UTC), UUID(int=5), Other.A,
    deep(65, lambda v: [v]), deep(65, lambda v: {"a": v}),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN)
def test_plain_values_are_written_alike(value: Any) -> None:
    assert plain_json(value) == encode_json(value).encode()


@pytest.mark.parametrize("value", NOT_PLAIN)
def test_what_is_refused_is_never_plain(value: Any) -> None:
    assert plain_json(value) is None
    with pytest.raises(InvalidJob):
        encode_json(value)


@pytest.mark.parametrize(
    "value", [Word.A, Number.ONE, Shouting("x"), (1, 2), 1e23, 2**70, "\\\\u0000", deep(64, lambda v: [v])]
)
def test_the_careful_way_knows_more(value: Any) -> None:
    assert plain_json(value) in (None, encode_json(value).encode())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300)
@given(values)
def test_the_fast_way_is_the_careful_way(value: Any) -> None:
    text = plain_json(value)
    if text is not None:
        assert text.decode() == encode_json(value)


def test_terms_are_checked_as_strictly_when_they_are_known() -> None:
    check = JobChecker(org="default", max_payload_bytes=10)
    check(NewJob(kind="k", priority=1))
    for priority in (True, 1.0, "1"):
        with pytest.raises(InvalidJob, match="priority"):
            check(NewJob(kind="k", priority=priority))  # type: ignore[arg-type]
    for kind in ([], None, 5, "", "x" * 201, "\x00", "\ud800"):
        with pytest.raises(InvalidJob, match="kind"):
            check(NewJob(kind=kind))  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match="tags"):
        check(NewJob(kind="k", tags=""))
    with pytest.raises(InvalidJob, match="metadata"):
        check(NewJob(kind="k", metadata=[]))  # type: ignore[arg-type]
    with pytest.raises(PayloadTooLarge):
        check(NewJob(kind="k", payload="x" * 9))
    for n in range(5_000):
        assert check(NewJob(kind=f"k{n}"))[0].kind == f"k{n}"
