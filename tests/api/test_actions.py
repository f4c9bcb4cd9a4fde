"""POST /jobs/actions and DELETE /jobs/{id}."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from queue_pg_api import action_schemas
from queue_pg_api.routes import actions as routes

NDJSON = {"content-type": "application/x-ndjson"}


async def submit(client: httpx.AsyncClient, **fields: Any) -> str:
    answer = await client.post("/jobs", json={"kind": "load", **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def fail(conn: psycopg.AsyncConnection, code: str = "boom") -> None:
    await conn.execute(
        "select queue_pg.fail(c.id, c.lease_token, jsonb_build_object('code', %s::text, 'message', 'no'), false)"
        " from queue_pg.claim('w', '{default,mail}', max_jobs => 10000) c",
        (code,),
    )


async def act(client: httpx.AsyncClient, action: str, wanted: dict[str, Any], **options: Any) -> dict[str, Any]:
    answer = await client.post("/jobs/actions", json={"action": action, "filter": wanted, **options})
    assert answer.status_code == 200, answer.text
    action_schemas.ActionAnswer.model_validate(answer.json())
    return answer.json()


async def test_replay_what_failed(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    mail = [await submit(client, queue="mail") for _ in range(3)]
    await fail(conn, "timeout")
    await submit(client)
    await fail(conn)
    wanted = {"state": "failed", "queue": "mail", "error_code": "timeout"}
    listed = (await client.get("/jobs", params=wanted)).json()["jobs"]
    assert [job["id"] for job in listed] == mail[::-1]
    counted = await act(client, "retry", wanted, dry_run=True)
    assert counted == {"action": "retry", "dry_run": True, "matched": 3, "changed": 0, "skipped": {}, "done": True,
                       "cursor": None}  # fmt: skip
    replayed = await act(client, "retry", wanted, max_attempts=9)
    assert (replayed["matched"], replayed["changed"], replayed["done"]) == (3, 3, True)
    job = (await client.get(f"/jobs/{mail[0]}")).json()
    assert (job["state"], job["max_attempts"]) == ("queued", 9)
    assert (await act(client, "retry", wanted))["matched"] == 0


async def test_a_long_one_is_gone_on_with(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post("/jobs", content=b'{"kind": "load"}\n' * 2500, headers=NDJSON)
    monkeypatch.setattr(routes, "ACTION_SECONDS", 0.0)
    first = await act(client, "cancel", {"kind": "load"}, reason="enough")
    assert (first["changed"], first["done"]) == (1000, False)
    late = await submit(client)
    second = await act(client, "cancel", {"kind": "load"}, cursor=first["cursor"])
    third = await act(client, "cancel", {"kind": "load"}, cursor=second["cursor"])
    assert (second["changed"], second["done"], third["changed"], third["done"], third["cursor"]) == (
        1000, False, 500, True, None,
    )  # fmt: skip
    assert [job["id"] for job in (await client.get("/jobs", params={"state": "queued"})).json()["jobs"]] == [late]


async def test_each_word_of_the_list_is_one_of_the_filter(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection
) -> None:
    batch = (await client.post("/batches", json={})).json()["id"]
    mine = await submit(client, queue="mail", tags=["t"], unique_key="k", batch_id=batch)
    created = (await client.get(f"/jobs/{mine}")).json()["created_at"]
    other = await submit(client)
    for wanted in (
        {"state": "queued", "queue": "mail"},
        {"kind": "load", "tag": "t"},
        {"key": "k"},
        {"batch": batch, "org": "default"},
        {"created_before": (await client.get(f"/jobs/{other}")).json()["created_at"]},
        {"created_after": created, "tag": "t"},
    ):
        assert (await act(client, "cancel", wanted, dry_run=True))["matched"] == 1, wanted
        params = {name: value for name, value in wanted.items() if name != "org"}
        assert [job["id"] for job in (await client.get("/jobs", params=params)).json()["jobs"]] == [mine]
    assert (await act(client, "cancel", {"org": "another", "all": True}))["matched"] == 0
    assert (await act(client, "reprioritize", {"all": True}, priority="high"))["changed"] == 2
    assert (await act(client, "reprioritize", {"all": True}, priority=10))["skipped"] == {"same_priority": 2}
    assert (await client.get(f"/jobs/{mine}")).json()["priority"] == 10


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"action": "cancel", "filter": {}}, "filter"),
        ({"action": "cancel", "filter": {"org": "default"}}, "filter"),
        ({"action": "cancel"}, "filter"),
        ({"filter": {"all": True}}, "action"),
        ({"action": "explode", "filter": {"all": True}}, "action"),
        ({"action": "cancel", "filter": {"all": False}}, "filter.all"),
        ({"action": "cancel", "filter": {"all": True, "queue": "q"}}, "filter.all"),
        ({"action": "cancel", "filter": {"color": "red"}}, "filter.color"),
        ({"action": "cancel", "filter": {"state": "gone"}}, "filter.state"),
        ({"action": "cancel", "filter": {"state": "failed"}}, "filter.state"),
        ({"action": "cancel", "filter": {"batch": "7"}}, "filter.batch"),
        ({"action": "cancel", "filter": {"created_after": "yesterday"}}, "filter.created_after"),
        ({"action": "reprioritize", "filter": {"all": True}}, "priority"),
        ({"action": "cancel", "filter": {"all": True}, "priority": 3}, "priority"),
        ({"action": "retry", "filter": {"all": True}, "max_attempts": 0}, "max_attempts"),
        ({"action": "retry", "filter": {"all": True}, "cursor": "x"}, "cursor"),
        ({"action": "retry", "filter": {"queue": "a\u0000"}}, "filter.queue"),
    ],
)
async def test_what_is_wrong_is_named(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    job = await submit(client)
    answer = await client.post("/jobs/actions", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
    assert (await client.get(f"/jobs/{job}")).json()["state"] == "queued"


async def test_deleting_a_job(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    job = await submit(client, unique_key="k")
    refused = await client.delete(f"/jobs/{job}")
    assert (refused.status_code, refused.json()["code"], refused.json()["state"]) == (409, "wrong_state", "queued")
    assert "cancel it first" in refused.json()["detail"]
    await fail(conn)
    answer = await client.delete(f"/jobs/{job}")
    assert (answer.status_code, answer.content) == (204, b"")
    for url in (f"/jobs/{job}", f"/jobs/{job}/events", f"/jobs/{job}/logs", f"/jobs/{job}/artifacts"):
        assert (await client.get(url)).status_code == 404, url
    assert (await client.get("/jobs")).json()["jobs"] == []
    assert (await client.delete(f"/jobs/{job}")).status_code == 404
    assert await submit(client, unique_key="k") != job


async def test_deleting_a_job_that_has_not_ended(client: httpx.AsyncClient) -> None:
    job = await submit(client)
    assert (await client.delete(f"/jobs/{job}", params={"cancel": "maybe"})).status_code == 422
    assert (await client.delete(f"/jobs/{job}", params={"cancel": "true"})).status_code == 204
    assert (await client.get(f"/jobs/{job}")).status_code == 404
    for unknown in (str(uuid4()), "x"):
        assert (await client.delete(f"/jobs/{unknown}", params={"cancel": "true"})).status_code == 404


async def test_a_parent_that_is_awaited(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    first = await submit(client)
    await conn.execute("select queue_pg.complete(c.id, c.lease_token) from queue_pg.claim('w', '{default}') c")
    second = await submit(client)
    await submit(client, depends_on=[first, second])
    refused = await client.delete(f"/jobs/{first}")
    assert (refused.status_code, refused.json()["state"]) == (409, "completed")
    assert (await act(client, "delete", {"all": True}))["skipped"] == {"awaited": 1}
