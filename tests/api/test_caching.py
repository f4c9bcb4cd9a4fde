"""Results shared over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from queue_pg_api.answers import JobAnswer

BODY = {"kind": "chat", "payload": {"prompt": "Say hello."}, "cache": True}


async def complete(client: httpx.AsyncClient, job: str, result: Any) -> None:
    [claimed] = (await client.post("/jobs/claim", json={"worker": "w"})).json()["jobs"]
    assert claimed["id"] == job
    done = await client.post(f"/jobs/{job}/complete", json={"lease_token": claimed["lease_token"], "result": result})
    assert done.status_code == 200, done.text


async def test_the_same_work_is_answered(client: httpx.AsyncClient) -> None:
    first = await client.post("/jobs", json=BODY)
    assert (first.status_code, first.headers["cache-status"]) == (201, "queue-pg; fwd=miss")
    assert (first.json()["state"], first.json()["cached"], first.json()["cached_from"]) == ("queued", False, None)
    origin = first.json()["id"]
    second = await client.post("/jobs", json=BODY)
    assert (second.json()["state"], second.headers["cache-status"]) == ("waiting", "queue-pg; fwd=miss; collapsed")
    waiting = (await client.get(f"/jobs/{second.json()['id']}")).json()["waiting"]
    assert (waiting["reason"], waiting["holders"]) == ("shared", [origin])

    await complete(client, origin, {"text": "Hello."})
    third = await client.post("/jobs", json={**BODY, "cache_for_seconds": 3600, "metadata": {"mine": 1}})
    assert (third.status_code, third.headers["cache-status"]) == (201, "queue-pg; hit")
    JobAnswer.model_validate(third.json())
    assert third.json()["result"] == {"text": "Hello."}
    assert third.headers["location"].endswith(third.json()["id"])
    for job in (third.json(), (await client.get(f"/jobs/{second.json()['id']}?wait=30")).json()):
        assert (job["state"], job["cached"], job["cached_from"]) == ("completed", True, origin)
        assert job["id"] != origin
    listed = (await client.get("/jobs")).json()["jobs"]
    assert sorted(job["cached"] for job in listed) == [False, True, True]


async def test_others_take_no_part(client: httpx.AsyncClient) -> None:
    await client.post("/jobs", json=BODY)
    for body in (
        {"kind": "chat", "payload": BODY["payload"]},
        {**BODY, "cache": False, "cache_for_seconds": 60},
        {**BODY, "cache_version": "2"},
        {**BODY, "payload": {"prompt": "Say goodbye."}},
    ):
        answer = await client.post("/jobs", json=body)
        assert answer.json()["state"] == "queued"
        assert ("cache-status" in answer.headers) is (body.get("cache") is True)


async def test_a_unique_key_comes_first(client: httpx.AsyncClient) -> None:
    first = await client.post("/jobs", json={**BODY, "unique_key": "a"})
    again = await client.post("/jobs", json={**BODY, "unique_key": "a"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert "cache-status" not in again.headers


async def test_many_at_once(client: httpx.AsyncClient) -> None:
    first = (await client.post("/jobs", json=BODY)).json()["id"]
    await complete(client, first, "done")
    made = (await client.post("/jobs", json=[BODY, {**BODY, "cache_for_seconds": 0}, {**BODY, "cache": None}])).json()
    states = [(await client.get(f"/jobs/{job['id']}")).json()["state"] for job in made["jobs"]]
    assert states == ["completed", "queued", "queued"]
    lines = "\n".join(json.dumps(BODY) for _ in range(50))
    stored = await client.post("/jobs", content=lines, headers={"content-type": "application/x-ndjson"})
    assert stored.json()["created"] == 50
    assert {(await client.get(f"/jobs/{job}")).json()["cached_from"] for job in stored.json()["ids"]} == {first}


async def test_a_template_takes_the_options(client: httpx.AsyncClient) -> None:
    await client.post("/templates", json={"name": "hello", "kind": "chat", "payload": BODY["payload"]})
    for state in ("queued", "waiting"):
        answer = await client.post("/templates/hello/submit", json={"cache_for_seconds": 60})
        assert answer.json()["state"] == state, answer.text


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"cache": "yes"}, "cache"),
        ({"cache_for_seconds": -1}, "cache_for_seconds"),
        ({"cache_for_seconds": "1h"}, "cache_for_seconds"),
        ({"cache_for_seconds": 1e12}, "cache_for_seconds"),
        ({"cache_version": ""}, "cache_version"),
        ({"cache_version": "x" * 256}, "cache_version"),
        ({"cache_key": "x"}, "cache_key"),
    ],
)
async def test_wrong_input_names_the_field(client: httpx.AsyncClient, given: dict[str, Any], field: str) -> None:
    for body in ({**BODY, **given}, [BODY, {**BODY, **given}]):
        refused = await client.post("/jobs", json=body)
        assert (refused.status_code, refused.json()["field"]) == (422, field)


async def test_a_job_that_follows_another_cannot_ask(client: httpx.AsyncClient) -> None:
    parent = (await client.post("/jobs", json=BODY)).json()["id"]
    refused = await client.post(f"/jobs/{parent}/chain", json=BODY)
    assert (refused.status_code, refused.json()["field"]) == (422, "cache")


async def test_the_schema_knows_the_fields(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert {"cache", "cache_for_seconds", "cache_version"} <= set(schemas["SubmitBody"]["properties"])
    assert {"cached", "cached_from"} <= set(schemas["JobAnswer"]["properties"])
