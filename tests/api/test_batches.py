"""/batches: a batch from its making to its end, over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from queue_pg_api import answers
from queue_pg_api.routes import batches as routes

NDJSON = {"content-type": "application/x-ndjson"}


async def make(client: httpx.AsyncClient, **fields: Any) -> str:
    answer = await client.post("/batches", json=fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def end_jobs(conn: psycopg.AsyncConnection, outcome: str, jobs: int = 1000) -> None:
    await conn.execute(
        "select queue_pg.finish(c.ids, c.tokens, array_fill(%s::text, array[cardinality(c.ids)]))"
        " from (select array_agg(id) as ids, array_agg(lease_token) as tokens"
        " from queue_pg.claim('w', '{default}', '{load}', %s)) c",
        (outcome, jobs),
    )


async def test_a_batch_from_its_making_to_its_end(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    made = await client.post(
        "/batches",
        json={"name": "import", "on_all": {"kind": "report", "payload": {"to": "me"}}, "metadata": {"user": 7}},
    )
    assert made.status_code == 201
    batch = made.json()
    answers.BatchAnswer.model_validate(batch)
    url = made.headers["location"]
    assert url == f"/batches/{batch['id']}"
    assert (batch["state"], batch["total"], batch["metadata"]) == ("open", 0, {"user": 7})
    assert batch["on_all"]["payload"] == {"to": "me"}

    one = await client.post(f"{url}/jobs", json={"kind": "load", "payload": {"n": 0}})
    assert (one.status_code, one.json()["batch_id"]) == (201, batch["id"])
    assert one.headers["location"] == f"/jobs/{one.json()['id']}"
    several = await client.post(f"{url}/jobs", json=[{"kind": "load"}, {"kind": "load", "batch_id": batch["id"]}])
    assert (several.status_code, len(several.json()["jobs"])) == (201, 2)
    body = b'{"kind": "load"}\n' * 100
    assert (await client.post(f"{url}/jobs", content=body, headers=NDJSON)).json()["count"] == 100
    assert (await client.post("/jobs", json={"kind": "load", "batch_id": batch["id"]})).status_code == 201
    listed = (await client.get("/jobs", params={"batch": batch["id"], "limit": 1000})).json()["jobs"]
    assert len(listed) == 104

    closed = await client.post(f"{url}/close")
    assert (closed.status_code, closed.json()["state"], closed.json()["queued"]) == (200, "closed", 104)
    assert (await client.post(f"{url}/close", json={})).json()["state"] == "closed"
    assert (await client.get(url, params={"wait": 0.01})).json()["unfinished"] == 104
    waiting = asyncio.create_task(client.get(url, params={"wait": 30}))
    await end_jobs(conn, "complete")
    done = (await waiting).json()
    assert (done["state"], done["completed"], done["percent"]) == ("completed", 104, 100)
    [report] = done["callback_ids"]
    payload = (await client.get(f"/jobs/{report}")).json()["payload"]
    assert (payload["to"], payload["batch"]["completed"], payload["batch"]["metadata"]) == ("me", 104, {"user": 7})


async def test_cancel_and_retry_as_a_whole(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await make(client)
    await client.post(f"/batches/{batch}/jobs", content=b'{"kind": "load"}\n' * 1500, headers=NDJSON)
    await end_jobs(conn, "discard", 2)
    monkeypatch.setattr(routes, "ACTION_SECONDS", 0.0)
    stopped = (await client.post(f"/batches/{batch}/cancel", json={"reason": "enough"})).json()
    assert (stopped["jobs"], stopped["done"], stopped["batch"]["unfinished"]) == (1000, False, 498)
    stopped = (await client.post(f"/batches/{batch}/cancel")).json()
    answers.BatchActionAnswer.model_validate(stopped)
    assert (stopped["jobs"], stopped["done"], stopped["batch"]["cancelled"]) == (498, True, 1498)
    assert (await client.get(f"/batches/{batch}", params={"wait": 30})).json()["state"] == "cancelled"
    assert (await client.post(f"/batches/{batch}/cancel")).json()["jobs"] == 0
    again = (await client.post(f"/batches/{batch}/retry-failed", json={"max_attempts": 9})).json()
    assert (again["jobs"], again["batch"]["state"], again["batch"]["run"]) == (2, "closed", 2)
    monkeypatch.undo()
    again = (await client.post(f"/batches/{batch}/retry-failed", json={"and_cancelled": True})).json()
    assert (again["jobs"], again["done"], again["batch"]["unfinished"]) == (1498, True, 1500)


async def test_lists(client: httpx.AsyncClient) -> None:
    ids = [await make(client, name=f"b{n}") for n in range(3)]
    await client.post(f"/batches/{ids[1]}/close")
    page = (await client.get("/batches", params={"limit": 2, "state": "open"})).json()
    answers.BatchesAnswer.model_validate(page)
    assert ([each["id"] for each in page["batches"]], page["next_cursor"]) == ([ids[2], ids[0]], None)
    first = (await client.get("/batches", params={"limit": 2})).json()
    rest = (await client.get("/batches", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [each["id"] for each in first["batches"] + rest["batches"] if each["state"] == "open"] == [ids[2], ids[0]]
    assert len((await client.get("/batches", params={"name": "b1"})).json()["batches"]) == 1
    for wrong in ({"state": "queued"}, {"limit": 0}, {"cursor": "x"}, {"org": "x"}):
        assert (await client.get("/batches", params=wrong)).status_code == 422


@pytest.mark.parametrize(
    "batch", ["018f0000-0000-7000-8000-000000000000", "x", "{018f0000-0000-7000-8000-000000000000}"]
)
async def test_an_unknown_batch(client: httpx.AsyncClient, batch: str) -> None:
    for method, path, body in [
        ("GET", "", None),
        ("POST", "/close", {}),
        ("POST", "/cancel", {}),
        ("POST", "/retry-failed", {}),
        ("POST", "/jobs", {"kind": "load"}),
        ("POST", "/jobs", [{"kind": "load"}]),
        ("POST", "/jobs", [{"kind": "load"}] * 100),
    ]:
        answer = await client.request(method, f"/batches/{batch}{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "batch_not_found"), path
    lines = await client.post(f"/batches/{batch}/jobs", content=b'{"kind": "load"}\n' * 60, headers=NDJSON)
    assert (lines.status_code, lines.json()["code"]) == (404, "batch_not_found")


async def test_a_closed_batch_takes_no_more(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    batch = await make(client)
    await client.post(f"/batches/{batch}/close")
    # Nothing is left of it: maintenance ends it.
    assert (await client.get(f"/batches/{batch}", params={"wait": 30})).json()["state"] == "completed"
    job = {"kind": "load", "batch_id": batch}
    for path in (f"/batches/{batch}/jobs", "/jobs"):
        for body in (json.dumps(job), json.dumps([job]), json.dumps([job] * 100)):
            answer = await client.post(path, content=body)
            assert (answer.status_code, answer.json()["code"], answer.json()["state"]) == (
                409,
                "wrong_state",
                "completed",
            )
        assert (await client.post(path, content=json.dumps(job), headers=NDJSON)).status_code == 409
    assert (await (await conn.execute("select count(*) from queue_pg.all_jobs")).fetchone()) == (0,)
    refused = await client.post(f"/batches/{batch}/cancel")
    assert (refused.status_code, refused.json()["state"]) == (409, "completed")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"colour": "red"}, "colour"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"x": "y" * 70_000}}, "metadata"),
        ({"on_all": "report"}, "on_all"),
        ({"on_all": {}}, "on_all.kind"),
        ({"on_all": {"kind": "k", "unique_key": "x"}}, "on_all.unique_key"),
        ({"on_all": {"kind": "k", "payload": [1]}}, "on_all.payload"),
        ({"on_all": {"kind": "k", "payload": {"x": "y" * 70_000}}}, "on_all.payload"),
        ({"on_all": {"kind": "k", "delay_seconds": -1}}, "on_all.delay_seconds"),
        ({"on_all": {"kind": "k", "delay_seconds": 3e9}}, "on_all.delay"),
    ],
)
async def test_wrong_batches_are_refused_by_field(client: httpx.AsyncClient, body: Any, field: str) -> None:
    answer = await client.post("/batches", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert (await client.get("/batches")).json()["batches"] == []


async def test_a_callback_of_a_mistyped_kind_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/batches", json={"on_all": {"kind": "chatt"}})
    assert (answer.status_code, answer.json()["suggestions"]) == (422, ["chat"])


async def test_wrong_jobs_for_a_batch(client: httpx.AsyncClient) -> None:
    batch = await make(client)
    other = await client.post(
        f"/batches/{batch}/jobs", json=[{"kind": "load"}, {"kind": "load", "batch_id": str(uuid4())}]
    )
    assert (other.status_code, other.json()["field"], other.json()["index"]) == (422, "batch_id", 1)
    assert (await client.post(f"/batches/{batch}/jobs", json={"kind": ""})).json()["field"] == "kind"
    for wrong in ("x", 7, "urn:uuid:018f0000-0000-7000-8000-000000000000"):
        answer = await client.post("/jobs", json={"kind": "load", "batch_id": wrong})
        assert (answer.status_code, answer.json()["field"]) == (422, "batch_id")
    unknown = await client.post("/jobs", json={"kind": "load", "batch_id": str(uuid4())})
    assert (unknown.status_code, unknown.json()["field"]) == (422, "batch_id")
    assert (await client.get(f"/batches/{batch}")).json()["total"] == 0


async def test_callbacks_by_url_and_at_the_first_failure(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection
) -> None:
    url = "https://example.org/hooks"
    made = await client.post(
        "/batches",
        json={
            "on_first_failed": url,
            "on_all": {"kind": "webhook", "payload": {"url": url, "secret_name": "crm"}, "max_attempts": 3},
        },
    )
    assert made.status_code == 201, made.text
    batch = made.json()
    assert batch["on_first_failed"] == {
        "kind": "webhook",
        **{n: v for n, v in batch["on_first_failed"].items() if n != "kind"},
    }
    assert (batch["on_first_failed"]["payload"], batch["first_failed_at"], batch["first_failed_id"]) == (
        {"url": url},
        None,
        None,
    )
    path = f"/batches/{batch['id']}"
    await client.post(f"{path}/jobs", json=[{"kind": "load"}, {"kind": "load"}])
    await end_jobs(conn, "discard", 1)
    await conn.execute("select queue_pg.settle_batches()")
    failing = (await client.get(path)).json()
    answers.BatchAnswer.model_validate(failing)
    told = (await client.get(f"/jobs/{failing['first_failed_id']}")).json()
    assert (failing["state"], told["kind"], told["payload"]["url"]) == ("open", "webhook", url)
    assert (told["payload"]["body"]["type"], told["payload"]["body"]["data"]["failed"]) == ("batch.first_failed", 1)
    await end_jobs(conn, "complete")
    await client.post(f"{path}/close")
    done = (await client.get(path, params={"wait": 30})).json()
    [callback] = done["callback_ids"]
    last = (await client.get(f"/jobs/{callback}")).json()
    assert (last["payload"]["secret_name"], last["max_attempts"]) == ("crm", 3)
    assert last["payload"]["body"]["type"] == "batch.failed"


@pytest.mark.parametrize(
    ("callback", "field"),
    [
        ("report", "on_first_failed"),
        ("", "on_first_failed"),
        (5, "on_first_failed"),
        ("ftp://x/", "on_first_failed"),
        ("http://u:p@x/", "on_first_failed.payload.url"),
        ("http://", "on_first_failed.payload.url"),
        ({"kind": "webhook"}, "on_first_failed.payload.url"),
        ({"kind": "webhook", "payload": {"url": "http://x/", "secret": "x"}}, "on_first_failed.payload.secret"),
        ({"url": "http://x/"}, "on_first_failed.url"),
    ],
)
async def test_wrong_webhooks_are_named(client: httpx.AsyncClient, callback: Any, field: str) -> None:
    answer = await client.post("/batches", json={"on_first_failed": callback})
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
