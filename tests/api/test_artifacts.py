"""/jobs/{id}/artifacts: streamed in and out, ranges, what browsers may do with it, clients that hang up."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from queue_pg_api import answers
from queue_pg_api.ranges import asked_part, is_known
from starlette.datastructures import Headers

MiB = 1024 * 1024
ABSENT = "018f0000-0000-7000-8000-000000000000"


def pattern(size: int) -> bytes:
    block = bytes(range(256)) * 4096
    return b"".join(n.to_bytes(4, "big") + block[4:] for n in range(-(-size // MiB)))[:size]


async def submit(client: httpx.AsyncClient) -> str:
    job: str = (await client.post("/jobs", json={"kind": "chat"})).json()["id"]
    return job


async def put(client: httpx.AsyncClient, job: str, name: str, content: Any, **options: Any) -> httpx.Response:
    return await client.put(f"/jobs/{job}/artifacts/{quote(name)}", content=content, **options)


async def left(conn: psycopg.AsyncConnection) -> tuple[Any, ...] | None:
    """Count what is stored or under way."""
    return await (
        await conn.execute("select (select count(*) from queue_pg.artifacts), (select count(*) from queue_pg.uploads)")
    ).fetchone()


@pytest.mark.parametrize("size", [0, 1, MiB - 1, MiB, 2 * MiB + 7])
async def test_round_trip(client: httpx.AsyncClient, size: int) -> None:
    job, data = await submit(client), pattern(size)
    made = await put(client, job, "out/data.bin", data, headers={"content-type": "application/x-data"})
    assert made.status_code == 201, made.text
    answers.ArtifactAnswer.model_validate(made.json())
    digest = sha256(data).hexdigest()
    assert made.headers["etag"] == f'"{digest}"'
    assert made.headers["location"] == f"/jobs/{job}/artifacts/out/data.bin"
    assert made.json() | {"created_at": ""} == {
        "name": "out/data.bin",
        "size": size,
        "sha256": digest,
        "content_type": "application/x-data",
        "attempt": 0,
        "created_at": "",
    }
    listed = (await client.get(f"/jobs/{job}/artifacts")).json()
    answers.ArtifactsAnswer.model_validate(listed)
    assert listed == {"artifacts": [made.json()]}
    got = await client.get(made.headers["location"])
    assert (got.status_code, got.content) == (200, data)
    assert got.headers["content-length"] == str(size)
    assert got.headers["content-type"] == "application/x-data"
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["etag"] == made.headers["etag"]
    head = await client.head(made.headers["location"])
    assert (head.status_code, head.content) == (200, b"")
    # Each request has a name of its own.
    names = (head.headers.pop("x-request-id"), got.headers.pop("x-request-id"))
    assert names[0] != names[1]
    assert {key: head.headers[key] for key in got.headers} == dict(got.headers)


async def test_a_body_without_a_length_is_stored_as_it_arrives(client: httpx.AsyncClient) -> None:
    job, data = await submit(client), pattern(3 * MiB + 1)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    assert (await put(client, job, "a.txt", pieces())).json()["sha256"] == sha256(data).hexdigest()
    # No content type was said: the name says it.
    assert (await client.get(f"/jobs/{job}/artifacts/a.txt")).headers["content-type"] == "text/plain"


RANGES = [
    ("bytes=0-0", 0, 1),
    ("bytes=0-9", 0, 10),
    ("bytes=1048575-1048576", MiB - 1, MiB + 1),
    ("bytes=1048576-", MiB, None),
    ("bytes=-5", -5, None),
    ("bytes=-99999999", 0, None),
    ("bytes=0-99999999", 0, None),
    ("bytes=1048580-1048580", MiB + 4, MiB + 5),
    ("Bytes = 3-4", 3, 5),
]


@pytest.mark.parametrize(("asked", "start", "end"), RANGES)
async def test_a_range(client: httpx.AsyncClient, asked: str, start: int, end: int | None) -> None:
    job, data = await submit(client), pattern(MiB + 5)
    await put(client, job, "a", data)
    got = await client.get(f"/jobs/{job}/artifacts/a", headers={"range": asked})
    first, last, _ = slice(start, end).indices(len(data))
    assert (got.status_code, got.content) == (206, data[start:end])
    assert got.headers["content-range"] == f"bytes {first}-{last - 1}/{len(data)}"
    head = await client.head(f"/jobs/{job}/artifacts/a", headers={"range": asked})
    assert (head.status_code, head.headers["content-length"]) == (206, str(last - first))


@pytest.mark.parametrize("asked", ["bytes=6-", "bytes=6-9", "bytes=-0", "bytes=999999999999999999-"])
async def test_a_range_after_the_end(client: httpx.AsyncClient, asked: str) -> None:
    job = await submit(client)
    await put(client, job, "a", b"123456")
    got = await client.get(f"/jobs/{job}/artifacts/a", headers={"range": asked})
    assert (got.status_code, got.json()["code"]) == (416, "range_not_satisfiable")
    assert got.headers["content-range"] == "bytes */6"
    await put(client, job, "empty", b"")
    assert (await client.get(f"/jobs/{job}/artifacts/empty", headers={"range": "bytes=0-"})).status_code == 416


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,3-4", "bytes=-", "bytes=5-2", "bytes=a-b", "lines=1-2", "bytes 1-2", "", f"bytes=0-{'9' * 30}"]
)
async def test_a_range_that_is_none_is_passed_over(client: httpx.AsyncClient, asked: str) -> None:
    job = await submit(client)
    await put(client, job, "a", b"123456")
    got = await client.get(f"/jobs/{job}/artifacts/a", headers={"range": asked})
    assert (got.status_code, got.content) == (200, b"123456")


async def test_only_if_it_is_another_one(client: httpx.AsyncClient) -> None:
    job = await submit(client)
    etag = (await put(client, job, "a", b"123456")).headers["etag"]
    path = f"/jobs/{job}/artifacts/a"
    for known in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        got = await client.get(path, headers={"if-none-match": known, "range": "bytes=0-1"})
        assert (got.status_code, got.content, got.headers["etag"]) == (304, b"", etag)
    assert (await client.get(path, headers={"if-none-match": '"x"'})).status_code == 200
    assert (await client.get(path, headers={"if-range": etag, "range": "bytes=0-1"})).content == b"12"
    for other in ('"x"', f"W/{etag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        got = await client.get(path, headers={"if-range": other, "range": "bytes=0-1"})
        assert (got.status_code, got.content) == (200, b"123456")


def test_headers_given_twice() -> None:
    twice = Headers(raw=[(b"range", b"bytes=0-1"), (b"range", b"bytes=2-3")])
    assert not asked_part(twice, 10, '"e"').partial
    assert is_known(Headers(raw=[(b"if-none-match", b'"a"'), (b"if-none-match", b'"e"')]), '"e"')


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("text/plain", "inline"),
        ("text/plain; charset=utf-8", "inline"),
        ("image/png", "inline"),
        ("text/html", "attachment"),
        # To a browser these are two types, of which the last one counts.
        ("image/png;a, text/html", "attachment"),
        ("text/plain; charset=utf-8,text/html", "attachment"),
        ("TEXT/HTML", "attachment"),
        ("image/svg+xml", "attachment"),
        ("application/javascript", "attachment"),
        ("text/xml", "attachment"),
        ("application/pdf", "attachment"),
        ("application/octet-stream", "attachment"),
    ],
)
async def test_what_a_browser_could_run_is_to_be_saved(client: httpx.AsyncClient, content_type: str, kind: str) -> None:
    job = await submit(client)
    await put(client, job, "a", b"<script>alert(1)</script>", headers={"content-type": content_type})
    got = await client.get(f"/jobs/{job}/artifacts/a")
    assert got.headers["content-disposition"].startswith(f"{kind}; ")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in got.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["a b.txt", "Ü/日本語.txt", "it's; filename=x.exe", "100%.txt", "a,b=c&d#e.txt"])
async def test_a_strange_name_in_headers(client: httpx.AsyncClient, name: str) -> None:
    job = await submit(client)
    made = await put(client, job, name, b"x")
    assert made.status_code == 201, made.text
    got = await client.get(made.headers["location"])
    assert got.content == b"x"
    file = name.rpartition("/")[2]
    match = re.fullmatch(
        r"""inline|attachment; filename="([^"\\]+)"; filename\*=UTF-8''(\S+)""",
        got.headers["content-disposition"].replace("inline", "attachment"),
    )
    assert match is not None
    assert match[2] == quote(file, safe="")
    assert len(match[1]) == len(file)


@pytest.mark.parametrize(
    "path",
    [
        "%2e%2e%2fx",
        "a/%2e%2e/x",
        "%2fetc%2fpasswd",
        "a%5cb",
        "a%00b",
        "a%0dx",
        "",
        "CON",
        "a//b",
        "%ff%2f..",
        "x%e2%80%aey",
    ],
)
async def test_a_hostile_name_is_refused(client: httpx.AsyncClient, conn: psycopg.AsyncConnection, path: str) -> None:
    job = await submit(client)
    for method in ("PUT", "GET", "HEAD"):
        got = await client.request(method, f"http://api/jobs/{job}/artifacts/{path}")
        assert got.status_code == 422, (method, got.text)
        if method != "HEAD":
            assert (got.json()["code"], got.json()["field"]) == ("invalid_artifact", "name")
    assert await left(conn) == (0, 0)


async def test_a_name_of_two_lines_names_nothing(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"/jobs/{await submit(client)}/artifacts/a%0ax")).status_code == 404


async def test_dots_that_a_client_resolves_lead_nowhere(client: httpx.AsyncClient) -> None:
    job = await submit(client)
    got = await client.get(f"/jobs/{job}/artifacts/../../x")
    assert got.status_code == 404


async def test_who_may(client: httpx.AsyncClient, claim_one: Any) -> None:
    for job in (ABSENT, "no-id"):
        assert (await client.get(f"/jobs/{job}/artifacts")).json()["code"] == "job_not_found"
        assert (await client.get(f"/jobs/{job}/artifacts/a")).json()["code"] == "job_not_found"
        assert (await put(client, job, "a", b"x")).json()["code"] == "job_not_found"
    job = await submit(client)
    assert (await put(client, job, "input", b"x")).status_code == 201
    missing = await client.get(f"/jobs/{job}/artifacts/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "artifact_not_found")
    token = (await claim_one())["lease_token"]
    refused = await put(client, job, "a", b"x")
    assert (refused.status_code, refused.json()["field"]) == (422, "lease_token")
    stale = await put(client, job, "a", b"x", params={"lease_token": token + 1})
    assert (stale.status_code, stale.json()["code"], stale.headers["x-should-retry"]) == (409, "lease_lost", "false")
    assert (await put(client, job, "a", b"x", params={"lease_token": token})).json()["attempt"] == 1
    await client.post(f"/jobs/{job}/complete", json={"lease_token": token})
    late = await put(client, job, "a", b"x")
    assert (late.status_code, late.json()["code"], late.json()["state"]) == (409, "wrong_state", "completed")


@pytest.mark.parametrize(
    ("options", "status", "field"),
    [
        ({"params": {"sha256": "0" * 64}}, 422, "sha256"),
        ({"params": {"sha256": "abc"}}, 422, "sha256"),
        ({"params": {"lease_token": "x"}}, 422, "lease_token"),
        ({"params": {"token": "1"}}, 422, "token"),
        ({"headers": {"content-type": "nonsense"}}, 422, "content_type"),
        ({"headers": {"content-encoding": "gzip"}}, 415, None),
        ({"headers": {"origin": "http://elsewhere"}}, 403, None),
        ({"headers": {"content-length": "7"}}, 422, "size"),
    ],
)
async def test_bad_input(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection, options: Any, status: int, field: str | None
) -> None:
    got = await put(client, await submit(client), "a", b"123456", **options)
    assert (got.status_code, got.json().get("field")) == (status, field)
    assert await left(conn) == (0, 0)


async def test_a_hash_that_was_announced(client: httpx.AsyncClient) -> None:
    params = {"sha256": sha256(b"x").hexdigest().upper()}
    assert (await put(client, await submit(client), "a", b"x", params=params)).status_code == 201


async def test_too_large(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    await conn.execute("select queue_pg.configure(max_artifact_bytes => 2000000)")
    job = await submit(client)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield bytes(100_000)

    for content in (bytes(3_000_000), pieces()):
        got = await put(client, job, "a", content)
        assert (got.status_code, got.json()["code"], got.json()["limit"]) == (413, "artifact_too_large", 2_000_000)
    assert await left(conn) == (0, 0)


async def test_what_is_corrupt_is_an_error_before_the_first_byte(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    job = await submit(client)
    await put(client, job, "a", b"123456")
    await conn.execute("update queue_pg.chunks set data = '123457'")
    for headers in ({}, {"range": "bytes=2-3"}):
        got = await client.get(f"/jobs/{job}/artifacts/a", headers=headers)
        assert (got.status_code, got.json()["code"]) == (500, "artifact_corrupt")
    assert "corrupt" in caplog.text


async def test_a_settings_limit_reaches_the_database(make_client: Any, conn: psycopg.AsyncConnection) -> None:
    async with make_client(max_artifact_bytes=10) as client:
        job = await submit(client)

        async def refused() -> bool:
            return (await put(client, job, "a", b"x" * 11)).status_code == 413

        await until(refused)  # maintenance has written it there


# --- over a real socket -----------------------------------------------------------------------------------------------


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - the other side of a socket sets no event
            await asyncio.sleep(0.01)


async def test_a_client_that_hangs_up_leaves_nothing_behind(served: Any, conn: psycopg.AsyncConnection) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        job = await submit(http)
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = f"PUT /jobs/{job}/artifacts/a HTTP/1.1\r\nhost: 127.0.0.1:{served.port}\r\ncontent-length: 9000000\r\n\r\n"
    writer.write(head.encode() + pattern(3 * MiB))
    await writer.drain()

    async def arrived() -> bool:
        return await left(conn) == (0, 1)

    async def gone() -> bool:
        return await left(conn) == (0, 0)

    await until(arrived)
    writer.close()
    await until(gone)
    while (row := await (await conn.execute("select queue_pg.sweep_artifacts()")).fetchone()) and row[0]:
        pass
    assert await (await conn.execute("select count(*) from queue_pg.chunks")).fetchone() == (0,)


async def test_damage_further_on_ends_the_connection_before_the_end(served: Any, conn: psycopg.AsyncConnection) -> None:
    data = pattern(4 * MiB)
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        job = await submit(http)
        await put(http, job, "a", data)
        await conn.execute("update queue_pg.chunks set data = 'x' where data = %s", (data[2 * MiB : 3 * MiB],))
        seen = bytearray()

        async def read() -> None:
            async with http.stream("GET", f"/jobs/{job}/artifacts/a") as got:
                assert got.headers["content-length"] == str(len(data))
                async for piece in got.aiter_bytes():
                    seen.extend(piece)

        with pytest.raises(httpx.RemoteProtocolError):
            await read()
        assert data.startswith(seen)
        assert len(seen) <= 2 * MiB
        assert (await http.get("/livez")).status_code == 200


async def test_a_reader_that_hangs_up_ends_the_transfer(served: Any) -> None:
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        job = await submit(http)
        await put(http, job, "a", pattern(20 * MiB))
        free = served.service.transfers._value
        async with http.stream("GET", f"/jobs/{job}/artifacts/a") as got:
            async for _ in got.aiter_bytes():
                break
            assert served.service.transfers._value == free - 1

        async def given_back() -> bool:
            return served.service.transfers._value == free

        await until(given_back)


def peak(process_id: int) -> int:
    """Return the most memory that a process has had, in MiB."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text())
    assert match is not None
    return int(match[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells a process's peak")
async def test_the_memory_of_the_service_does_not_grow_with_the_content(dsn: str, tmp_path: Path) -> None:
    megabytes, tail = 200, os.urandom(MiB - 8)

    async def content() -> AsyncIterator[bytes]:
        for number in range(megabytes):
            yield number.to_bytes(8, "big") + tail

    process = subprocess.Popen(  # noqa: ASYNC220 - a moment, before anything else runs
        [sys.executable, "-m", "queue_pg.cli", "serve", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": dsn},
    )
    assert process.stderr is not None
    try:
        said = next(line for line in process.stderr if "API on http" in line)
        async with httpx.AsyncClient(base_url=said.split()[2].rstrip(","), timeout=60) as http:
            job = await submit(http)
            await http.get((await put(http, job, "small", b"x")).headers["location"])
            before = peak(process.pid)
            made = await put(http, job, "large", content())
            size = 0
            async with http.stream("GET", made.headers["location"]) as got:
                async for piece in got.aiter_bytes():
                    size += len(piece)
            assert size == made.json()["size"] == megabytes * MiB
            after = peak(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert after - before < 30
    assert after < 150
