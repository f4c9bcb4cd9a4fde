"""/schedules, and `scheduled_for`."""

from __future__ import annotations

from typing import Any

import httpx
import psycopg
import pytest
from queue_pg_api import answers
from queue_pg_api.schedule_schemas import PreviewAnswer, ScheduleAnswer, SchedulePage

REPORT = {"name": "report", "kind": "chat", "cron": "30 9 * * mon-fri", "time_zone": "Europe/Berlin"}


async def test_the_life_of_a_schedule(client: httpx.AsyncClient) -> None:
    made = await client.post("/schedules", json={**REPORT, "payload": {"day": "{{ schedule.fire_at }}"}, "tags": ["t"]})
    assert made.status_code == 201
    assert made.headers["location"] == "/schedules/report"
    schedule = ScheduleAnswer.model_validate(made.json())
    assert (schedule.name, schedule.cron, schedule.time_zone, schedule.tags) == (
        "report", "30 9 * * mon-fri", "Europe/Berlin", ["t"],
    )  # fmt: skip
    assert len(schedule.next_fires) == 5
    assert all(fire.minute == 30 and fire.hour in (7, 8) for fire in schedule.next_fires)
    assert (await client.get("/schedules/report")).json() == made.json()
    assert SchedulePage.model_validate((await client.get("/schedules")).json()).schedules == [schedule]

    paused = await client.post("/schedules/report/pause")
    assert (paused.status_code, paused.json()["paused"], paused.json()["next_fires"]) == (200, True, [])
    ran = await client.post("/schedules/report/run")
    assert ran.status_code == 201
    job = answers.JobAnswer.model_validate(ran.json())
    assert ran.headers["location"] == f"/jobs/{job.id}"
    assert job.metadata["schedule"] == {"name": "report", "fire_at": job.payload["day"]}
    resumed = await client.post("/schedules/report/resume")
    assert resumed.json()["next_fires"] == made.json()["next_fires"]
    assert resumed.json()["last_job_id"] == str(job.id)

    gone = await client.delete("/schedules/report")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await client.get("/schedules")).json() == {"schedules": [], "next_cursor": None}


async def test_put_makes_and_changes(client: httpx.AsyncClient) -> None:
    body = {"kind": "chat", "every_seconds": 90, "jitter_seconds": 2.5, "missed": "all", "priority": "high"}
    made = await client.put("/schedules/a%20b", json=body)
    assert (made.status_code, made.headers["location"]) == (201, "/schedules/a%20b")
    found = made.json()
    assert (found["every_seconds"], found["jitter_seconds"], found["missed"], found["priority"]) == (90, 2.5, "all", 10)
    assert (await client.put("/schedules/a%20b", json=body)).json() == found
    await client.post("/schedules/a%20b/pause")
    changed = await client.put("/schedules/a%20b", json={"kind": "chat", "at": "2999-01-01T00:00:00+01:00"})
    assert (changed.status_code, changed.json()["id"]) == (200, found["id"])
    assert (changed.json()["at"], changed.json()["every_seconds"]) == ("2998-12-31T23:00:00Z", None)
    assert changed.json()["paused"]
    again = await client.put(
        "/schedules/a%20b", json={"kind": "chat", "at": "2999-01-01T00:00:00+01:00", "paused": False}
    )
    assert again.json()["next_fires"] == ["2998-12-31T23:00:00Z"]


async def test_a_name_that_is_taken(client: httpx.AsyncClient) -> None:
    await client.post("/schedules", json=REPORT)
    refused = await client.post("/schedules", json={**REPORT, "cron": "@daily"})
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (409, "schedule_exists", "name")
    assert (await client.get("/schedules/report")).json()["cron"] == REPORT["cron"]


async def test_pages(client: httpx.AsyncClient) -> None:
    for name in ("c", "a", "b"):
        await client.post("/schedules", json={**REPORT, "name": name})
    first = (await client.get("/schedules", params={"limit": 2})).json()
    assert ([each["name"] for each in first["schedules"]], first["next_cursor"]) == (["a", "b"], "b")
    second = (await client.get("/schedules", params={"limit": 2, "cursor": "b"})).json()
    assert ([each["name"] for each in second["schedules"]], second["next_cursor"]) == (["c"], None)


async def test_a_preview(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/schedules/preview",
        json={"cron": "30 2 * * *", "time_zone": "Europe/Berlin", "after": "2026-03-28T12:00:00Z", "count": 2},
    )
    PreviewAnswer.model_validate(answer.json())
    assert answer.json() == {"next_fires": ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]}
    assert (await client.get("/schedules")).json()["schedules"] == []
    # Not taken from a schedule of that name.
    assert (await client.put("/schedules/preview", json={"kind": "chat", "every_seconds": 5})).status_code == 201
    assert (await client.get("/schedules/preview")).json()["every_seconds"] == 5


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"cron": None}, "cron", "invalid_job"),
    ({"every_seconds": 60}, "cron", "invalid_job"),
    ({"cron": "0 25 * * *"}, "cron", "invalid_job"),
    ({"cron": "x" * 301}, "cron", "invalid_request"),
    ({"cron": None, "every_seconds": 0.5}, "every_seconds", "invalid_request"),
    ({"cron": None, "every_seconds": "60"}, "every_seconds", "invalid_request"),
    ({"cron": None, "at": "tomorrow"}, "at", "invalid_request"),
    ({"cron": None, "at": "2030-01-01T00:00:00"}, "at", "invalid_request"),
    ({"time_zone": "Nowhere/Else"}, "time_zone", "invalid_job"),
    ({"missed": "sometimes"}, "missed", "invalid_request"),
    ({"jitter_seconds": -1}, "jitter_seconds", "invalid_request"),
    ({"name": "a/b"}, "name", "invalid_job"),
    ({"name": ""}, "name", "invalid_request"),
    ({"kind": ""}, "kind", "invalid_request"),
    ({"kind": None}, "kind", "invalid_request"),
    ({"kind": "chatt"}, "kind", "unknown_kind"),
    ({"payload": {"x": "{{ schedule.what }}"}}, "payload", "invalid_job"),
    ({"metadata": {"x": "y" * 70_000}}, "metadata", "too_large"),
    ({"crom": "@daily"}, "crom", "unknown_field"),
    ({"ends_at": "2020-01-01T00:00:00Z", "starts_at": "2021-01-01T00:00:00Z"}, "ends_at", "invalid_job"),
]


@pytest.mark.parametrize(("change", "field", "code"), WRONG, ids=lambda value: str(value)[:40])
async def test_refusals_name_the_field(
    client: httpx.AsyncClient, change: dict[str, Any], field: str, code: str
) -> None:
    refused = await client.post("/schedules", json={**REPORT, **change})
    assert (refused.status_code, refused.json().get("field"), refused.json()["code"]) == (422, field, code)
    assert (await client.get("/schedules")).json()["schedules"] == []


async def test_what_says_when_is_named_as_the_body_has_it(client: httpx.AsyncClient) -> None:
    for path, more in (("/schedules", REPORT), ("/schedules/preview", {})):
        for when in ({"cron": None}, {"cron": "@daily", "every_seconds": 60}):
            refused = await client.post(path, json={**more, **when})
            assert refused.json()["detail"] == "cron: give exactly one of cron, every_seconds and at"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/run")],
)
async def test_no_such_schedule(client: httpx.AsyncClient, method: str, path: str) -> None:
    refused = await client.request(method, f"/schedules/nothing{path}")
    assert (refused.status_code, refused.json()["code"]) == (404, "schedule_not_found")


async def test_a_wrong_method_is_told_the_right_ones(client: httpx.AsyncClient) -> None:
    refused = await client.patch("/schedules/report")
    assert refused.status_code == 405
    assert {"GET", "PUT", "DELETE"} <= set(refused.headers["allow"].split(", "))


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_pages_of_other_origins_may_not_write(client: httpx.AsyncClient, method: str) -> None:
    refused = await client.request(method, "/schedules/report", headers={"origin": "https://elsewhere.example"})
    assert (refused.status_code, refused.json()["code"]) == (403, "cross_origin")


async def test_without_the_database(make_client: Any) -> None:
    async with make_client("postgresql://nobody@127.0.0.1:1/none?connect_timeout=1") as client:
        for method, path, body in (
            ("GET", "/schedules", None),
            ("PUT", "/schedules/report", {"kind": "chat", "every_seconds": 60}),
            ("DELETE", "/schedules/report", None),
        ):
            refused = await client.request(method, path, json=body)
            assert (refused.status_code, refused.json()["detail"]) == (503, "Database unavailable")


async def test_what_sql_stored_is_shown(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    await conn.execute(
        "insert into queue_pg.schedules (name, kind, every, payload) values ('odd', 'k', '1 hour', '[1e5000]')"
    )
    found = (await client.get("/schedules/odd")).json()
    ScheduleAnswer.model_validate(found)
    assert set(found["payload"]) == {"unreadable", "text"}


async def test_scheduled_for_is_run_at(client: httpx.AsyncClient) -> None:
    when = "2999-01-01T02:00:00+02:00"
    job = (await client.post("/jobs", json={"kind": "chat", "scheduled_for": when})).json()
    assert (job["state"], job["run_at"]) == ("scheduled", "2999-01-01T00:00:00Z")
    now = (await client.post("/jobs", json={"kind": "chat", "scheduled_for": None})).json()
    assert now["state"] == "queued"
    many = await client.post("/jobs", json=[{"kind": "chat", "scheduled_for": when}])
    assert (await client.get(f"/jobs/{many.json()['jobs'][0]['id']}")).json()["run_at"] == "2999-01-01T00:00:00Z"
    for other in ({"run_at": when}, {"delay_seconds": 5}):
        refused = await client.post("/jobs", json={"kind": "chat", "scheduled_for": when, **other})
        assert refused.status_code == 422
        assert refused.json()["field"] in ("scheduled_for", "delay_seconds")
