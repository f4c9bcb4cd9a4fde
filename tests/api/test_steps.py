"""/jobs/{id}/steps, /signals and /rerun, and what retry does with steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import psycopg
import pytest
from queue_pg_api import answers

ABSENT = "018f0000-0000-7000-8000-000000000000"

ClaimOne = Callable[..., Awaitable[dict[str, Any]]]


async def submit(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/jobs", json={"kind": "chat", **fields})
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


@pytest.fixture
async def waiting(client: httpx.AsyncClient, claim_one: ClaimOne, conn: psycopg.AsyncConnection) -> str:
    """The id of a job that has finished a step and waits for the event `go/on`."""
    job = await submit(client)
    claimed = await claim_one()
    held = (job["id"], claimed["lease_token"])
    await conn.execute("""select queue_pg.save_step(%s, %s, 'draft', '{"n": 1}')""", held)
    await conn.execute("select queue_pg.wait_for_event(%s, %s, 'go/on', '1 hour')", held)
    await conn.execute("select queue_pg.wait(%s, %s)", held)
    return str(job["id"])


async def state(client: httpx.AsyncClient, job_id: str) -> str:
    return str((await client.get(f"/jobs/{job_id}")).json()["state"])


async def test_steps_are_listed(client: httpx.AsyncClient, waiting: str) -> None:
    answer = await client.get(f"/jobs/{waiting}/steps")
    assert answer.status_code == 200
    answers.StepsAnswer.model_validate(answer.json())
    draft, event = answer.json()["steps"]
    assert (draft["name"], draft["type"], draft["result"], draft["attempt"]) == ("draft", "step", {"n": 1}, 1)
    assert (event["name"], event["type"], event["finished_at"], event["timed_out"]) == ("go/on", "event", None, False)
    assert event["until"].endswith("Z")
    assert (await client.get(f"/jobs/{(await submit(client))['id']}/steps")).json() == {"steps": []}


async def test_a_signal_runs_the_job_that_waits_and_the_first_counts(
    client: httpx.AsyncClient, waiting: str, claim_one: ClaimOne, conn: psycopg.AsyncConnection
) -> None:
    assert await state(client, waiting) == "scheduled"
    path = f"/jobs/{waiting}/signals/go%2Fon"
    for status, payload in ((201, {"by": "ada"}), (200, {"by": "bob"})):
        answer = await client.post(path, json={"payload": payload})
        assert (answer.status_code, answer.json()) == (
            status,
            {"id": waiting, "name": "go/on", "created": status == 201},
        )
        answers.SignalAnswer.model_validate(answer.json())
    assert await state(client, waiting) == "queued"
    claimed = await claim_one()
    held = (waiting, claimed["lease_token"])
    await conn.execute("select queue_pg.wait_for_event(%s, %s, 'go/on', '1 hour')", held)
    assert (await client.get(f"/jobs/{waiting}/steps")).json()["steps"][1]["result"] == {"by": "ada"}


async def test_a_signal_needs_no_body(client: httpx.AsyncClient, waiting: str) -> None:
    assert (await client.post(f"/jobs/{waiting}/signals/go/on")).status_code == 201
    assert await state(client, waiting) == "queued"


async def test_what_takes_no_signal_is_409(
    client: httpx.AsyncClient, waiting: str, claim_one: ClaimOne, conn: psycopg.AsyncConnection
) -> None:
    await conn.execute("update queue_pg.job_steps set until = queue_pg.now() where name = 'go/on'")
    await conn.execute("update queue_pg.jobs set state = 'queued'")
    claimed = await claim_one()
    await conn.execute("select queue_pg.wait_for_event(%s, %s, 'go/on')", (waiting, claimed["lease_token"]))
    late = await client.post(f"/jobs/{waiting}/signals/go/on")
    assert (late.status_code, late.json()["code"], late.json()["state"]) == (409, "wrong_state", "running")
    assert late.json()["detail"] == f"Cannot signal job {waiting}: its wait for 'go/on' has timed out."
    await client.post(f"/jobs/{waiting}/cancel")
    ended = await client.post(f"/jobs/{waiting}/signals/other")
    assert (ended.status_code, ended.json()["state"]) == (409, "cancelled")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("signals/", "{}", "name"),
        ("signals/" + "x" * 201, "{}", "name"),
        ("signals/a%00b", "{}", "name"),
        ("signals/a", '{"payload": "' + "x" * 1_048_577 + '"}', "payload"),
        ("signals/a", '{"payload": "\\u0000"}', "payload"),
        ("signals/a", '{"paylod": 1}', "paylod"),
        ("signals/a", "[]", "body"),
        ("rerun", '{"payload": {}, "payload_patch": {}}', "payload_patch"),
        ("rerun", '{"payload_patch": [1]}', "payload_patch"),
        ("rerun", '{"model": ""}', "model"),
        ("rerun", '{"model": 7}', "model"),
        ("rerun", '{"queue": ""}', "queue"),
        ("rerun", '{"priority": "urgent"}', "priority"),
        ("rerun", '{"run_at": "tomorrow"}', "run_at"),
        ("rerun", '{"run_at": "2999-01-01T00:00:00Z", "delay_seconds": 1}', "delay_seconds"),
        ("rerun", '{"max_attempts": 0}', "max_attempts"),
        ("rerun", '{"timeout_seconds": 0}', "timeout_seconds"),
        ("rerun", '{"tags": "a"}', "tags"),
        ("rerun", '{"metadata": []}', "metadata"),
        ("rerun", '{"kind": "chat"}', "kind"),
        ("retry", '{"fresh": "yes"}', "fresh"),
    ],
)
async def test_wrong_input_is_named(client: httpx.AsyncClient, path: str, body: str, field: str) -> None:
    job = await submit(client)
    answer = await client.post(f"/jobs/{job['id']}/{path}", content=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"].startswith(field), answer.text


@pytest.mark.parametrize("absent", [ABSENT, "x", "%00"])
@pytest.mark.parametrize(("method", "path"), [("GET", "steps"), ("POST", "signals/go"), ("POST", "rerun")])
async def test_what_is_no_job_is_404(client: httpx.AsyncClient, method: str, path: str, absent: str) -> None:
    answer = await client.request(method, f"/jobs/{absent}/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


async def test_the_jobs_of_others_are_unknown(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    cursor = await conn.execute("select queue_pg.submit('chat', org => 'acme')")
    [job] = await cursor.fetchone() or [None]
    for method, path in (("GET", "steps"), ("POST", "signals/go"), ("POST", "rerun")):
        assert (await client.request(method, f"/jobs/{job}/{path}")).status_code == 404


async def test_a_rerun_is_a_new_job_linked_to_its_origin(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    origin = await submit(client, payload={"prompt": "x", "model": "small", "stop": ["."]}, unique_key="u", tags=["t"])
    claimed = await claim_one()
    await client.post(f"/jobs/{origin['id']}/complete", json={"lease_token": claimed["lease_token"], "result": 1})
    answer = await client.post(
        f"/jobs/{origin['id']}/rerun", json={"model": "large", "payload_patch": {"stop": None}, "priority": "high"}
    )
    assert answer.status_code == 201
    job = answer.json()
    answers.JobAnswer.model_validate(job)
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert job["payload"] == {"prompt": "x", "model": "large"}
    assert (job["rerun_of"], job["state"], job["priority"], job["tags"]) == (origin["id"], "queued", 10, ["t"])
    assert (job["unique_key"], job["result"]) == (None, None)
    plain = (await client.post(f"/jobs/{job['id']}/rerun")).json()
    assert (plain["payload"], plain["rerun_of"]) == (job["payload"], job["id"])
    for of, expected in ((origin, [job]), (job, [plain]), (plain, [])):
        listed = (await client.get("/jobs", params={"rerun_of": of["id"]})).json()["jobs"]
        assert [each["id"] for each in listed] == [each["id"] for each in expected]
    assert (await client.get(f"/jobs/{origin['id']}")).json()["rerun_of"] is None


async def test_every_field_of_a_rerun(client: httpx.AsyncClient) -> None:
    origin = await submit(client)
    fields = {
        "payload": {"p": [1, {"a": 2}]},
        "queue": "gpu/a",
        "priority": -7,
        "run_at": "2999-01-01T00:00:00Z",
        "max_attempts": 7,
        "timeout_seconds": 12.5,
        "tags": ["a"],
        "metadata": {"m": 1},
    }
    job = (await client.post(f"/jobs/{origin['id']}/rerun", json=fields)).json()
    assert {name: job[name] for name in fields} == fields
    assert job["state"] == "scheduled"


async def test_a_model_is_for_chat(client: httpx.AsyncClient) -> None:
    origin = await submit(client, kind="other")
    answer = await client.post(f"/jobs/{origin['id']}/rerun", json={"model": "m"})
    assert (answer.status_code, answer.json()["field"]) == (422, "model")


async def test_retry_with_new_attempts_of_each_end(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    ends: dict[str, str] = {}
    for end in ("completed", "failed", "cancelled"):
        job = await submit(client)
        claimed = await claim_one()
        token = {"lease_token": claimed["lease_token"]}
        if end == "completed":
            await client.post(f"/jobs/{job['id']}/complete", json=token)
        elif end == "failed":
            await client.post(f"/jobs/{job['id']}/fail", json={**token, "error": "no", "retry": False})
        else:
            await client.post(f"/jobs/{job['id']}/cancel")
        ends[end] = job["id"]
    for end in ("failed", "cancelled"):
        again = (await client.post(f"/jobs/{ends[end]}/retry", json={"max_attempts": 7})).json()
        assert (again["state"], again["max_attempts"], again["attempt"]) == ("queued", 7, 0)
    refused = await client.post(f"/jobs/{ends['completed']}/retry", json={"max_attempts": 7})
    assert (refused.status_code, refused.json()["code"], refused.json()["state"]) == (409, "wrong_state", "completed")


async def test_retry_keeps_the_steps_unless_it_is_fresh(client: httpx.AsyncClient, waiting: str) -> None:
    for fresh, left in ((False, 2), (True, 0)):
        await client.post(f"/jobs/{waiting}/cancel")
        assert (await client.post(f"/jobs/{waiting}/retry", json={"fresh": fresh})).json()["state"] == "queued"
        assert len((await client.get(f"/jobs/{waiting}/steps")).json()["steps"]) == left


async def test_the_database_away_is_503(make_client: Any) -> None:
    async with make_client("postgresql://127.0.0.1:1/nowhere") as client:
        for method, path in (("GET", "steps"), ("POST", "signals/go"), ("POST", "rerun")):
            answer = await client.request(method, f"/jobs/{ABSENT}/{path}")
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
