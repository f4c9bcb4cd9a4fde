"""Artifacts in SQL: names, the fence, limits, what is stored once, and what happens to what nobody refers to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection
MiB = 1024 * 1024
HOUR = 3600

FINE = [
    "out.txt",
    "logs/out.txt",
    "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p",
    "-rf",
    ".hidden",
    "~",
    "$(reboot)",
    "%2e%2e%2fetc",
    "a b",
    "..a/...b",
    "con1",
    "console.log",
    "x" * 255,
    "Grüße/日本語.txt",
    "🙂.png",
    "'; drop table jobs; --",
]
HOSTILE = {
    "": "empty",
    "/": "begins with /",
    "/etc/passwd": "begins with /",
    "//host/share": "begins with /",
    "..": "segment ..",
    "../x": "segment ..",
    "a/../../x": "segment ..",
    "a/..": "segment ..",
    ".": "segment .",
    "./x": "segment .",
    "a//b": "empty segment",
    "a/": "ends with /",
    "..\\x": "backslash",
    "C:\\x": "backslash",
    "C:x": "one of",
    "x.txt:stream": "one of",
    "a*b": "one of",
    "<script>": "one of",
    "a\nb": "control",
    "a\rSet-Cookie: x": "control",
    "a\x1b[31m": "control",
    "a\x7f": "control",
    "a\x85b": "control",
    "invoice\u202efdp.exe": "control",
    "a\u200bb": "control",
    "\ufeffa": "control",
    "CON": "device",
    "con": "device",
    "logs/NUL.txt": "device",
    "Com1.tar.gz": "device",
    "lpt¹": "device",
    "a.": "ends with a dot",
    "a ": "begins or ends with a space",
    " a": "begins or ends with a space",
    "a /b": "begins or ends with a space",
    "...": "ends with a dot",
    "x" * 256: "255 bytes",
    "ü" * 128: "255 bytes",
    "/".join(["a"] * 17): "16 segments",
    "/".join(["x" * 200] * 6): "1,024 bytes",
}


async def rows(conn: Connection, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    return await (await conn.execute(statement, args)).fetchall()


async def one(conn: Connection, statement: str, *args: Any) -> Any:
    (row,) = await rows(conn, statement, *args)
    return row[0] if len(row) == 1 else row


async def submit(conn: Connection, queue: str = "default") -> UUID:
    job: UUID = await one(conn, "select queue_pg.submit('k', queue => %s)", queue)
    return job


async def running(conn: Connection) -> tuple[UUID, int]:
    """Return a job that runs, and its lease token."""
    await submit(conn)
    claimed: tuple[UUID, int] = await one(conn, "select id, lease_token from queue_pg.claim('w', '{default}')")
    return claimed


async def put(conn: Connection, job: UUID, name: str, data: bytes, token: int | None = None) -> Any:
    return await one(
        conn, "select a.sha256, a.size from queue_pg.put_artifact(%s, %s, %s, null, %s) a", job, name, data, token
    )


async def names(conn: Connection, job: UUID) -> list[str]:
    return [name for (name,) in await rows(conn, "select name from queue_pg.list_artifacts(%s)", job)]


async def stored(conn: Connection) -> tuple[int, ...]:
    """Count chunks, their uses, blobs, uploads and what is being discarded."""
    counted: tuple[int, ...] = await one(
        conn,
        "select (select count(*) from queue_pg.chunks), (select count(*) from queue_pg.blob_chunks),"
        " (select count(*) from queue_pg.blobs), (select count(*) from queue_pg.uploads),"
        " (select count(*) from queue_pg.discarded_blobs)",
    )
    return counted


async def sweep(conn: Connection) -> None:
    while await one(conn, "select queue_pg.sweep_artifacts()"):
        pass


@asynccontextmanager
async def refused(sqlstate: str, text: str = "") -> AsyncGenerator[None]:
    with pytest.raises(psycopg.Error) as caught:
        yield
    assert caught.value.sqlstate == sqlstate
    assert text in str(caught.value)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINE)
async def test_a_name_that_is_fine_stays_as_it_is(conn: Connection, name: str) -> None:
    job = await submit(conn)
    await put(conn, job, name, b"x")
    assert await names(conn, job) == [name]
    assert await one(conn, "select queue_pg.read_artifact(%s, %s)", job, name) == b"x"


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_name_is_refused_and_says_why(conn: Connection, name: str) -> None:
    job = await submit(conn)
    for statement in (
        "select queue_pg.put_artifact(%s, %s, 'x')",
        "select queue_pg.begin_artifact(%s, %s)",
        "select queue_pg.read_artifact(%s, %s)",
    ):
        async with refused("QP030", HOSTILE[name]):
            await conn.execute(statement, (job, name))
    assert await stored(conn) == (0, 0, 0, 0, 0)


async def test_one_name_has_one_spelling(conn: Connection) -> None:
    job = await submit(conn)
    await put(conn, job, "cafe\u0301.txt", b"decomposed")  # as macOS writes it
    await put(conn, job, "caf\u00e9.txt", b"composed")
    assert await names(conn, job) == ["caf\u00e9.txt"]
    assert await one(conn, "select queue_pg.read_artifact(%s, %s)", job, "cafe\u0301.txt") == b"composed"


@pytest.mark.parametrize("content_type", ["text", "text/", "/plain", "text/plain\r\nx: y", "text/ü", "a/b" + "c" * 260])
async def test_a_content_type_that_is_none_is_refused(conn: Connection, content_type: str) -> None:
    job = await submit(conn)
    async with refused("QP030", "content_type"):
        await conn.execute("select queue_pg.put_artifact(%s, 'a', 'x', %s)", (job, content_type))


async def test_a_content_type_is_kept(conn: Connection) -> None:
    job = await submit(conn)
    await conn.execute("select queue_pg.put_artifact(%s, 'a', 'x', 'text/plain; charset=\"utf-8\"')", (job,))
    await conn.execute("select queue_pg.put_artifact(%s, 'b', 'x')", (job,))
    assert await rows(conn, "select content_type from queue_pg.list_artifacts(%s)", job) == [
        ('text/plain; charset="utf-8"',),
        ("application/octet-stream",),
    ]


# --- who may ----------------------------------------------------------------------------------------------------------


async def test_a_running_job_takes_artifacts_from_its_worker_alone(conn: Connection, clock: Clock) -> None:
    job, token = await running(conn)
    await put(conn, job, "mine", b"x", token)
    async with refused("QP030", "lease_token"):
        await put(conn, job, "other", b"x")
    async with refused("QP003"):
        await put(conn, job, "other", b"x", token + 1)
    clock.advance(31)
    # As with a result: late, but nobody has taken the job over.
    await put(conn, job, "late", b"x", token)
    await conn.execute("select queue_pg.reap()")
    async with refused("QP003"):
        await put(conn, job, "reaped", b"x", token)
    await conn.execute("select queue_pg.claim('w2', '{default}')")
    async with refused("QP003"):
        await put(conn, job, "stale", b"x", token)
    assert await names(conn, job) == ["late", "mine"]


async def test_a_worker_that_loses_its_lease_during_an_upload_is_told_at_the_next_chunk(conn: Connection) -> None:
    job, token = await running(conn)
    upload = await one(conn, "select queue_pg.begin_artifact(%s, 'a', null, %s)", job, token)
    await conn.execute("select queue_pg.append_artifact(%s, 0, %s)", (upload, b"x" * MiB))
    await conn.execute("select queue_pg.cancel(%s)", (job,))
    async with refused("QP003"):
        await conn.execute("select queue_pg.append_artifact(%s, 1, 'y')", (upload,))
    async with refused("QP003"):
        await conn.execute("select queue_pg.complete_artifact(%s, %s)", (upload, bytes(32)))
    await conn.execute("select queue_pg.discard_artifact(%s)", (upload,))
    await sweep(conn)
    assert await stored(conn) == (0, 0, 0, 0, 0)


async def test_inputs_go_to_jobs_that_wait_and_not_to_those_that_have_ended(conn: Connection) -> None:
    job = await submit(conn)
    await put(conn, job, "input", b"x")
    async with refused("QP003"):
        await put(conn, job, "output", b"x", 0)
    _, token = await one(conn, "select id, lease_token from queue_pg.claim('w', '{default}')")
    await put(conn, job, "output", b"x", token)
    await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    async with refused("QP002", "add an artifact"):
        await put(conn, job, "late", b"x")
    async with refused("QP003"):
        await put(conn, job, "late", b"x", token)
    async with refused("QP001"):
        await put(conn, UUID(int=7), "a", b"x")
    assert await rows(conn, "select name, attempt from queue_pg.list_artifacts(%s)", job) == [
        ("input", 0),
        ("output", 1),
    ]


async def test_a_lease_does_not_pass_while_an_artifact_is_added_under_it(
    conn: Connection, dsn: str, clock: Clock
) -> None:
    job, token = await running(conn)
    clock.advance(31)
    async with await Connection.connect(dsn) as worker:
        await worker.execute("select queue_pg.put_artifact(%s, 'a', 'x', null, %s)", (job, token))
        # The reaper passes over the row.
        assert await rows(conn, "select * from queue_pg.reap()") == []
        await worker.commit()
    assert len(await rows(conn, "select * from queue_pg.reap()")) == 1


async def test_the_same_name_replaces_in_this_attempt_and_in_a_later_one(conn: Connection) -> None:
    job, token = await running(conn)
    await put(conn, job, "a", b"first", token)
    await put(conn, job, "a", b"second", token)
    await conn.execute("select queue_pg.fail(%s, %s, '{\"code\": \"c\"}', true, '0')", (job, token))
    _, token = await one(conn, "select id, lease_token from queue_pg.claim('w', '{default}')")
    assert await one(conn, "select queue_pg.read_artifact(%s, 'a')", job) == b"second"
    await put(conn, job, "a", b"third", token)
    assert await rows(conn, "select size, attempt from queue_pg.list_artifacts(%s)", job) == [(5, 2)]
    assert await one(conn, "select artifacts, bytes from queue_pg.artifact_totals") == (1, 5)


# --- contents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MiB - 1, MiB, MiB + 1, 3 * MiB + 5])
async def test_one_call_and_many_store_the_same(conn: Connection, size: int) -> None:
    data = bytes(n % 251 for n in range(1000)) * (size // 1000 + 1)
    data = data[:size]
    job = await submit(conn)
    assert await put(conn, job, "once", data) == (sha256(data).digest(), size)
    upload = await one(conn, "select queue_pg.begin_artifact(%s, 'many')", job)
    for number in range(-(-size // MiB)):
        piece = data[number * MiB : (number + 1) * MiB]
        await conn.execute("select queue_pg.append_artifact(%s, %s, %s)", (upload, number, piece))
    await conn.execute("select queue_pg.complete_artifact(%s, %s)", (upload, sha256(data).digest()))
    assert await one(conn, "select queue_pg.read_artifact(%s, 'many')", job) == data
    chunks = -(-size // MiB)
    assert await stored(conn) == (chunks, chunks, 1, 0, 0)


@pytest.mark.parametrize(
    ("number", "data", "text"),
    [
        (1, b"x", "chunk 2 is expected"),
        (3, b"x", "chunk 2 is expected"),
        (2, b"", "1 to 1,048,576"),
        (2, b"x" * (MiB + 1), "1 to 1,048,576"),
        (2, None, "1 to 1,048,576"),
        (None, b"x", "chunk 2 is expected"),
    ],
)
async def test_a_chunk_out_of_place_is_refused(conn: Connection, number: Any, data: Any, text: str) -> None:
    upload = await one(conn, "select queue_pg.begin_artifact(%s, 'a')", await submit(conn))
    for before in range(2):
        await conn.execute("select queue_pg.append_artifact(%s, %s, %s)", (upload, before, bytes([before]) * MiB))
    async with refused("QP030", text):
        await conn.execute("select queue_pg.append_artifact(%s, %s, %s::bytea)", (upload, number, data))


async def test_nothing_follows_a_short_chunk(conn: Connection) -> None:
    upload = await one(conn, "select queue_pg.begin_artifact(%s, 'a')", await submit(conn))
    await conn.execute("select queue_pg.append_artifact(%s, 0, 'short')", (upload,))
    async with refused("QP030", "only the last chunk"):
        await conn.execute("select queue_pg.append_artifact(%s, 1, 'more')", (upload,))


async def test_an_upload_that_is_over_is_not_written_to(conn: Connection) -> None:
    job = await submit(conn)
    for end in ("select queue_pg.complete_artifact(%s, sha256(''))", "select queue_pg.discard_artifact(%s)"):
        upload = await one(conn, "select queue_pg.begin_artifact(%s, 'a')", job)
        await conn.execute(end, (upload,))
        async with refused("QP030", "not under way"):
            await conn.execute("select queue_pg.append_artifact(%s, 0, 'x')", (upload,))
        async with refused("QP030", "not under way"):
            await conn.execute("select queue_pg.complete_artifact(%s, sha256(''))", (upload,))
        await conn.execute("select queue_pg.discard_artifact(%s)", (upload,))
    async with refused("QP030", "32 bytes"):
        await conn.execute("select queue_pg.complete_artifact(%s, 'abc')", (upload,))


async def test_two_who_upload_the_same_at_once_store_it_once(conn: Connection, dsn: str) -> None:
    jobs = [await submit(conn), await submit(conn)]
    data = b"a" * MiB + b"b" * MiB + b"c"
    async with await Connection.connect(dsn) as first, await Connection.connect(dsn, autocommit=True) as second:
        await first.execute("select queue_pg.put_artifact(%s, 'a', %s)", (jobs[0], data))
        waiting = asyncio.create_task(second.execute("select queue_pg.put_artifact(%s, 'a', %s)", (jobs[1], data)))
        await until_blocked(conn, second.info.backend_pid)
        await first.commit()
        await waiting
    assert await stored(conn) == (3, 3, 1, 0, 0)
    for job in jobs:
        assert await one(conn, "select queue_pg.read_artifact(%s, 'a')", job) == data


async def test_many_who_upload_overlapping_contents_do_not_deadlock(conn: Connection, dsn: str) -> None:
    pieces = [bytes([n]) * MiB for n in range(4)]
    contents = [b"".join(pieces), b"".join(pieces[::-1]), pieces[2] + pieces[0] + pieces[3]]

    async def store(content: bytes) -> None:
        async with await Connection.connect(dsn, autocommit=True) as own:
            for n in range(3):
                await own.execute("select queue_pg.put_artifact(%s, %s, %s)", (await submit(own), f"a{n}", content))

    async with asyncio.TaskGroup() as group:
        for content in contents:
            group.create_task(store(content))
    assert await stored(conn) == (4, 11, 3, 0, 0)


async def test_a_content_cannot_take_the_place_of_another_by_lying_about_its_hash(conn: Connection) -> None:
    job = await submit(conn)
    upload = await one(conn, "select queue_pg.begin_artifact(%s, 'evil')", job)
    await conn.execute("select queue_pg.append_artifact(%s, 0, 'evil')", (upload,))
    await conn.execute("select queue_pg.complete_artifact(%s, sha256('good'))", (upload,))
    async with refused("QP033", "another content"):
        await put(conn, job, "good", b"good")
    async with refused("QP033"):
        await conn.execute("select queue_pg.read_artifact(%s, 'evil')", (job,))


async def test_what_was_corrupted_is_not_read_and_is_repaired_by_storing_it_again(conn: Connection) -> None:
    job = await submit(conn)
    await put(conn, job, "a", b"the truth")
    await conn.execute("update queue_pg.chunks set data = 'the trush'")
    async with refused("QP033", "hash"):
        await conn.execute("select queue_pg.read_artifact(%s, 'a')", (job,))
    await put(conn, job, "b", b"the truth")
    assert await one(conn, "select queue_pg.read_artifact(%s, 'a')", job) == b"the truth"


async def test_lz4_where_the_server_has_it(conn: Connection) -> None:
    known = await one(conn, "select 'lz4' = any (enumvals) from pg_settings where name = 'default_toast_compression'")
    await conn.execute("select queue_pg.configure(retention => '3 hours')")
    await conn.execute("select queue_pg.maintain_history()")  # makes partitions
    columns = await rows(
        conn,
        "select c.relname, a.attname, a.attcompression::text from pg_class c join pg_attribute a on a.attrelid = c.oid"
        " where c.relnamespace = 'queue_pg'::regnamespace and c.relkind in ('r', 'p') and"
        " (c.relname = 'chunks' and a.attname = 'data' or c.relname = 'jobs' and a.attname = 'payload'"
        " or c.relname like 'finished\\_jobs%%' and a.attname in ('payload', 'result'))",
    )
    assert len(columns) > 6
    assert {method for _, _, method in columns} == {"l" if known else ""}
    job = await submit(conn)
    await put(conn, job, "zeros", bytes(MiB))
    used = "select pg_column_compression(data), pg_column_size(data) from queue_pg.chunks"
    method, size = await one(conn, used)
    assert (method, size < 20_000) == ("lz4" if known else "pglz", True)


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_limits(conn: Connection) -> None:
    await conn.execute(
        "select queue_pg.configure(max_artifact_bytes => 10, max_artifacts => 3, max_job_artifact_bytes => 25)"
    )
    job = await submit(conn)
    async with refused("QP031", "limit of 10 bytes"):
        await put(conn, job, "a", b"x" * 11)
    async with refused("QP031", "limit of 10 bytes"):
        await conn.execute("select queue_pg.begin_artifact(%s, 'a', size => 11)", (job,))
    await put(conn, job, "a", b"x" * 10)
    await put(conn, job, "b", b"x" * 10)
    async with refused("QP031", "25 bytes"):
        await put(conn, job, "c", b"x" * 6)
    await put(conn, job, "c", b"x" * 5)
    await put(conn, job, "a", b"y" * 10)  # in place of another
    await put(conn, job, "a", b"y" * 4)
    async with refused("QP031", "at most 3"):
        await put(conn, job, "d", b"")
    assert await one(conn, "select artifacts, bytes from queue_pg.artifact_totals") == (3, 19)


async def test_uploads_under_way_count_together(conn: Connection) -> None:
    await conn.execute("select queue_pg.configure(max_artifact_bytes => 10, max_job_artifact_bytes => 15)")
    job = await submit(conn)
    uploads = [await one(conn, "select queue_pg.begin_artifact(%s, %s)", job, name) for name in "ab"]
    await conn.execute("select queue_pg.append_artifact(%s, 0, %s)", (uploads[0], b"x" * 10))
    async with refused("QP031", "15 bytes"):
        await conn.execute("select queue_pg.append_artifact(%s, 0, %s)", (uploads[1], b"x" * 6))
    async with refused("QP031", "10 bytes"):
        await conn.execute("select queue_pg.append_artifact(%s, 0, %s)", (uploads[1], b"x" * 11))
    await conn.execute("select queue_pg.append_artifact(%s, 0, %s)", (uploads[1], b"x" * 5))


async def test_the_count_is_exact_when_two_add_at_once(conn: Connection, dsn: str) -> None:
    await conn.execute("select queue_pg.configure(max_artifacts => 1)")
    job = await submit(conn)
    async with await Connection.connect(dsn) as first, await Connection.connect(dsn, autocommit=True) as second:
        await first.execute("select queue_pg.put_artifact(%s, 'a', 'x')", (job,))
        waiting = asyncio.create_task(second.execute("select queue_pg.put_artifact(%s, 'b', 'y')", (job,)))
        await until_blocked(conn, second.info.backend_pid)
        await first.commit()
        async with refused("QP031"):
            await waiting
    assert await names(conn, job) == ["a"]


# --- what has to happen by itself -------------------------------------------------------------------------------------


async def test_artifacts_go_with_their_job(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '2 days')")
    job, token = await running(conn)
    await put(conn, job, "a", b"x" * 5, token)
    await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    for _ in range(4):
        clock.advance(11 * HOUR)
        await conn.execute("select queue_pg.maintain_history()")
    assert await names(conn, job) == ["a"]
    clock.advance(5 * HOUR)
    assert await names(conn, job) == []  # to the second
    async with refused("QP001"):
        await conn.execute("select queue_pg.read_artifact(%s, 'a')", (job,))
    await sweep(conn)
    assert await one(conn, "select count(*) from queue_pg.artifacts") == 0
    assert await one(conn, "select count(*) from queue_pg.artifact_totals") == 0
    assert await stored(conn) == (1, 1, 1, 0, 0)  # who reads it may read it to its end
    clock.advance(HOUR + 1)
    while await one(conn, "select again_seconds from queue_pg.maintain_history()") == 0:
        pass
    assert await stored(conn) == (0, 0, 0, 0, 0)


async def test_a_job_that_was_retried_keeps_its_artifacts(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 hour')")
    job, token = await running(conn)
    await put(conn, job, "a", b"x", token)
    await conn.execute('select queue_pg.fail(%s, %s, \'{"code": "c"}\', false)', (job, token))
    clock.advance(1800)
    await sweep(conn)
    await conn.execute("select queue_pg.retry(%s)", (job,))
    clock.advance(HOUR)
    await sweep(conn)
    clock.advance(30 * 24 * HOUR)
    await sweep(conn)
    assert await names(conn, job) == ["a"]


async def test_a_live_job_is_looked_at_less_and_less_often(conn: Connection, clock: Clock) -> None:
    job = await submit(conn)
    await put(conn, job, "a", b"x")
    looks = 0
    for _ in range(24 * 6 * 3):
        clock.advance(600)
        due = await one(conn, "select count(*) from queue_pg.artifact_totals where look_at <= queue_pg.now()")
        looks += due
        await sweep(conn)
    assert 5 < looks < 15


async def test_a_content_that_another_job_has_stays(conn: Connection, clock: Clock) -> None:
    old, token = await running(conn)
    await put(conn, old, "a", b"shared" + b"x" * MiB, token)
    await conn.execute("select queue_pg.complete(%s, %s)", (old, token))
    young = await submit(conn)
    await put(conn, young, "b", b"shared" + b"x" * MiB)
    clock.advance(31 * 24 * HOUR)
    await sweep(conn)
    clock.advance(2 * HOUR)
    await sweep(conn)
    assert await stored(conn) == (2, 2, 1, 0, 0)
    assert await one(conn, "select unused_since from queue_pg.blobs") is None
    assert await one(conn, "select octet_length(queue_pg.read_artifact(%s, 'b'))", young) == MiB + 6


async def test_chunks_that_another_content_has_stay(conn: Connection, clock: Clock) -> None:
    job = await submit(conn)
    await put(conn, job, "a", b"x" * MiB + b"first")
    await put(conn, job, "a", b"x" * MiB + b"second")
    clock.advance(2 * HOUR)
    await sweep(conn)
    assert await stored(conn) == (2, 2, 1, 0, 0)
    assert await one(conn, "select queue_pg.read_artifact(%s, 'a')", job) == b"x" * MiB + b"second"


async def test_uploads_that_stop_are_removed_and_those_that_go_on_are_not(conn: Connection, clock: Clock) -> None:
    job = await submit(conn)
    stopped, goes_on = [await one(conn, "select queue_pg.begin_artifact(%s, %s)", job, name) for name in "ab"]
    await conn.execute("select queue_pg.append_artifact(%s, 0, %s)", (stopped, b"s" * MiB))
    for number in range(3):
        clock.advance(1800)
        await conn.execute("select queue_pg.append_artifact(%s, %s, %s)", (goes_on, number, bytes([number]) * MiB))
        await sweep(conn)
    assert await stored(conn) == (3, 3, 0, 1, 0)
    async with refused("QP030", "not under way"):
        await conn.execute("select queue_pg.append_artifact(%s, 1, 'x')", (stopped,))


async def test_removal_takes_bites(conn: Connection) -> None:
    job = await submit(conn)
    upload = await one(conn, "select queue_pg.begin_artifact(%s, 'a')", job)
    await conn.execute(  # 250 chunks, without sending 250 MiB
        "with made as (insert into queue_pg.chunks (sha256, data)"
        " select sha256(n::text::bytea), n::text::bytea from generate_series(0, 249) n returning sha256)"
        " insert into queue_pg.blob_chunks (blob_id, number, sha256)"
        " select %s, row_number() over () - 1, m.sha256 from made m",
        (upload,),
    )
    await conn.execute("select queue_pg.discard_artifact(%s)", (upload,))
    left = []
    more = True
    while more:
        more = await one(conn, "select queue_pg.sweep_artifacts()")
        left.append((await stored(conn))[0])
    assert left == [150, 50, 0]
    assert await stored(conn) == (0, 0, 0, 0, 0)


async def test_many_artifacts_of_a_job_that_is_gone_take_bites(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(max_artifacts => 5000)")
    job, token = await running(conn)
    await conn.execute(
        "select count(queue_pg.put_artifact(%s, n::text, (n %% 7)::text::bytea, null, %s))"
        " from generate_series(1, 1500) n",
        (job, token),
    )
    await conn.execute("select queue_pg.complete(%s, %s)", (job, token))
    clock.advance(31 * 24 * HOUR)
    assert await one(conn, "select queue_pg.sweep_artifacts()")
    assert await one(conn, "select count(*) from queue_pg.artifacts") == 500
    await sweep(conn)
    assert await one(conn, "select count(*) from queue_pg.artifacts") == 0
    clock.advance(2 * HOUR)
    await sweep(conn)
    assert await stored(conn) == (0, 0, 0, 0, 0)


async def test_a_new_reference_in_time_keeps_what_is_about_to_be_removed(
    conn: Connection, dsn: str, clock: Clock
) -> None:
    job = await submit(conn)
    await put(conn, job, "a", b"first")
    await put(conn, job, "a", b"second")
    clock.advance(2 * HOUR)
    async with await Connection.connect(dsn) as own:
        await own.execute("select queue_pg.put_artifact(%s, 'b', 'first')", (job,))
        await sweep(conn)  # passes over what is locked
        await own.commit()
    await sweep(conn)
    assert await one(conn, "select queue_pg.read_artifact(%s, 'b')", job) == b"first"
    assert await one(conn, "select count(*) from queue_pg.blobs where unused_since is not null") == 0


async def test_a_new_reference_waits_for_a_removal_and_stores_the_content_anew(
    conn: Connection, dsn: str, clock: Clock
) -> None:
    job = await submit(conn)
    await put(conn, job, "a", b"first")
    await put(conn, job, "a", b"second")
    clock.advance(2 * HOUR)
    async with await Connection.connect(dsn) as sweeper, await Connection.connect(dsn, autocommit=True) as own:
        await sweeper.execute("select queue_pg.sweep_artifacts()")
        adding = asyncio.create_task(own.execute("select queue_pg.put_artifact(%s, 'b', 'first')", (job,)))
        await until_blocked(conn, own.info.backend_pid)
        await sweeper.commit()
        await adding
    await sweep(conn)
    assert await one(conn, "select queue_pg.read_artifact(%s, 'b')", job) == b"first"
    assert await stored(conn) == (2, 2, 2, 0, 0)


async def test_a_chunk_that_is_taken_up_while_it_is_removed_stays(conn: Connection, dsn: str) -> None:
    job = await submit(conn)
    first, second = [await one(conn, "select queue_pg.begin_artifact(%s, %s)", job, name) for name in "ab"]
    await conn.execute("select queue_pg.append_artifact(%s, 0, 'same')", (first,))
    await conn.execute("select queue_pg.discard_artifact(%s)", (first,))
    async with await Connection.connect(dsn) as own, await Connection.connect(dsn, autocommit=True) as sweeper:
        await own.execute("select queue_pg.append_artifact(%s, 0, 'same')", (second,))
        sweeping = asyncio.create_task(sweep(sweeper))
        await until_blocked(conn, sweeper.info.backend_pid)
        await own.commit()
        await sweeping
    assert await stored(conn) == (1, 1, 0, 1, 0)


async def until_blocked(conn: Connection, pid: int) -> None:
    blocked = "select wait_event_type is not distinct from 'Lock' from pg_stat_activity where pid = %s"
    async with asyncio.timeout(20):
        while not await one(conn, blocked, pid):  # noqa: ASYNC110 - another session sets no event
            await asyncio.sleep(0.01)
