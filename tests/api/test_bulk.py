"""Many jobs in one request: all or none, and a refusal names the line or index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import psycopg
import pytest
from queue_pg_api import answers, bodies
from queue_pg_api.routes import bulk
from queue_pg_api.service import Service

NDJSON = {"content-type": "application/x-ndjson"}

Post = Callable[..., Any]


def lines(jobs: Sequence[object]) -> bytes:
    return b"".join(json.dumps(job).encode() + b"\n" for job in jobs)


async def stored(conn: psycopg.AsyncConnection) -> int:
    row = await (await conn.execute("select count(*) from queue_pg.all_jobs")).fetchone()
    assert row is not None
    return row[0]


async def test_ten_thousand_lines_in_order(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    body = lines([{"kind": "chat", "payload": {"n": n}, "tags": ["bulk"]} for n in range(10_000)])
    answer = await client.post("/jobs", content=body, headers=NDJSON)

    assert answer.status_code == 201
    found = answers.SubmittedLines.model_validate(answer.json())
    assert (found.count, found.created) == (10_000, 10_000)
    rows = await (await conn.execute("select id from queue_pg.all_jobs order by (payload ->> 'n')::int")).fetchall()
    assert [row[0] for row in rows] == found.ids


async def test_a_body_is_cut_anywhere(client: httpx.AsyncClient) -> None:
    body = lines([{"kind": "chat", "payload": {"text": "Hällo 🙂", "n": n}} for n in range(5)])

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    for size in (1, 7, 64, len(body)):
        answer = await client.post("/jobs", content=pieces(size), headers=NDJSON)
        assert answer.json()["count"] == 5
    page = (await client.get(f"/jobs/{answer.json()['ids'][2]}")).json()
    assert page["payload"] == {"text": "Hällo 🙂", "n": 2}


async def test_a_byte_order_mark_is_passed_over(client: httpx.AsyncClient) -> None:
    mark = b"\xef\xbb\xbf"
    answer = await client.post("/jobs", content=mark + lines([{"kind": "a"}, {"kind": "b"}]), headers=NDJSON)
    assert (answer.status_code, answer.json()["count"]) == (201, 2)
    later = await client.post("/jobs", content=lines([{"kind": "a"}]) + mark + lines([{"kind": "b"}]), headers=NDJSON)
    assert (later.status_code, later.json()["line"]) == (422, 2)


@pytest.mark.parametrize("body", [b'{"kind":"a"}\r\n\r\n  \n{"kind":"b"}', b'\n{"kind":"a"}\n{"kind":"b"}\n\n'])
async def test_blank_lines_and_line_ends_do_not_matter(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/jobs", content=body, headers=NDJSON)
    assert (answer.status_code, answer.json()["count"]) == (201, 2)


@pytest.mark.parametrize("content_type", sorted(bodies.NDJSON_TYPES))
async def test_other_names_of_the_type(client: httpx.AsyncClient, content_type: str) -> None:
    headers = {"content-type": f"{content_type}; charset=utf-8"}
    answer = await client.post("/jobs", content=b'{"kind":"a"}\n', headers=headers)
    assert answer.json()["count"] == 1


async def test_an_array(client: httpx.AsyncClient) -> None:
    jobs = [{"kind": "chat", "payload": {"n": n}} for n in range(3)]
    answer = await client.post("/jobs", json=jobs)

    assert answer.status_code == 201
    found = answers.SubmittedJobs.model_validate(answer.json())
    assert all(job.created for job in found.jobs)
    for n, job in enumerate(found.jobs):
        assert (await client.get(f"/jobs/{job.id}")).json()["payload"] == {"n": n}


GOOD = {"kind": "chat"}
BAD: list[tuple[object, str, str]] = [
    ({"kind": "chat", "prio": 1}, "prio", "unknown_field"),
    ({"kind": 5}, "kind", "invalid_request"),
    ({"payload": 1}, "kind", "missing_field"),
    ("chat", "body", "invalid_request"),
    ({"kind": "chat", "payload": {"a": ["\x00"]}}, "payload.a[0]", "invalid_job"),
    ({"kind": "chat", "metadata": {"x": "y" * 70_000}}, "metadata", "too_large"),
    ({"kind": "chat", "delay_seconds": 1, "run_at": "2999-01-01T00:00:00Z"}, "delay_seconds", "invalid_request"),
    ({"kind": "chatt"}, "kind", "unknown_kind"),
]


@pytest.mark.parametrize(("bad", "field", "code"), BAD)
async def test_one_bad_job_stores_none(
    client: httpx.AsyncClient,
    conn: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
    bad: object,
    field: str,
    code: str,
) -> None:
    monkeypatch.setattr(bulk, "CHUNK_JOBS", 2)  # several are in the database when the bad one comes
    jobs = [GOOD, GOOD, GOOD, GOOD, GOOD, bad, GOOD]
    by_line = await client.post("/jobs", content=lines(jobs), headers=NDJSON)
    assert by_line.status_code == 422, by_line.text
    refusal = by_line.json()
    assert (refusal["line"], refusal["field"], refusal["code"]) == (6, field, code)
    assert refusal["detail"].startswith("line 6: ")

    if code != "invalid_job":  # in one document the path already has the index
        in_array = await client.post("/jobs", json=jobs)
        assert in_array.status_code == 422
        refusal = in_array.json()
        assert (refusal["index"], refusal["field"], refusal["code"]) == (5, field, code)
    assert await stored(conn) == 0


async def test_a_malformed_line_is_named(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    answer = await client.post("/jobs", content=b'{"kind":"a"}\n\n{"kind":}\n', headers=NDJSON)
    assert (answer.status_code, answer.json()["line"]) == (422, 3)
    assert "is not JSON" in answer.json()["detail"]
    assert await stored(conn) == 0


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"", "application/x-ndjson"), (b" \n\n", "application/x-ndjson"), (b"[]", "application/json")],
)
async def test_nothing_to_submit(client: httpx.AsyncClient, body: bytes, content_type: str) -> None:
    answer = await client.post("/jobs", content=body, headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["field"]) == (422, "body")


async def test_keys_in_bulk(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    jobs = [
        {"kind": "chat", "unique_key": "a"},
        {"kind": "chat", "unique_key": "b"},
        {"kind": "chat", "unique_key": "a"},
    ]
    first = (await client.post("/jobs", json=jobs)).json()["jobs"]
    assert [job["created"] for job in first] == [True, True, False]
    assert first[0]["id"] == first[2]["id"]

    again = await client.post("/jobs", json=jobs)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert [job["id"] for job in again.json()["jobs"]] == [job["id"] for job in first]
    assert await stored(conn) == 2

    conflict = await client.post("/jobs", json=[GOOD, {"kind": "chat", "unique_key": "b", "payload": {"n": 2}}])
    assert (conflict.status_code, conflict.json()["index"]) == (422, 1)
    assert conflict.json()["code"] == "unique_key_conflict"
    assert conflict.headers["x-should-retry"] == "false"
    assert await stored(conn) == 2


async def test_one_key_makes_a_whole_bulk_repeatable(client: httpx.AsyncClient) -> None:
    body = lines([{"kind": "chat", "payload": {"n": n}} for n in range(5)])
    headers = {**NDJSON, "Idempotency-Key": "nightly"}
    first = await client.post("/jobs", content=body, headers=headers)
    again = await client.post("/jobs", content=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["ids"] == first.json()["ids"]
    assert again.json()["created"] == 0

    refused = await client.post("/jobs", content=body, headers={**NDJSON, "Idempotency-Key": "k" * 255})
    assert (refused.status_code, refused.json()["field"]) == (422, "Idempotency-Key")


async def test_lines_and_their_number_are_bounded(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(bodies, "MAX_STREAM_LINES", 3)
    long = await client.post("/jobs", content=lines([GOOD, {"kind": "x" * 100}]), headers=NDJSON)
    assert (long.status_code, long.json()["code"], long.json()["line"]) == (413, "line_too_large", 2)
    endless = await client.post("/jobs", content=b"x" * 1_000, headers=NDJSON)
    assert (endless.status_code, endless.json()["line"]) == (413, 1)
    many = await client.post("/jobs", content=lines([GOOD] * 4), headers=NDJSON)
    assert (many.status_code, many.json()["code"]) == (413, "too_many_lines")
    assert (await client.post("/jobs", content=lines([GOOD] * 3), headers=NDJSON)).status_code == 201


async def test_slow_bulks_leave_connections_to_others(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "CHUNK_JOBS", 1)
    slots = service.settings.pool_size // 3
    all_slots_taken = asyncio.Event()
    go_on = asyncio.Event()
    inside = 0

    async def slow() -> AsyncIterator[bytes]:
        nonlocal inside
        yield b'{"kind":"a"}\n'
        # The first line is stored: this one has a transaction open.
        inside += 1
        if inside == slots:
            all_slots_taken.set()
        await go_on.wait()
        yield b'{"kind":"b"}\n'

    slow_ones = [asyncio.create_task(client.post("/jobs", content=slow(), headers=NDJSON)) for _ in range(20)]
    await asyncio.wait_for(all_slots_taken.wait(), 10)
    assert (await asyncio.wait_for(client.get("/stats"), 10)).status_code == 200
    assert (await asyncio.wait_for(client.post("/jobs", json=GOOD), 10)).status_code == 201
    assert inside == slots
    go_on.set()
    assert [(await each).status_code for each in slow_ones] == [201] * 20


async def test_a_body_that_breaks_off_stores_nothing(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "CHUNK_JOBS", 1)
    monkeypatch.setattr(bodies, "RECEIVE_TIMEOUT_SECONDS", 0.1)

    async def broken() -> AsyncIterator[bytes]:
        yield b'{"kind":"a"}\n{"kind":"b"}\n{"ki'
        await asyncio.Event().wait()

    answer = await client.post("/jobs", content=broken(), headers=NDJSON)
    assert answer.status_code == 408
    assert await stored(conn) == 0
