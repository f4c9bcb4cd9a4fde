"""Pull workers: claim, heartbeat, complete, fail; and the fence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from queue_pg_api import answers, claim_room
from queue_pg_api.service import Service

from queue_pg.testing import Clock

ABSENT = "018f0000-0000-7000-8000-000000000000"

ClaimOne = Callable[..., Awaitable[dict[str, Any]]]


def write(action: str, token: int) -> dict[str, Any]:
    """Return the least body of a write with a lease token."""
    return {"lease_token": token, "error": "no"} if action == "fail" else {"lease_token": token}


async def submit(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/jobs", json={"kind": "chat", **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def claim(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    answer = await client.post("/jobs/claim", json={"worker": "w1", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["jobs"]


async def test_a_claimed_job_has_all_a_worker_needs(client: httpx.AsyncClient) -> None:
    job = await submit(client, payload={"n": 1}, metadata={"a": 1}, tags=["t"], max_attempts=4, timeout_seconds=60)
    answer = await client.post("/jobs/claim", json={"worker": "w1", "queues": ["default"], "lease_seconds": 45})
    [claimed] = answers.ClaimAnswer.model_validate(answer.json()).jobs

    assert str(claimed.id) == job["id"]
    assert (claimed.payload, claimed.metadata, claimed.tags) == ({"n": 1}, {"a": 1}, ["t"])
    assert (claimed.attempt, claimed.max_attempts, claimed.lease_seconds, claimed.timeout_seconds) == (1, 4, 45, 60)
    running = (await client.get(f"/jobs/{job['id']}")).json()
    assert (running["state"], running["worker_id"]) == ("running", "w1")
    assert datetime.fromisoformat(running["lease_expires_at"]) == claimed.lease_expires_at
    assert running["started_at"] is not None


async def test_claims_keep_to_queues_kinds_and_max(client: httpx.AsyncClient) -> None:
    for queue, kind in [("a", "x"), ("a", "y"), ("b", "x"), ("c", "x")]:
        await submit(client, queue=queue, kind=kind)
    assert await claim(client, queues=["nothing"]) == []
    found = await claim(client, queues=["a", "b"], kinds=["x"], max=10)
    assert sorted((job["queue"], job["kind"]) for job in found) == [("a", "x"), ("b", "x")]
    assert len(await claim(client, queues=["a", "c"], max=1)) == 1


async def test_higher_priorities_first(client: httpx.AsyncClient) -> None:
    low, high = await submit(client, priority="low"), await submit(client, priority="high")
    assert [job["id"] for job in await claim(client, max=2)] == [high["id"], low["id"]]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"worker": ""}, "worker"),
        ({"worker": None}, "worker"),
        ({"queues": []}, "queues"),
        ({"queues": "default"}, "queues"),
        ({"queues": ["a", 1]}, "queues[1]"),
        ({"kinds": []}, "kinds"),
        ({"max": 0}, "max"),
        ({"max": 1_001}, "max"),
        ({"wait": -1}, "wait"),
        ({"wait": 301}, "wait"),
        ({"lease_seconds": 0}, "lease_seconds"),
        ({"lease_seconds": 86_401}, "lease_seconds"),
        ({"limit": 1}, "limit"),
    ],
)
async def test_bad_claims_are_named(client: httpx.AsyncClient, fields: dict[str, Any], field: str) -> None:
    answer = await client.post("/jobs/claim", json={"worker": "w", **fields})
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_a_waiting_claim_is_woken_by_a_submission(client: httpx.AsyncClient) -> None:
    waiting = asyncio.create_task(claim(client, wait=60))
    await asyncio.sleep(0)
    job = await submit(client)
    [claimed] = await asyncio.wait_for(waiting, 10)
    assert claimed["id"] == job["id"]


async def test_a_waiting_claim_is_woken_by_plain_sql(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    waiting = asyncio.create_task(claim(client, wait=60))
    await asyncio.sleep(0)
    await conn.execute("insert into queue_pg.jobs (kind, payload) values ('chat', '{}')")
    assert len(await asyncio.wait_for(waiting, 10)) == 1


async def test_a_waiting_claim_hears_of_the_next_insert_alone(
    client: httpx.AsyncClient, service: Service, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.claims, "_fallback_seconds", 3600)
    monkeypatch.setattr(claim_room, "SECOND_LOOK_SECONDS", 3600)
    await asyncio.to_thread(service.queue.wakeups.wait_listening, 10)
    waiting = asyncio.create_task(claim(client, wait=60))
    armed = "select queue_pg.is_armed('default')"
    async with asyncio.timeout(10):
        while await (await conn.execute(armed)).fetchone() != (True,):
            pass
    await conn.execute("insert into queue_pg.jobs (kind, payload) values ('chat', '{}')")
    assert len(await asyncio.wait_for(waiting, 10)) == 1
    # The next one is sent to nobody, which ends it.
    await conn.execute("insert into queue_pg.jobs (kind, payload) values ('chat', '{}')")
    async with asyncio.timeout(10):
        while await (await conn.execute(armed)).fetchone() == (True,):
            pass


async def test_a_waiting_claim_ends_empty(client: httpx.AsyncClient) -> None:
    assert await claim(client, wait=0.05) == []


async def test_naming_kinds_makes_them_known(client: httpx.AsyncClient) -> None:
    refused = await client.post("/jobs", json={"kind": "chat2"})
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_kind")
    await claim(client, kinds=["chat2"])
    await submit(client, kind="chat2")


# ---- what a lease allows ----------------------------------------------------------------------------------------


async def test_complete(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    job = await submit(client)
    claimed = await claim_one()
    body = {"lease_token": claimed["lease_token"], "result": {"text": "hi"}}
    answer = await client.post(f"/jobs/{job['id']}/complete", json=body)
    assert (answer.status_code, answer.json()) == (200, {"id": job["id"], "state": "completed"})
    ended = (await client.get(f"/jobs/{job['id']}")).json()
    assert (ended["state"], ended["result"], ended["attempt"]) == ("completed", {"text": "hi"}, 1)


async def test_a_failed_attempt_is_retried_later(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    job = await submit(client, max_attempts=2)
    claimed = await claim_one()
    error = {"message": "busy", "code": "rate_limited", "retry_after": 7}
    body = {"lease_token": claimed["lease_token"], "error": error, "delay_seconds": 60}
    assert (await client.post(f"/jobs/{job['id']}/fail", json=body)).json()["state"] == "scheduled"
    later = (await client.get(f"/jobs/{job['id']}")).json()
    assert later["error"] == error
    wait = datetime.fromisoformat(later["run_at"]) - datetime.fromisoformat(job["created_at"])
    assert timedelta(seconds=59) < wait < timedelta(seconds=90)


async def test_the_last_attempt_fails_for_good(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    job = await submit(client, max_attempts=1)
    claimed = await claim_one()
    body = {"lease_token": claimed["lease_token"], "error": "no"}
    assert (await client.post(f"/jobs/{job['id']}/fail", json=body)).json()["state"] == "failed"
    assert (await client.get(f"/jobs/{job['id']}")).json()["error"] == {"code": "error", "message": "no"}


async def test_heartbeat_extends_the_lease(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    job = await submit(client, timeout_seconds=3600)
    claimed = await claim_one(lease_seconds=10)
    body = {"lease_token": claimed["lease_token"], "lease_seconds": 600}
    answer = await client.post(f"/jobs/{job['id']}/heartbeat", json=body)
    assert answer.status_code == 200
    renewed = answers.HeartbeatAnswer.model_validate(answer.json())
    assert renewed.lease_expires_at > datetime.fromisoformat(claimed["lease_expires_at"]) + timedelta(minutes=5)
    # Unless it is said again, the queue's lease counts: 30 s.
    answer = await client.post(f"/jobs/{job['id']}/heartbeat", json={"lease_token": claimed["lease_token"]})
    shorter = answers.HeartbeatAnswer.model_validate(answer.json())
    assert shorter.lease_expires_at < renewed.lease_expires_at - timedelta(minutes=5)


@pytest.mark.parametrize("action", ["heartbeat", "complete", "fail"])
@pytest.mark.parametrize("loss", ["cancelled", "completed", "reclaimed", "queued", "never claimed"])
async def test_a_stale_lease_changes_nothing(
    client: httpx.AsyncClient, claim_one: ClaimOne, clock: Clock, action: str, loss: str
) -> None:
    job = await submit(client)
    token = 1 if loss == "never claimed" else (await claim_one(lease_seconds=30))["lease_token"]
    if loss == "cancelled":
        await client.post(f"/jobs/{job['id']}/cancel")
    elif loss == "completed":
        await client.post(f"/jobs/{job['id']}/complete", json={"lease_token": token, "result": "first"})
    elif loss in {"reclaimed", "queued"}:
        clock.advance(31)
        await claim_one(worker="w2", wait=30)
        if loss == "queued":
            await asyncio.to_thread(clock.advance, 31)
            while (await client.get(f"/jobs/{job['id']}")).json()["state"] != "queued":
                await client.get(f"/jobs/{job['id']}?wait=0.05")
    before = (await client.get(f"/jobs/{job['id']}")).json()

    answer = await client.post(f"/jobs/{job['id']}/{action}", json=write(action, token))
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    refusal = answer.json()
    assert (refusal["code"], refusal["state"]) == ("lease_lost", before["state"])
    assert (await client.get(f"/jobs/{job['id']}")).json() == before


@pytest.mark.parametrize("action", ["heartbeat", "complete", "fail"])
async def test_a_stranger_token_is_refused(client: httpx.AsyncClient, claim_one: ClaimOne, action: str) -> None:
    job = await submit(client)
    claimed = await claim_one()
    answer = await client.post(f"/jobs/{job['id']}/{action}", json=write(action, claimed["lease_token"] + 1))
    assert (answer.status_code, answer.json()["state"]) == (409, "running")


async def test_a_paused_queue_gives_nothing(client: httpx.AsyncClient) -> None:
    await submit(client)
    assert (await client.post("/queues/default/pause")).json()["paused"] is True
    assert await claim(client) == []
    waiting = asyncio.create_task(claim(client, wait=60))
    await asyncio.sleep(0)
    assert (await client.post("/queues/default/resume")).json()["paused"] is False
    assert len(await asyncio.wait_for(waiting, 10)) == 1
