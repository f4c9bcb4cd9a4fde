"""The database goes away and comes back; the service stays."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tcp_proxy import Proxy

UNREACHABLE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    async with Proxy(dsn) as proxy:
        yield proxy


def assert_unavailable(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.json() == {"detail": "Database unavailable", "code": "database_unavailable"}
    assert int(answer.headers["retry-after"]) > 0


async def eventually(client: httpx.AsyncClient, method: str, path: str, **body: Any) -> httpx.Response:
    """Do as clients should: try again while the answer is 503."""
    async with asyncio.timeout(30):
        while (answer := await client.request(method, path, **body)).status_code == 503:
            assert answer.headers["retry-after"]
    return answer


async def test_it_starts_without_a_database(make_client: Any) -> None:
    async with make_client(UNREACHABLE) as client:
        assert (await client.get("/livez")).status_code == 200
        health = await client.get("/health")
        assert (health.status_code, health.json()["database"]) == (200, "disconnected")
        assert_unavailable(await client.get("/readyz"))
        assert (await client.get("/docs")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/jobs", {"json": {"kind": "chat"}}),
        ("POST", "/jobs", {"json": [{"kind": "chat"}]}),
        ("POST", "/jobs", {"content": b'{"kind":"chat"}\n', "headers": {"content-type": "application/x-ndjson"}}),
        ("GET", "/jobs", {}),
        ("GET", "/jobs/018f0000-0000-7000-8000-000000000000?wait=5", {}),
        ("POST", "/jobs/claim", {"json": {"worker": "w", "wait": 5}}),
        ("POST", "/submit_job", {"json": {"messages": [{"role": "user", "content": "hi"}]}}),
        ("POST", "/get_job", {}),
        ("GET", "/stats", {}),
    ],
)
async def test_every_route_says_so(make_client: Any, method: str, path: str, body: dict[str, Any]) -> None:
    async with make_client(UNREACHABLE) as client:
        assert_unavailable(await client.request(method, path, **body))


async def test_it_recovers_by_itself(make_client: Any, proxy: Proxy) -> None:
    async with make_client(proxy.dsn) as client:
        before = await client.post("/jobs", json={"kind": "chat", "unique_key": "a"})
        assert before.status_code == 201
        await proxy.cut()
        assert_unavailable(await client.post("/jobs", json={"kind": "chat", "unique_key": "b"}))
        assert_unavailable(await client.get(f"/jobs/{before.json()['id']}"))
        await proxy.mend()
        mended_at = time.monotonic()
        after = await eventually(client, "POST", "/jobs", json={"kind": "chat", "unique_key": "b"})
        assert after.status_code in {200, 201}
        assert time.monotonic() - mended_at < 10
        assert (await client.get("/readyz")).status_code == 200
        # Nothing that was acknowledged is lost, and what was not is there once.
        assert len((await client.get("/jobs")).json()["jobs"]) == 2


async def test_waiting_claims_are_told_and_later_ones_woken(make_client: Any, proxy: Proxy) -> None:
    async with make_client(proxy.dsn) as client:
        claim = {"json": {"worker": "w", "wait": 60}}
        waiting = asyncio.create_task(client.post("/jobs/claim", **claim))
        await client.get("/stats")
        await proxy.cut()
        assert_unavailable(await asyncio.wait_for(waiting, 20))
        await proxy.mend()
        await eventually(client, "GET", "/stats")
        again = asyncio.create_task(client.post("/jobs/claim", **claim))
        await client.post("/jobs", json={"kind": "chat"})
        assert len((await asyncio.wait_for(again, 20)).json()["jobs"]) == 1


async def test_connections_that_the_server_ends_go_unnoticed(make_client: Any, dsn: str, conn: Any) -> None:
    async with make_client() as client:
        job = (await client.post("/jobs", json={"kind": "chat"})).json()
        await conn.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
        for _ in range(5):
            assert (await client.get(f"/jobs/{job['id']}")).status_code == 200


async def test_a_silent_network_does_not_hang_the_probe(make_client: Any, proxy: Proxy) -> None:
    async with make_client(proxy.dsn) as client:
        assert (await client.get("/health")).json()["database"] == "connected"
        proxy.stall()
        try:
            health = await asyncio.wait_for(client.get("/health"), 10)
            assert (health.status_code, health.json()["database"]) == (200, "disconnected")
            assert (await asyncio.wait_for(client.get("/readyz"), 10)).status_code == 503
        finally:
            proxy.flow()
        await eventually(client, "GET", "/stats")


async def test_an_outage_is_logged_once_and_without_secrets(make_client: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with make_client("postgresql://user:hunter2@127.0.0.1:1/db") as client:
        for _ in range(3):
            assert_unavailable(await client.get("/stats"))
    ours = [record for record in caplog.records if record.name.startswith("queue_pg")]
    assert len([record for record in ours if record.levelno >= logging.WARNING]) <= 3
    assert "hunter2" not in caplog.text
