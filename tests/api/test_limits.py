"""/limits, and why a job waits."""

from __future__ import annotations

from typing import Any

import httpx
import psycopg
import pytest
from queue_pg_api.answers import RelatedJobAnswer
from queue_pg_api.routes.limits import LimitAnswer, LimitsAnswer


async def test_a_limit_over_http(client: httpx.AsyncClient) -> None:
    made = await client.put("/limits/key/tenant-7", json={"max_running": 5, "rate": 60, "per": "minute"})
    assert made.status_code == 200, made.text
    assert made.headers["location"] == "/limits/key/tenant-7"
    LimitAnswer.model_validate(made.json())
    assert (made.json()["max_running"], made.json()["burst"], made.json()["units_left"]) == (5, 60, 60)
    assert (await client.get("/limits/key/tenant-7")).json() == made.json()
    paused = await client.post("/limits/key/tenant-7/pause", json={"until": "2999-01-01T00:00:00Z"})
    assert (paused.json()["status"], paused.json()["opens_at"]) == ("paused", "2999-01-01T00:00:00Z")
    assert (await client.post("/limits/key/tenant-7/resume")).json()["status"] == "open"
    assert (await client.delete("/limits/key/tenant-7")).status_code == 204
    for gone in (
        await client.get("/limits/key/tenant-7"),
        await client.delete("/limits/key/tenant-7"),
        await client.post("/limits/key/tenant-7/resume"),
    ):
        assert (gone.status_code, gone.json()["code"]) == (404, "limit_not_found")


async def test_a_key_may_have_slashes(client: httpx.AsyncClient) -> None:
    assert (await client.put("/limits/key/a%2Fb", json={"max_running": 1})).json()["name"] == "a/b"
    assert (await client.post("/limits/key/a/b/pause")).json()["status"] == "paused"


async def test_limits_are_listed_in_pages(client: httpx.AsyncClient) -> None:
    for place in ("key/a", "key/b", "queue/c"):
        await client.put(f"/limits/{place}", json={"max_running": 1})
    first = (await client.get("/limits", params={"limit": 2})).json()
    LimitsAnswer.model_validate(first)
    assert [each["name"] for each in first["limits"]] == ["a", "b"]
    rest = (await client.get("/limits", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([each["name"] for each in rest["limits"]], rest["next_cursor"]) == (["c"], None)
    assert [each["name"] for each in (await client.get("/limits?scope=key")).json()["limits"]] == ["a", "b"]


async def test_a_job_says_why_it_waits_and_who_holds_it(client: httpx.AsyncClient) -> None:
    await client.put("/limits/key/k", json={"max_running": 1})
    ids = [
        (await client.post("/jobs", json={"kind": "chat", "limit_key": "k", "cost": 2})).json()["id"] for _ in range(2)
    ]
    claimed = await client.post("/jobs/claim", json={"worker": "w", "max": 5})
    assert claimed.status_code == 200, claimed.text
    waiting = (await client.get(f"/jobs/{ids[1]}")).json()
    RelatedJobAnswer.model_validate(waiting)
    assert (waiting["limit_key"], waiting["cost"]) == ("k", 2)
    assert waiting["waiting"] == {
        "reason": "limit_full",
        "message": "Key k lets 1 run at once, and 1 do.",
        "until": None,
        "holders": [ids[0]],
    }
    assert (await client.get(f"/jobs/{ids[0]}")).json()["waiting"] is None


@pytest.mark.parametrize(
    ("place", "body", "field"),
    [
        ("worker/a", {"max_running": 1}, "scope"),
        ("key/a", {}, "max_running"),
        ("key/a", {"max_running": 0}, "max_running"),
        ("key/a", {"max_running": "5"}, "max_running"),
        ("key/a", {"rate": 1, "per": "week"}, "per"),
        ("key/a", {"rat": 1}, "rat"),
        (f"queue/{'x' * 201}", {"max_running": 1}, "name"),
    ],
)
async def test_a_bad_limit_is_refused(client: httpx.AsyncClient, place: str, body: dict[str, Any], field: str) -> None:
    refused = await client.put(f"/limits/{place}", json=body)
    assert refused.status_code == 422
    assert field in refused.text


async def test_a_pause_that_is_over_already_is_refused(client: httpx.AsyncClient) -> None:
    refused = await client.post("/limits/key/a/pause", json={"until": "2001-01-01T00:00:00Z"})
    assert refused.status_code == 422
    assert (await client.get("/limits")).json()["limits"] == []


async def test_a_share_over_http(client: httpx.AsyncClient) -> None:
    made = await client.put("/limits/queue/default", json={"weight": 2.5, "ageing_seconds": 60})
    assert made.status_code == 200, made.text
    LimitAnswer.model_validate(made.json())
    assert (made.json()["weight"], made.json()["ageing_seconds"], made.json()["status"]) == (2.5, 60, "open")
    assert (await client.get("/limits/queue/default")).json() == made.json()


@pytest.mark.parametrize(
    ("place", "body", "field"),
    [
        ("key/a", {"weight": 0}, "weight"),
        ("key/a", {"weight": 1001}, "weight"),
        ("key/a", {"weight": "2"}, "weight"),
        ("key/a", {"ageing_seconds": 60}, "ageing_seconds: "),
        ("queue/a", {"ageing_seconds": 0}, "ageing_seconds"),
        ("queue/a", {"ageing_seconds": 4e7}, "ageing_seconds"),
    ],
)
async def test_a_bad_share_is_refused(client: httpx.AsyncClient, place: str, body: dict[str, Any], field: str) -> None:
    refused = await client.put(f"/limits/{place}", json=body)
    assert refused.status_code == 422
    assert field in refused.text
    # By the name that the body has.
    assert refused.json()["field"] == next(iter(body))


async def test_what_makes_jobs_carries_key_and_cost(client: httpx.AsyncClient) -> None:
    terms = {"kind": "chat", "limit_key": "tenant-7", "cost": 3}
    made = await client.post("/schedules", json={"name": "s", "every_seconds": 60, **terms})
    assert made.status_code == 201, made.text
    assert (made.json()["limit_key"], made.json()["cost"]) == ("tenant-7", 3)
    run = (await client.post("/schedules/s/run")).json()
    job = (await client.get(f"/jobs/{run['id']}")).json()
    assert (job["limit_key"], job["cost"]) == ("tenant-7", 3)

    key = {"limit_key": "user:{{ variables.user }}", "variables": {"user": "string"}}
    made = await client.post("/templates", json={"name": "t", **terms, **key})
    assert (made.json()["limit_key"], made.json()["cost"]) == ("user:{{ variables.user }}", 3)
    job = (await client.post("/templates/t/submit", json={"variables": {"user": "ann"}})).json()
    assert (job["limit_key"], job["cost"]) == ("user:ann", 3)
    job = (
        await client.post("/templates/t/submit", json={"variables": {"user": "a"}, "limit_key": "b", "cost": 9})
    ).json()
    assert (job["limit_key"], job["cost"]) == ("b", 9)

    batch = await client.post("/batches", json={"on_all": terms})
    assert (batch.json()["on_all"]["limit_key"], batch.json()["on_all"]["cost"]) == ("tenant-7", 3)


@pytest.mark.parametrize(
    ("terms", "field"), [({"limit_key": ""}, "limit_key"), ({"cost": -1}, "cost"), ({"cost": "3"}, "cost")]
)
async def test_what_makes_jobs_refuses_a_bad_key_or_cost(
    client: httpx.AsyncClient, terms: dict[str, Any], field: str
) -> None:
    for place, body in (
        ("/schedules", {"name": "s", "every_seconds": 60, "kind": "k"}),
        ("/templates", {"name": "t", "kind": "k"}),
        ("/batches", {}),
    ):
        sent = {"on_all": {"kind": "k", **terms}} if place == "/batches" else {**body, **terms}
        refused = await client.post(place, json=sent)
        assert refused.status_code == 422, place
        assert field in refused.text


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        ("select queue_pg.pause_queue('default')", "paused"),
        ("select queue_pg.pause_limit('key', 'a')", "limit_paused"),
        (
            "select queue_pg.set_limit('key', 'a', rate => 1, per => 'day')",
            "limit_rate",
        ),
        ("update queue_pg.jobs set state = 'scheduled', run_at = now() + interval '1 h'", "scheduled"),
        ("select 1", "no_worker"),
        ("select queue_pg.register_worker('w', 'h', 1, '0', '{default}', '{k}', 0)", "no_free_slot"),
        ("select queue_pg.register_worker('w', 'h', 1, '0', '{default}', '{k}', 2)", "next"),
    ],
)
async def test_a_job_says_each_cause(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection, arrange: str, reason: str
) -> None:
    job = (await client.post("/jobs", json={"kind": "k", "limit_key": "a"})).json()["id"]
    await conn.execute(arrange)
    if reason == "limit_rate":
        await conn.execute("select queue_pg.claim('w', '{default}')")
        job = (await client.post("/jobs", json={"kind": "k", "limit_key": "a"})).json()["id"]
    found = (await client.get(f"/jobs/{job}")).json()
    RelatedJobAnswer.model_validate(found)
    assert found["waiting"]["reason"] == reason
