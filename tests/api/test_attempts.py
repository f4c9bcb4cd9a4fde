"""`GET /jobs/{id}/attempts`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import psycopg
import pytest
from queue_pg_api import answers

from queue_pg import Queue

ABSENT = "018f0000-0000-7000-8000-000000000000"


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as client:
        yield client


async def test_every_attempt_with_its_end(client: httpx.AsyncClient, queue: Queue) -> None:
    job = (await client.post("/jobs", json={"kind": "chat"})).json()["id"]
    path = f"/jobs/{job}/attempts"
    empty = {"attempts": [], "forgotten_to": None, "next_after": None}
    assert (await client.get(path)).json() == empty
    [claimed] = await queue.claim("w1", ["default"])
    await queue.fail(claimed.id, claimed.lease_token, {"code": "upstream", "message": "503"}, delay=0)
    [claimed] = await queue.claim("w2", ["default"])
    running = (await client.get(path)).json()["attempts"]
    assert [(each["attempt"], each["worker_id"], each["outcome"]) for each in running] == [
        (1, "w1", "failed"),
        (2, "w2", "running"),
    ]
    assert running[0]["error"] == {"code": "upstream", "message": "503"}
    await queue.complete(claimed.id, claimed.lease_token, {"model": "m", "usage": {"total_tokens": 1}})
    answer = await client.get(path)
    assert answer.status_code == 200
    answers.AttemptsAnswer.model_validate(answer.json())
    first, last = answer.json()["attempts"]
    assert first == running[0]
    assert (last["outcome"], last["model"], last["usage"]) == ("completed", "m", {"total_tokens": 1})
    assert last["started_at"].endswith("Z")
    assert last["ran_seconds"] >= 0
    # Who may read is not who holds the lease.
    assert "lease_token" not in answer.text


async def test_pages_and_what_is_forgotten(
    client: httpx.AsyncClient, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    job = (await client.post("/jobs", json={"kind": "chat", "max_attempts": 10})).json()["id"]
    for _ in range(4):
        [claimed] = await queue.claim("w", ["default"])
        await queue.release(claimed.id, claimed.lease_token)
    page = (await client.get(f"/jobs/{job}/attempts?limit=3")).json()
    assert (len(page["attempts"]), page["next_after"]) == (3, 7)
    rest = (await client.get(f"/jobs/{job}/attempts?limit=3&after=7")).json()
    assert ([each["seq"] for each in rest["attempts"]], rest["next_after"]) == ([8], None)
    await conn.execute("delete from queue_pg.job_events where seq < 8")
    answer = (await client.get(f"/jobs/{job}/attempts")).json()
    assert (answer["forgotten_to"], [each["seq"] for each in answer["attempts"]]) == (7, [8])


@pytest.mark.parametrize("query", ["after=-1", "after=x", "after=2147483648", "limit=0", "limit=1001", "limt=5"])
async def test_bad_queries_are_422(client: httpx.AsyncClient, query: str) -> None:
    job = (await client.post("/jobs", json={"kind": "chat"})).json()["id"]
    answer = await client.get(f"/jobs/{job}/attempts?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.text


@pytest.mark.parametrize("job", [ABSENT, "nonsense"])
async def test_no_such_job_is_404(client: httpx.AsyncClient, job: str) -> None:
    answer = await client.get(f"/jobs/{job}/attempts")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


async def test_another_tenant_s_job_is_404(client: httpx.AsyncClient, dsn: str) -> None:
    async with Queue(dsn, org="acme", notify=False) as theirs:
        job = (await theirs.submit("k")).id
        await theirs.claim("w", ["default"])
        assert len((await theirs.attempts(job)).attempts) == 1
    answer = await client.get(f"/jobs/{job}/attempts")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
