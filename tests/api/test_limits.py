"""/limits, and why a job waits."""

from __future__ import annotations

from typing import Any

import httpx
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
