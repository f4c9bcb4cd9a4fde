"""/templates: job templates over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from queue_pg_api import answers

TEMPLATE: dict[str, Any] = {
    "name": "summary",
    "kind": "chat",
    "payload": {"prompt": "{{ variables.words }} words about {{ variables.topic }}"},
    "variables": {"topic": "string", "words": {"type": "integer", "default": 50}},
    "queue": "texts",
    "timeout_seconds": 5,
}


async def test_from_a_template_to_a_job(client: httpx.AsyncClient) -> None:
    made = await client.post("/templates", json=TEMPLATE)
    assert made.status_code == 201
    answers.TemplateAnswer.model_validate(made.json())
    assert made.headers["location"] == "/templates/summary?version=1"
    assert (await client.get(made.headers["location"])).json() == made.json()
    assert (await client.post("/templates", json=TEMPLATE)).json()["version"] == 1
    assert (await client.post("/templates", json={**TEMPLATE, "queue": "gpu"})).json()["version"] == 2
    [listed] = (await client.get("/templates", params={"limit": 5})).json()["templates"]
    assert (listed["name"], listed["version"]) == ("summary", 2)
    assert (await client.get("/templates", params={"after": "summary"})).json() == {"templates": []}

    body = {"variables": {"topic": "rain"}, "version": 1, "priority": "high", "tags": ["a"], "metadata": {"user": 7}}
    submitted = await client.post("/templates/summary/submit", json=body)
    assert submitted.status_code == 201
    job = submitted.json()
    answers.JobAnswer.model_validate(job)
    assert submitted.headers["location"] == f"/jobs/{job['id']}"
    assert job["payload"] == {"prompt": "50 words about rain"}
    assert (job["queue"], job["priority"], job["timeout_seconds"], job["tags"]) == ("texts", 10, 5, ["a"])
    assert job["metadata"] == {"user": 7, "template": {"name": "summary", "version": 1}}

    key = {"idempotency-key": "once"}
    first = await client.post("/templates/summary/submit", json={"variables": {"topic": "snow"}}, headers=key)
    again = await client.post("/templates/summary/submit", json={"variables": {"topic": "snow"}}, headers=key)
    assert (first.status_code, again.status_code, again.json()["id"]) == (201, 200, first.json()["id"])
    assert again.headers["idempotency-replayed"] == "true"
    other = await client.post("/templates/summary/submit", json={"variables": {"topic": "hail"}}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "unique_key_conflict")


async def test_a_template_may_share_results(client: httpx.AsyncClient) -> None:
    plain = await client.post("/templates", json=TEMPLATE)
    assert [plain.json()[name] for name in ("cache", "cache_for_seconds", "cache_version")] == [None, None, None]
    terms = {"cache": True, "cache_for_seconds": 60, "cache_version": "2"}
    made = await client.post("/templates", json={**TEMPLATE, **terms})
    assert made.json()["version"] == 2
    assert {name: made.json()[name] for name in terms} == terms
    for options, said in (
        ({}, "queue-pg; fwd=miss"),
        ({}, "queue-pg; fwd=miss; collapsed"),
        ({"cache": False}, None),
        ({"cache_version": "3"}, "queue-pg; fwd=miss"),
        ({"version": 1}, None),
        ({"version": 1, "cache_version": "2"}, "queue-pg; fwd=miss; collapsed"),
    ):
        body = {"variables": {"topic": "rain"}, **options}
        for path, fields in (("/templates/summary/submit", {}), ("/jobs", {"template": "summary"})):
            answer = await client.post(path, json={**body, **fields})
            assert answer.status_code == 201, answer.text
            found = answer.headers.get("cache-status")
            # The second of the two shares what the first does.
            assert found == (said if said is None or path != "/jobs" else "queue-pg; fwd=miss; collapsed")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "variables.topic"),
        ({"variables": {"topic": 7}}, "variables.topic"),
        ({"variables": {"topic": "x", "colour": 1}}, "variables.colour"),
        ({"variables": []}, "variables"),
        ({"variables": {"topic": "x"}, "version": 0}, "version"),
        ({"variables": {"topic": "x"}, "kind": "k"}, "kind"),
        ({"variables": {"topic": "x"}, "delay_seconds": 1, "run_at": "2999-01-01T00:00:00Z"}, "delay_seconds"),
        ({"variables": {"topic": "x"}, "batch_id": "018f0000-0000-7000-8000-000000000000"}, "batch_id"),
    ],
)
async def test_wrong_submissions_name_the_field(client: httpx.AsyncClient, body: Any, field: str) -> None:
    await client.post("/templates", json=TEMPLATE)
    refused = await client.post("/templates/summary/submit", json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, field)
    assert (await client.get("/jobs")).json()["jobs"] == []


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"name": "a/b"}, "name"),
        ({"kind": ""}, "kind"),
        ({"payload": {"p": "{{ variables.y }}"}}, "payload"),
        ({"variables": {"topic": "text", "words": "any"}}, "variables.topic"),
        ({"variables": []}, "variables"),
        ({"colour": 1}, "colour"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"cache": "yes"}, "cache"),
        ({"cache_for_seconds": -1}, "cache_for_seconds"),
        ({"cache_for_seconds": 4e9}, "cache_for_seconds"),
        ({"cache_version": ""}, "cache_version"),
        ({"cache_version": "a\x00b"}, "cache_version"),
    ],
)
async def test_wrong_templates_name_the_field(client: httpx.AsyncClient, changed: Any, field: str) -> None:
    refused = await client.post("/templates", json={**TEMPLATE, **changed})
    assert (refused.status_code, refused.json()["field"]) == (422, field)


@pytest.mark.parametrize("name", ["absent", "%00", "x" * 200, "a%0Ab"])
async def test_an_unknown_template(client: httpx.AsyncClient, name: str) -> None:
    for answer in (
        await client.get(f"/templates/{name}"),
        await client.post(f"/templates/{name}/submit", json={}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "template_not_found")
    await client.post("/templates", json=TEMPLATE)
    missing = await client.get("/templates/summary", params={"version": 2})
    assert (missing.status_code, missing.json()["code"]) == (404, "template_not_found")


# ---- by POST /jobs ----------------------------------------------------------------------------------------------


async def test_a_job_by_template_is_one_of_the_bodies_of_jobs(client: httpx.AsyncClient) -> None:
    await client.post("/templates", json=TEMPLATE)
    body = {"template": "summary", "variables": {"topic": "rain"}, "priority": "high", "metadata": {"user": 7}}
    made = await client.post("/jobs", json=body)
    assert made.status_code == 201, made.text
    job = made.json()
    answers.JobAnswer.model_validate(job)
    assert made.headers["location"] == f"/jobs/{job['id']}"
    assert (job["payload"], job["priority"]) == ({"prompt": "50 words about rain"}, 10)
    assert job["metadata"] == {"user": 7, "template": {"name": "summary", "version": 1}}
    key = {"idempotency-key": "once"}
    first = await client.post("/jobs", json=body, headers=key)
    again = await client.post("/jobs", json=body, headers=key)
    assert (first.status_code, again.status_code, again.json()["id"]) == (201, 200, first.json()["id"])
    assert again.headers["idempotency-replayed"] == "true"

    batch = (await client.post("/batches", json={})).json()
    added = await client.post(f"/batches/{batch['id']}/jobs", json=body)
    assert (added.status_code, added.json()["batch_id"]) == (201, batch["id"])
    await client.post(f"/batches/{batch['id']}/close")
    late = await client.post(f"/batches/{batch['id']}/jobs", json=body)
    assert (late.status_code, late.json()["code"]) == (409, "wrong_state")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"template": "summary"}, "variables.topic"),
        ({"template": "summary", "variables": {"topic": 7}}, "variables.topic"),
        ({"template": "summary", "variables": {"topic": "x"}, "kind": "chat"}, "kind"),
        ({"template": "summary", "variables": {"topic": "x"}, "payload": {}}, "payload"),
        ({"template": "summary", "variables": {"topic": "x"}, "depends_on": []}, "depends_on"),
        ({"template": "summary", "variables": {"topic": "x"}, "version": "1"}, "version"),
        ({"template": "a/b", "variables": {}}, "template"),
        ({"template": None}, "template"),
        ({"template": 5}, "template"),
        ({"kind": "chat", "variables": {}}, "variables"),
        ({"kind": "chat", "version": 1}, "version"),
        ({"variables": {"topic": "x"}}, "variables"),
        ([{"template": "summary", "variables": {"topic": "x"}}], "template"),
        ([{"kind": "chat", "key": "a"}, {"template": "summary", "depends_on": ["a"]}], "template"),
    ],
)
@pytest.mark.parametrize("into", ["/jobs", "a batch"])
async def test_mixed_bodies_name_the_field(client: httpx.AsyncClient, into: str, body: Any, field: str) -> None:
    await client.post("/templates", json=TEMPLATE)
    if into != "/jobs":
        into = f"/batches/{(await client.post('/batches', json={})).json()['id']}/jobs"
    refused = await client.post(into, json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, field), refused.text
    assert (await client.get("/jobs")).json()["jobs"] == []


async def test_lines_take_no_template(client: httpx.AsyncClient) -> None:
    lines = b'{"kind": "chat"}\n{"template": "summary", "variables": {"topic": "x"}}\n'
    refused = await client.post("/jobs", content=lines, headers={"content-type": "application/x-ndjson"})
    assert (refused.status_code, refused.json()["field"], refused.json()["line"]) == (422, "template", 2)
    assert (await client.get("/jobs")).json()["jobs"] == []


async def test_an_unknown_template_of_a_job(client: httpx.AsyncClient) -> None:
    answer = await client.post("/jobs", json={"template": "absent"})
    assert (answer.status_code, answer.json()["code"]) == (404, "template_not_found")
    await client.post("/templates", json=TEMPLATE)
    answer = await client.post("/jobs", json={"template": "summary", "version": 9, "variables": {"topic": "x"}})
    assert (answer.status_code, answer.json()["code"]) == (404, "template_not_found")
