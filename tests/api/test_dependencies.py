"""/jobs with depends_on, /jobs/{id}/chain, and what /jobs/{id} shows of parents and children."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from queue_pg_api import answers

ABSENT = "018f0000-0000-7000-8000-000000000000"

ClaimOne = Callable[..., Awaitable[dict[str, Any]]]


async def submit(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/jobs", json={"kind": "chat", **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def read(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    answer = await client.get(f"/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    answers.RelatedJobAnswer.model_validate(answer.json())
    return answer.json()


async def complete(client: httpx.AsyncClient, claim_one: ClaimOne, result: Any = None) -> str:
    job = await claim_one()
    body = {"lease_token": job["lease_token"], "result": result}
    assert (await client.post(f"/jobs/{job['id']}/complete", json=body)).status_code == 200
    return job["id"]


async def test_a_job_waits_for_others_and_takes_their_output(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    parent = await submit(client)
    child = await submit(
        client,
        payload={"text": "{{ parents.p.output.text }}"},
        depends_on=[{"job": parent["id"], "name": "p", "on_unsuccessful": "fail"}],
    )
    assert child["state"] == "waiting"
    answers.JobAnswer.model_validate(child)
    link = {"on_unsuccessful": "fail", "name": "p", "outcome": None}
    assert (await read(client, child["id"]))["dependencies"] == {
        "parents": [{"id": parent["id"], "state": "queued", **link}],
        "children": [],
        "parents_count": 1,
        "children_count": 0,
    }
    await complete(client, claim_one, {"text": "done"})
    found = await read(client, child["id"])
    assert (found["state"], found["payload"]) == ("queued", {"text": "done"})
    assert found["dependencies"]["parents"][0]["outcome"] == "completed"
    [shown] = (await read(client, parent["id"]))["dependencies"]["children"]
    assert (shown["id"], shown["state"]) == (child["id"], "queued")


async def test_a_job_without_relatives_shows_none(client: httpx.AsyncClient) -> None:
    job = await submit(client, depends_on=[])
    assert "dependencies" not in await read(client, job["id"])


async def test_an_array_is_a_graph(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    answer = await client.post(
        "/jobs",
        json=[
            {"kind": "chat", "depends_on": ["b", "c"], "payload": ["{{ parents.b.output }}", "{{ parents.c.state }}"]},
            {"kind": "chat", "key": "b", "depends_on": ["a"]},
            {"kind": "chat", "key": "c", "depends_on": [{"job": "a"}]},
            {"kind": "chat", "key": "a"},
        ],
    )
    assert answer.status_code == 201, answer.text
    answers.SubmittedJobs.model_validate(answer.json())
    last, b, c, a = [job["id"] for job in answer.json()["jobs"]]
    assert await complete(client, claim_one) == a
    assert {await complete(client, claim_one, "B"), await complete(client, claim_one, "B")} == {b, c}
    assert (await read(client, last))["payload"] == ["B", "completed"]


async def test_a_graph_can_be_sent_again_under_its_key(client: httpx.AsyncClient) -> None:
    graph = [{"kind": "chat", "key": "a"}, {"kind": "chat", "depends_on": ["a"]}]
    first = await client.post("/jobs", json=graph, headers={"idempotency-key": "g"})
    again = await client.post("/jobs", json=graph, headers={"idempotency-key": "g"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert [job["id"] for job in first.json()["jobs"]] == [job["id"] for job in again.json()["jobs"]]
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    ("jobs", "field", "index"),
    [
        ([{"key": "a", "depends_on": ["b"]}, {"key": "b", "depends_on": ["a"]}], "depends_on", None),
        ([{}, {"depends_on": ["nobody"]}], "depends_on[0]", 1),
        ([{}, {"depends_on": [ABSENT]}], "depends_on[0]", 1),
        ([{}, {"depends_on": [{"job": ABSENT, "on_unsuccessful": "skip"}]}], "depends_on[0].on_unsuccessful", 1),
        ([{}, {"depends_on": [{"name": "x"}]}], "depends_on[0].job", 1),
        ([{}, {"depends_on": [7]}], "depends_on[0]", 1),
        ([{}, {"depends_on": "a"}], "depends_on", 1),
        ([{}, {"key": "a b"}], "key", 1),
        ([{"key": "a"}, {"key": "a"}], "key", 1),
        ([{"key": "a"}, {"depends_on": ["a"], "payload": "{{ x }}"}], "payload", None),
        ([{"key": "a", "payload": None}, {"key": "b", "priority": "urgent"}], "priority", 1),
    ],
)
async def test_what_is_wrong_in_a_graph_is_named(
    client: httpx.AsyncClient, jobs: list[dict[str, Any]], field: str, index: int | None
) -> None:
    answer = await client.post("/jobs", json=[{"kind": "chat", **job} for job in jobs])
    assert answer.status_code == 422, answer.text
    refusal = answers.ErrorAnswer.model_validate(answer.json())
    assert (refusal.field, refusal.index) == (field, index), refusal.detail
    assert (await client.get("/jobs")).json()["jobs"] == []


async def test_a_circle_is_named(client: httpx.AsyncClient) -> None:
    jobs = [{"kind": "chat", "key": "a", "depends_on": ["b"]}, {"kind": "chat", "key": "b", "depends_on": ["a"]}]
    answer = await client.post("/jobs", json=jobs)
    assert "circle of 2: " in answer.json()["detail"]
    assert " -> " in answer.json()["detail"]


async def test_lines_do_not_wait_for_each_other(client: httpx.AsyncClient) -> None:
    lines = b'{"kind": "chat"}\n{"kind": "chat", "depends_on": ["a"]}\n'
    answer = await client.post("/jobs", content=lines, headers={"content-type": "application/x-ndjson"})
    assert (answer.status_code, answer.json()["field"], answer.json()["line"]) == (422, "depends_on", 2)


async def test_chain(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    parent = await submit(client)
    body = {"kind": "chat", "payload": "{{ parents.parent.output }}", "unique_key": "after"}
    answer = await client.post(f"/jobs/{parent['id']}/chain", json=body)
    assert answer.status_code == 201, answer.text
    child = answer.json()
    assert (child["state"], answer.headers["location"]) == ("waiting", f"/jobs/{child['id']}")
    await complete(client, claim_one, 7)
    assert (await read(client, child["id"]))["payload"] == 7
    again = await client.post(f"/jobs/{parent['id']}/chain", json=body)
    assert (again.status_code, again.json()["id"]) == (200, child["id"])
    named = {"kind": "chat", "payload": "{{ parents.p.output }}", "name": "p", "on_unsuccessful": "run"}
    done = (await client.post(f"/jobs/{parent['id']}/chain", json=named)).json()
    assert (done["state"], done["payload"]) == ("queued", 7)


@pytest.mark.parametrize(
    ("job", "body", "status", "code"),
    [
        (ABSENT, {"kind": "chat"}, 404, "job_not_found"),
        ("nonsense", {"kind": "chat"}, 404, "job_not_found"),
        (None, {}, 422, "missing_field"),
        (None, {"kind": "chat", "name": "a b"}, 422, "invalid_request"),
        (None, {"kind": "chat", "on_unsuccessful": "ignore"}, 422, "invalid_request"),
        (None, {"kind": "chat", "payload": "{{ parents.p.output }}"}, 422, "invalid_job"),
        (None, {"kind": "chat", "depends_on": [{"job": ABSENT, "name": "parent"}]}, 422, "invalid_job"),
        (None, {"kind": "chatt"}, 422, "unknown_kind"),
    ],
)
async def test_what_a_chain_refuses(
    client: httpx.AsyncClient, job: str | None, body: dict[str, Any], status: int, code: str
) -> None:
    parent = job or (await submit(client))["id"]
    answer = await client.post(f"/jobs/{parent}/chain", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_openapi_says_what_a_parent_is(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert "post" in document["paths"]["/jobs/{id}/chain"]
    depends_on = document["components"]["schemas"]["SubmitBody"]["properties"]["depends_on"]
    assert [choice["type"] for choice in depends_on["items"]["anyOf"]] == ["string", "object"]
