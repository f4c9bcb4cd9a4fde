"""Cerebro's six routes, in its words."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from queue_pg_api import answers

from queue_pg.testing import Clock

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?", "name": "Ann"}]


async def submit_job(client: httpx.AsyncClient, **fields: Any) -> str:
    answer = await client.post("/submit_job", json={"messages": MESSAGES, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()["job_id"]


async def get_job(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/get_job", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_round_trip(client: httpx.AsyncClient) -> None:
    answer = await client.post("/submit_job", json={"messages": MESSAGES, "metadata": {"priority": "normal", "u": 1}})
    submitted = answer.json()
    answers.CerebroSubmitted.model_validate(submitted)
    job_id = submitted["job_id"]
    assert submitted == {"job_id": job_id, "id": job_id, "status": "queued"}
    assert (await client.get(f"/get_result/{job_id}")).json()["status"] == "queued"

    taken = await get_job(client)
    answers.CerebroJob.model_validate(taken)
    assert taken["job_id"] == taken["id"] == job_id
    assert (taken["messages"], taken["metadata"]) == (MESSAGES, {"priority": "normal", "u": 1})
    assert taken["payload"] == {"messages": MESSAGES}
    assert taken["attempt"] == 1
    assert (await client.get(f"/get_result/{job_id}")).json()["status"] == "processing"

    done = await client.post("/complete_job", json={"job_id": job_id, "result": {"answer": "Hi."}})
    assert done.status_code == 200, done.text
    result = (await client.get(f"/get_result/{job_id}")).json()
    answers.CerebroResult.model_validate(result)
    assert (result["status"], result["result"], result["error"]) == ("completed", {"answer": "Hi."}, None)
    assert done.json() == result
    # The same job under its own name.
    job = (await client.get(f"/jobs/{job_id}")).json()
    assert (job["kind"], job["queue"], job["state"]) == ("chat", "cerebro", "completed")


async def test_idle_is_204_without_a_body(client: httpx.AsyncClient) -> None:
    for body in ({"json": {}}, {}):
        answer = await client.post("/get_job", **body)
        assert (answer.status_code, answer.content) == (204, b"")


async def test_get_job_waits_for_a_submission(make_client: Any) -> None:
    async with make_client(block_timeout_seconds=60) as client:
        waiting = asyncio.create_task(get_job(client))
        await asyncio.sleep(0)
        job_id = await submit_job(client)
        assert (await asyncio.wait_for(waiting, 10))["id"] == job_id


@pytest.mark.parametrize(
    "report",
    [{"status": "failed"}, {"error": "no model"}, {"status": "failed", "error": {"message": "no", "code": "c"}}],
)
async def test_a_worker_can_report_failure(client: httpx.AsyncClient, report: dict[str, Any]) -> None:
    job_id = await submit_job(client)
    await get_job(client)
    answer = await client.post("/complete_job", json={"job_id": job_id, **report})
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.json()["error"]["message"]


async def test_a_cancelled_job_is_failed_with_the_reason(client: httpx.AsyncClient) -> None:
    job_id = await submit_job(client)
    await client.post(f"/jobs/{job_id}/cancel")
    result = (await client.get(f"/get_result/{job_id}")).json()
    assert (result["status"], result["error"]["code"]) == ("failed", "cancelled")


async def test_a_scheduled_job_is_queued_to_cerebro(client: httpx.AsyncClient) -> None:
    job = (await client.post("/jobs", json={"kind": "chat", "delay_seconds": 60})).json()
    assert (await client.get(f"/get_result/{job['id']}")).json()["status"] == "queued"


# ---- leases -----------------------------------------------------------------------------------------------------


async def test_an_expired_lease_gives_the_job_to_the_next(client: httpx.AsyncClient, clock: Clock) -> None:
    job_id = await submit_job(client)
    first = await get_job(client)
    clock.advance(31)

    late = await client.post("/complete_job", json={"job_id": job_id, "result": "late"})
    assert late.status_code == 409
    assert late.headers["x-should-retry"] == "false"
    assert late.json()["code"] == "lease_lost"

    claimed = await client.post("/jobs/claim", json={"worker": "go", "queues": ["cerebro"], "wait": 30})
    assert [job["id"] for job in claimed.json()["jobs"]] == [job_id]
    for token in ({}, {"lease_token": first["lease_token"]}):
        late = await client.post("/complete_job", json={"job_id": job_id, "result": "late", **token})
        assert (late.status_code, late.headers["x-should-retry"]) == (409, "false")
    assert (await client.get(f"/get_result/{job_id}")).json()["status"] == "processing"


async def test_a_second_completion_is_refused(client: httpx.AsyncClient) -> None:
    job_id = await submit_job(client)
    taken = await get_job(client)
    body = {"job_id": job_id, "result": 1, "lease_token": taken["lease_token"]}
    assert (await client.post("/complete_job", json=body)).status_code == 200
    for again in (body, {"job_id": job_id, "result": 2}):
        answer = await client.post("/complete_job", json=again)
        assert (answer.status_code, answer.json()["state"]) == (409, "completed")
    assert (await client.get(f"/get_result/{job_id}")).json()["result"] == 1


async def test_without_a_token_only_jobs_from_get_job_can_be_completed(client: httpx.AsyncClient) -> None:
    job_id = await submit_job(client)
    [claimed] = (await client.post("/jobs/claim", json={"worker": "go", "queues": ["cerebro"]})).json()["jobs"]
    assert (await client.post("/complete_job", json={"job_id": job_id, "result": 1})).status_code == 409
    body = {"job_id": job_id, "result": 1, "lease_token": claimed["lease_token"]}
    assert (await client.post("/complete_job", json=body)).status_code == 200


async def test_a_job_that_nobody_took_cannot_be_completed(client: httpx.AsyncClient) -> None:
    job_id = await submit_job(client)
    answer = await client.post("/complete_job", json={"job_id": job_id, "result": 1})
    assert (answer.status_code, answer.json()["code"], answer.json()["state"]) == (409, "wrong_state", "queued")


async def test_the_lease_is_as_long_as_the_setting_says(make_client: Any) -> None:
    async with make_client(job_timeout_seconds=77) as client:
        job_id = await submit_job(client)
        taken = await get_job(client)
        assert taken["job_id"] == job_id
        body = {"lease_token": taken["lease_token"]}
        assert (await client.post(f"/jobs/{job_id}/heartbeat", json=body)).status_code == 200
        answer = await client.post("/complete_job", json={"job_id": job_id, "result": "after a heartbeat"})
        assert answer.status_code == 200


# ---- what is submitted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("priority", "stored"),
    [("normal", 0), ("High", 10), ("critical", 20), ("low", -10), ("batch", -20), (7, 7), (None, 0)],
)
async def test_metadata_may_hold_a_priority(client: httpx.AsyncClient, priority: Any, stored: int) -> None:
    job_id = await submit_job(client, metadata={"priority": priority})
    assert (await client.get(f"/jobs/{job_id}")).json()["priority"] == stored


@pytest.mark.parametrize("priority", ["urgent", 99_999, 1.5, True, [], {"a": 1}])
async def test_a_priority_that_makes_no_sense(client: httpx.AsyncClient, priority: Any) -> None:
    answer = await client.post("/submit_job", json={"messages": MESSAGES, "metadata": {"priority": priority}})
    assert (answer.status_code, answer.json()["field"]) == (422, "metadata.priority")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [*MESSAGES, {"role": 5, "content": "hi"}]}, "messages[2].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {"text": "hi"}}]}, "messages[0].content"),
        ({"messages": MESSAGES, "metadata": []}, "metadata"),
        ({"messages": MESSAGES, "metdata": {}}, "metdata"),
        ({"messages": [{"role": "user", "content": "a\x00"}]}, "messages[0].content"),
    ],
)
async def test_bad_submissions_are_named(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    answer = await client.post("/submit_job", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


@pytest.mark.parametrize(
    ("body", "status", "about"),
    [
        ({}, 422, "job_id"),
        ({"job_id": 5}, 422, "job_id"),
        ({"job_id": "x"}, 404, None),
        ({"job_id": "99999999999999999999"}, 404, None),
        ({"job_id": "018f0000-0000-7000-8000-000000000000"}, 404, None),
        ({"job_id": "x", "status": "done"}, 422, "status"),
        ({"job_id": "x", "status": "completed", "error": "no"}, 422, "error"),
    ],
)
async def test_bad_completions(client: httpx.AsyncClient, body: dict[str, Any], status: int, about: str | None) -> None:
    answer = await client.post("/complete_job", json=body)
    assert (answer.status_code, answer.json().get("field")) == (status, about)


async def test_get_job_takes_chat_jobs_of_its_queue_only(client: httpx.AsyncClient) -> None:
    await client.post("/jobs", json={"kind": "other", "queue": "cerebro"})
    await client.post("/jobs", json={"kind": "chat"})
    elsewhere = await submit_job(client, queue="mine")
    assert (await client.post("/get_job")).status_code == 204
    assert (await get_job(client, queue="mine"))["id"] == elsewhere


async def test_a_prompt_becomes_a_message(client: httpx.AsyncClient) -> None:
    await client.post("/jobs", json={"kind": "chat", "queue": "cerebro", "payload": {"prompt": "Hi"}})
    assert (await get_job(client))["messages"] == [{"role": "user", "content": "Hi"}]
    for payload in ([], {"messages": 5}, "text"):
        await client.post("/jobs", json={"kind": "chat", "queue": "cerebro", "payload": payload})
        assert (await get_job(client))["messages"] == []


async def test_an_idempotency_key_works_here_too(client: httpx.AsyncClient) -> None:
    found = [
        await client.post("/submit_job", json={"messages": MESSAGES}, headers={"Idempotency-Key": "k"})
        for _ in range(2)
    ]
    assert [answer.status_code for answer in found] == [201, 200]
    assert found[0].json() == found[1].json()
