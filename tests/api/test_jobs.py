"""/jobs: submit one, read, list, cancel, retry."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from queue_pg_api import answers
from queue_pg_api.service import Service

RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
ABSENT = "018f0000-0000-7000-8000-000000000000"

ClaimOne = Callable[..., Awaitable[dict[str, Any]]]


async def submit(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/jobs", json={"kind": "chat", **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_submit_answers_with_the_whole_job_and_where_it_is(client: httpx.AsyncClient) -> None:
    answer = await client.post("/jobs", json={"kind": "chat", "payload": {"prompt": "Hällo 🙂"}})

    assert answer.status_code == 201
    job = answer.json()
    answers.JobAnswer.model_validate(job)
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert answer.headers["content-type"] == "application/json"
    assert job["state"] == "queued"
    assert job["payload"] == {"prompt": "Hällo 🙂"}
    assert (job["kind"], job["queue"], job["org"], job["priority"]) == ("chat", "default", "default", 0)
    assert (job["attempt"], job["result"], job["error"], job["lease_expires_at"]) == (0, None, None, None)
    assert RFC3339_UTC.fullmatch(job["created_at"])
    read = (await client.get(answer.headers["location"])).json()
    assert read.pop("waiting")["reason"] == "no_worker"
    assert read == job


async def test_every_field_of_a_submission_is_kept(client: httpx.AsyncClient) -> None:
    fields = {
        "kind": "chat",
        "payload": [1, "two", None, {"three": 3.5}],
        "queue": "gpu/a",
        "priority": "high",
        "run_at": "2999-01-01T02:00:00+02:00",
        "max_attempts": 7,
        "timeout_seconds": 12.5,
        "expires_at": "2999-02-01T00:00:00Z",
        "unique_key": "key-1",
        "tags": ["a", "b"],
        "metadata": {"team": "x"},
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    job = (await client.post("/jobs", json=fields)).json()

    assert job["state"] == "scheduled"
    assert job["priority"] == 10
    assert job["run_at"] == "2999-01-01T00:00:00Z"
    for name in ("kind", "payload", "queue", "max_attempts", "timeout_seconds", "expires_at", "unique_key", "tags"):
        assert job[name] == fields[name], name
    assert (job["metadata"], job["traceparent"]) == (fields["metadata"], fields["traceparent"])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"delay_seconds": 1.0000015, "timeout_seconds": 0.0012345, "max_attempts": 9},
        {"run_at": "2999-01-01T02:00:00.123456+02:00", "expires_at": "2999-02-01T00:00:00Z", "priority": "low"},
        {"run_at": "2001-01-01T00:00:00Z", "tags": ["a", "ü\t\\"], "metadata": {"b": 1, "a": [None]}},
        {"payload": {"z": 1.0, "a": [1e23, -0.0, 2**70, 5e-324, "\\u0000"], "": None}, "queue": "q\n/ü"},
        {"kind": "known", "traceparent": "t"},
    ],
)
async def test_the_answer_is_what_is_stored(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection, fields: dict[str, Any]
) -> None:
    kinds = '[{"kind": "known", "max_attempts": 6, "timeout_seconds": 77}]'
    await conn.execute("select queue_pg.register_kinds(%s)", (kinds,))
    answer = await client.post("/jobs", json={"kind": "chat", **fields})
    assert answer.status_code == 201, answer.text
    read = (await client.get(answer.headers["location"])).json()
    assert read.pop("waiting")["reason"] in ("no_worker", "scheduled")
    assert read == answer.json()


@pytest.mark.parametrize(
    ("given", "stored"),
    [("critical", 20), ("HIGH", 10), ("normal", 0), ("low", -10), ("batch", -20), (3, 3), (-32768, -32768)],
)
async def test_priorities_have_names(client: httpx.AsyncClient, given: Any, stored: int) -> None:
    assert (await submit(client, priority=given))["priority"] == stored


async def test_a_delay_schedules_the_job(client: httpx.AsyncClient) -> None:
    job = await submit(client, delay_seconds=3600)
    assert job["state"] == "scheduled"
    wait = datetime.fromisoformat(job["run_at"]) - datetime.fromisoformat(job["created_at"])
    assert wait == timedelta(hours=1)


async def test_curl_without_a_content_type_works(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = await client.post("/jobs", content=b'{"kind":"chat"}', headers=headers)
    assert answer.status_code == 201


async def test_the_trace_context_of_the_request_is_kept(client: httpx.AsyncClient) -> None:
    context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = await client.post("/jobs", json={"kind": "chat"}, headers={"traceparent": context})
    assert answer.json()["traceparent"] == context


# ---- unique keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_header", [True, False])
async def test_the_same_key_names_the_same_job(client: httpx.AsyncClient, by_header: bool) -> None:
    body: dict[str, Any] = {"kind": "chat", "payload": {"n": 1}}
    headers = {"Idempotency-Key": "abc"} if by_header else {}
    body |= {} if by_header else {"unique_key": "abc"}
    first = await client.post("/jobs", json=body, headers=headers)
    again = await client.post("/jobs", json=body, headers=headers)

    assert (first.status_code, again.status_code) == (201, 200)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert first.json()["unique_key"] == "abc"
    assert again.json() == first.json()


async def test_the_same_key_with_another_body_is_refused(client: httpx.AsyncClient) -> None:
    first = await submit(client, unique_key="abc", payload={"n": 1})
    answer = await client.post("/jobs", json={"kind": "chat", "unique_key": "abc", "payload": {"n": 2}})

    assert answer.status_code == 422
    assert answer.headers["x-should-retry"] == "false"
    refusal = answer.json()
    assert (refusal["code"], refusal["field"], refusal["job_id"]) == ("unique_key_conflict", "unique_key", first["id"])


async def test_key_in_header_and_body_must_agree(client: httpx.AsyncClient) -> None:
    body = {"kind": "chat", "unique_key": "a"}
    assert (await client.post("/jobs", json=body, headers={"Idempotency-Key": "a"})).status_code == 201
    refused = await client.post("/jobs", json=body, headers={"Idempotency-Key": "b"})
    assert (refused.status_code, refused.json()["field"]) == (422, "unique_key")


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_keys_are_bounded(client: httpx.AsyncClient, key: str) -> None:
    refused = await client.post("/jobs", json={"kind": "chat"}, headers={"Idempotency-Key": key})
    assert (refused.status_code, refused.json()["field"]) == (422, "Idempotency-Key")


async def test_submissions_of_one_key_at_once_make_one_job(client: httpx.AsyncClient) -> None:
    body = {"kind": "chat", "unique_key": "race"}
    found = await asyncio.gather(*(client.post("/jobs", json=body) for _ in range(8)))
    assert sorted(answer.status_code for answer in found) == [200] * 7 + [201]
    assert len({answer.json()["id"] for answer in found}) == 1


# ---- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "absent",
    [ABSENT, "99999999999999999999", "x", "{" + ABSENT + "}", "urn:uuid:" + ABSENT, "%00", "\u00e9" * 36, "-" * 36],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs/{id}"),
        ("GET", "/get_result/{id}"),
        ("POST", "/jobs/{id}/cancel"),
        ("POST", "/jobs/{id}/retry"),
        ("POST", "/jobs/{id}/heartbeat"),
        ("POST", "/jobs/{id}/complete"),
        ("POST", "/jobs/{id}/fail"),
    ],
)
async def test_what_is_no_job_is_404(client: httpx.AsyncClient, method: str, path: str, absent: str) -> None:
    needs_token = path.endswith(("heartbeat", "complete", "fail"))
    body = {"json": {"lease_token": 1, **({"error": "no"} if path.endswith("fail") else {})}} if needs_token else {}
    answer = await client.request(method, path.replace("{id}", absent), **body)
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


async def test_a_job_is_read_by_its_hex_too(client: httpx.AsyncClient) -> None:
    job = await submit(client)
    assert (await client.get(f"/jobs/{job['id'].replace('-', '')}")).json()["id"] == job["id"]


async def test_wait_is_woken_by_the_end_of_the_job(
    client: httpx.AsyncClient, service: Service, claim_one: ClaimOne
) -> None:
    job = await submit(client)
    claimed = await claim_one()
    waiting = asyncio.create_task(client.get(f"/jobs/{job['id']}?wait=30"))
    answer = await client.post(
        f"/jobs/{job['id']}/complete", json={"lease_token": claimed["lease_token"], "result": {"text": "hi"}}
    )
    assert answer.json() == {"id": job["id"], "state": "completed"}

    ended = (await asyncio.wait_for(waiting, 10)).json()
    assert (ended["state"], ended["result"]) == ("completed", {"text": "hi"})
    assert ended["finished_at"] is not None


async def test_wait_ends_with_the_job_as_it_is(client: httpx.AsyncClient) -> None:
    job = await submit(client)
    answer = await client.get(f"/jobs/{job['id']}?wait=0.05")
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")


@pytest.mark.parametrize("wait", ["-1", "301", "x", "nan", "inf", ""])
async def test_wait_is_bounded(client: httpx.AsyncClient, wait: str) -> None:
    answer = await client.get(f"/jobs/{ABSENT}?wait={wait}")
    assert (answer.status_code, answer.json()["field"]) == (422, "wait")


# ---- listing ----------------------------------------------------------------------------------------------------


async def test_pages_go_through_all_jobs_newest_first(client: httpx.AsyncClient) -> None:
    ids = [(await submit(client, payload={"n": n}))["id"] for n in range(7)]
    seen: list[str] = []
    cursor = None
    pages = 0
    while pages == 0 or cursor:
        params = {"limit": "3", **({"cursor": cursor} if cursor else {})}
        page = (await client.get("/jobs", params=params)).json()
        answers.JobPage.model_validate(page)
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        pages += 1
    assert seen == ids[::-1]
    assert pages == 3


async def test_lists_leave_out_payload_and_result(client: httpx.AsyncClient) -> None:
    await submit(client, payload={"n": 1})
    [job] = (await client.get("/jobs")).json()["jobs"]
    assert not {"payload", "result"} & set(job)


async def test_filters(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    wanted = await submit(client, queue="q1", tags=["red"], unique_key="k1")
    other = await submit(client, queue="q2", tags=["blue"], delay_seconds=60)
    parent = uuid4()
    [batch] = await (await conn.execute("select queue_pg.create_batch()")).fetchone() or [None]
    await conn.execute(
        "insert into queue_pg.jobs (kind, parent_id, batch_id, queue) values ('child', %s, %s, 'q3')", (parent, batch)
    )
    [child] = (await client.get("/jobs", params={"kind": "child"})).json()["jobs"]
    for params, expected in [
        ({"queue": "q1"}, [wanted["id"]]),
        ({"tag": "red"}, [wanted["id"]]),
        ({"key": "k1"}, [wanted["id"]]),
        ({"state": "scheduled"}, [other["id"]]),
        ({"parent": str(parent)}, [child["id"]]),
        ({"batch": str(batch)}, [child["id"]]),
        ({"org": "default", "queue": "q2"}, [other["id"]]),
        ({"org": "somebody else"}, []),
        ({"queue": "q1", "tag": "blue"}, []),
    ]:
        found = (await client.get("/jobs", params=params)).json()
        assert [job["id"] for job in found["jobs"]] == expected, params


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=done", "state"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=%00", "cursor"),
        ("batch=x", "batch"),
        ("parent=99999999999999999999", "parent"),
        ("kind=", "kind"),
        ("kind=%00", "kind"),
        ("kind=a&kind=b", "kind"),
        ("quene=a", "quene"),
        ("tag=" + "x" * 201, "tag"),
        ("key=" + "x" * 256, "key"),
    ],
)
async def test_bad_filters_are_named(client: httpx.AsyncClient, query: str, field: str) -> None:
    answer = await client.get(f"/jobs?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_percent_encoded_bytes_that_are_no_text_find_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.get("/jobs?kind=%ff%ed%a0%80")
    assert (answer.status_code, answer.json()["jobs"]) == (200, [])


# ---- cancel and retry -------------------------------------------------------------------------------------------


async def test_cancel_in_every_live_state_and_again(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    running = await submit(client)
    await claim_one()
    for job in (running, await submit(client), await submit(client, delay_seconds=60)):
        for _ in range(2):
            answer = await client.post(f"/jobs/{job['id']}/cancel", json={"reason": "not needed"})
            assert answer.status_code == 200
            cancelled = answer.json()
            answers.JobAnswer.model_validate(cancelled)
            assert cancelled["state"] == "cancelled"
            assert cancelled["error"] == {"code": "cancelled", "message": "not needed"}


async def test_cancel_needs_no_body(client: httpx.AsyncClient) -> None:
    job = await submit(client)
    assert (await client.post(f"/jobs/{job['id']}/cancel")).json()["state"] == "cancelled"


async def test_a_finished_job_cannot_be_cancelled(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    job = await submit(client)
    claimed = await claim_one()
    await client.post(f"/jobs/{job['id']}/complete", json={"lease_token": claimed["lease_token"]})
    answer = await client.post(f"/jobs/{job['id']}/cancel")
    assert answer.status_code == 409
    refusal = answer.json()
    assert (refusal["code"], refusal["state"]) == ("wrong_state", "completed")
    assert "completed" in refusal["detail"]


async def test_retry_puts_a_failed_job_back(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    job = await submit(client)
    claimed = await claim_one()
    failed = await client.post(
        f"/jobs/{job['id']}/fail", json={"lease_token": claimed["lease_token"], "error": "no", "retry": False}
    )
    assert failed.json() == {"id": job["id"], "state": "failed"}
    again = (await client.post(f"/jobs/{job['id']}/retry", json={"max_attempts": 5})).json()
    assert (again["state"], again["max_attempts"], again["attempt"]) == ("queued", 5, 0)

    refused = await client.post(f"/jobs/{job['id']}/retry")
    assert (refused.status_code, refused.json()["state"]) == (409, "queued")


@pytest.mark.parametrize("attempts", [0, 1001, "3", 2.5, True])
async def test_retry_takes_a_sane_number_of_attempts(client: httpx.AsyncClient, attempts: Any) -> None:
    answer = await client.post(f"/jobs/{ABSENT}/retry", json={"max_attempts": attempts})
    assert (answer.status_code, answer.json()["field"]) == (422, "max_attempts")


# ---- times ------------------------------------------------------------------------------------------------------


async def test_times_are_utc_whatever_the_database_prefers(
    make_client: Any, dsn: str, admin: psycopg.Connection
) -> None:
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    admin.execute(
        psycopg.sql.SQL("alter database {} set timezone = 'Asia/Tokyo'").format(psycopg.sql.Identifier(str(database)))
    )
    async with make_client() as client:
        job = await submit(client)
    age = datetime.now(UTC) - datetime.fromisoformat(job["created_at"])
    assert abs(age) < timedelta(minutes=1)
    assert job["created_at"].endswith("Z")


async def test_submissions_that_come_together_are_answered_each(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection
) -> None:
    bodies: list[dict[str, Any]] = [{"kind": "chat", "payload": n} for n in range(40)]
    bodies[7] = {"kind": "chat", "metadata": {f"k{n}": n for n in range(5_000)}}  # which Postgres alone refuses
    bodies[9] = {"kind": "chat", "priority": "urgent"}
    found = await asyncio.gather(*(client.post("/jobs", json=body) for body in bodies))
    assert [answer.status_code for answer in found] == [422 if n in (7, 9) else 201 for n in range(40)]
    assert (found[7].json()["field"], found[9].json()["field"]) == ("metadata", "priority")
    ids = [answer.json()["id"] for answer in found if answer.status_code == 201]
    rows = await (await conn.execute("select id::text, payload from queue_pg.jobs order by payload")).fetchall()
    assert rows == list(zip(ids, (n for n in range(40) if n not in (7, 9)), strict=True))


@pytest.mark.parametrize(
    ("given", "number"), [("critical", 20), ("HIGH", 10), ("normal", 0), ("low", -10), ("batch", -20), (7, 7)]
)
async def test_another_priority(client: httpx.AsyncClient, given: Any, number: int) -> None:
    job = (await client.post("/jobs", json={"kind": "chat", "priority": 3})).json()
    answer = await client.post(f"/jobs/{job['id']}/reprioritize", json={"priority": given})
    assert (answer.status_code, answer.json()["priority"]) == (200, number)
    answers.JobAnswer.model_validate(answer.json())
    assert (await client.get(f"/jobs/{job['id']}")).json()["priority"] == number


async def test_priorities_that_cannot_be(client: httpx.AsyncClient) -> None:
    job = (await client.post("/jobs", json={"kind": "chat"})).json()
    path = f"/jobs/{job['id']}/reprioritize"
    for body in (
        {},
        {"priority": "urgent"},
        {"priority": "5"},
        {"priority": 1.5},
        {"priority": 32_768},
        {"priority": None},
    ):
        refused = await client.post(path, json=body)
        assert (refused.status_code, refused.json()["field"]) == (422, "priority")
    for absent in ("018f0000-0000-7000-8000-000000000000", "x"):
        refused = await client.post(f"/jobs/{absent}/reprioritize", json={"priority": 1})
        assert (refused.status_code, refused.json()["code"]) == (404, "job_not_found")
    await client.post(f"/jobs/{job['id']}/cancel")
    refused = await client.post(path, json={"priority": 1})
    assert (refused.status_code, refused.json()["code"], refused.json()["state"]) == (409, "wrong_state", "cancelled")
