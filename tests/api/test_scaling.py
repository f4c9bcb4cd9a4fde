"""POST /queues/{queue}/drain and GET /scale/{queue}."""

from __future__ import annotations

from typing import Any

import httpx
import psycopg
import pytest
from console_kit import BROWSER, post
from queue_pg_api import action_schemas, answers

NDJSON = {"content-type": "application/x-ndjson"}


async def scale(client: httpx.AsyncClient, queue: str = "mail", **query: Any) -> dict[str, Any]:
    answer = await client.get(f"/scale/{queue}", params=query)
    assert answer.status_code == 200, answer.text
    action_schemas.ScaleAnswer.model_validate(answer.json())
    return answer.json()


async def test_a_draining_queue_takes_no_jobs(client: httpx.AsyncClient) -> None:
    job = {"kind": "send", "queue": "mail"}
    known = await client.post("/jobs", json={**job, "unique_key": "known"})
    drained = await client.post("/queues/mail/drain")
    answers.QueueAnswer.model_validate(drained.json())
    assert (drained.status_code, drained.json()["state"], drained.json()["queued"]) == (200, "draining", 1)
    line = b'{"kind": "send", "queue": "mail"}\n'
    for refused in (
        await client.post("/jobs", json=job),
        await client.post("/jobs", json=[{"kind": "send"}, job]),
        await client.post("/jobs", content=line * 3, headers=NDJSON),
        await client.post("/tasks", json={"prompt": "hi", "queue": "mail"}),
        await client.post(f"/jobs/{known.json()['id']}/rerun"),
        await client.post("/submit_job", json={"messages": [], "queue": "mail"}),
    ):
        if refused.request.url.path == "/submit_job":
            continue  # Cerebro's queue is one of its own
        assert (refused.status_code, refused.json()["code"]) == (409, "queue_draining"), refused.text
        assert "is draining" in refused.json()["detail"]
    again = await client.post("/jobs", json={**job, "unique_key": "known"})
    assert (again.status_code, again.json()["id"]) == (200, known.json()["id"])
    assert (await client.post("/jobs", json={"kind": "send"})).status_code == 201
    assert (await client.get("/queues/mail")).json()["queued"] == 1
    assert (await client.post("/queues/mail/resume")).json()["state"] == "active"
    assert (await client.post("/jobs", json=job)).status_code == 201


async def test_one_state_at_a_time(client: httpx.AsyncClient) -> None:
    await client.post("/jobs", json={"kind": "send", "queue": "mail"})
    states = [(await client.post(f"/queues/mail/{word}")).json()["state"] for word in ("drain", "pause", "drain")]
    assert states == ["draining", "paused", "draining"]
    assert [queue["state"] for queue in (await client.get("/queues")).json()["queues"]] == ["draining"]
    assert (await client.post("/queues/mail/drain", json={"until": "2999-01-01T00:00:00Z"})).status_code == 422
    assert (await client.post(f"/queues/{'x' * 201}/drain")).status_code == 404


async def test_keda_reads_how_many_workers_are_wanted(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    assert (await scale(client))["desired_workers"] == 0
    assert (await scale(client, min=1))["desired_workers"] == 1
    await client.post("/jobs", content=b'{"kind": "send", "queue": "mail"}\n' * 250, headers=NDJSON)
    found = await scale(client, slots=10)
    # GJSON's path is the name of the field; the value is a number.
    assert (found["desired_workers"], found["queued"], found["running"], found["state"]) == (25, 250, 0, "active")
    assert (await scale(client, slots=10, max=20))["desired_workers"] == 20
    assert (await scale(client, slots=10, jobs_per_worker=100))["desired_workers"] == 3
    assert (await scale(client, slots=10, target_wait=60, job_seconds=12))["desired_workers"] == 5
    await conn.execute("select queue_pg.set_limit('queue', 'mail', max_running => 5)")
    assert (await scale(client, slots=1))["desired_workers"] == 5
    await client.post("/queues/mail/pause")
    found = await scale(client, slots=1, min=1)
    assert (found["desired_workers"], found["state"]) == (0, "paused")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"slots": 0}, "slots"),
        ({"slots": "many"}, "slots"),
        ({"jobs_per_worker": "nan"}, "jobs_per_worker"),
        ({"target_wait": 0}, "target_wait"),
        ({"target_wait": 1, "jobs_per_worker": 1}, "target_wait"),
        ({"min": 5, "max": 4}, "min"),
        ({"max": -1}, "max"),
        ({"color": "red"}, "color"),
    ],
)
async def test_what_is_wrong_is_named(client: httpx.AsyncClient, query: dict[str, Any], field: str) -> None:
    answer = await client.get("/scale/mail", params=query)
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text


async def test_the_console_drains_and_resumes(
    web: httpx.AsyncClient, prefix: str, conn: psycopg.AsyncConnection
) -> None:
    await conn.execute("select queue_pg.submit('k', queue => 'mail')")
    answer = await post(web, f"{prefix}/console/queues/drain", queue="mail")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{prefix}/console/queues")
    assert "draining" in (await web.get(f"{prefix}/console/queues", headers=BROWSER)).text
    await post(web, f"{prefix}/console/queues/resume", queue="mail")
    row = await (await conn.execute("select draining from queue_pg.queue_stats()")).fetchone()
    assert row == (False,)
