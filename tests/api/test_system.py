"""Probes, queues, workers, statistics; shapes that all routes share; the description of it all."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import psycopg
import pytest
from queue_pg_api import answers, schemas
from queue_pg_api.app import all_endpoints
from queue_pg_api.docs_page import ASSETS
from starlette.applications import Starlette
from starlette.routing import Route

from queue_pg.errors import QueuePgError


async def test_probes(client: httpx.AsyncClient) -> None:
    health = await client.get("/health")
    assert health.json() == {"status": "healthy", "service": "queue-pg", "database": "connected"}
    assert (await client.get("/livez")).json() == {"status": "alive"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    assert (await client.head("/livez")).status_code == 200


async def test_settings_hold_for_the_first_request(make_client: Any, dsn: str, conn: psycopg.AsyncConnection) -> None:
    async with make_client(dsn, job_ttl_seconds=3_600):
        # Nobody has had the time to do it in the background.
        kept = await conn.execute("select retention = '1 hour' from queue_pg.settings")
        assert await kept.fetchone() == (True,)


async def test_not_ready_without_the_schema(make_client: Any, empty_dsn: str) -> None:
    async with make_client(empty_dsn) as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_migrated")
        assert "queue-pg migrate" in answer.json()["detail"]
        assert (await client.get("/health")).json()["database"] == "connected"
        submitted = await client.post("/jobs", json={"kind": "chat"})
        assert (submitted.status_code, submitted.json()["code"]) == (503, "schema")


async def test_queues_and_statistics_count_each_state(client: httpx.AsyncClient) -> None:
    for queue in ("default", "default", "other"):
        await client.post("/jobs", json={"kind": "chat", "queue": queue})
    await client.post("/jobs", json={"kind": "chat", "delay_seconds": 60})
    [claimed] = (await client.post("/jobs/claim", json={"worker": "w"})).json()["jobs"]

    queues = answers.QueuesAnswer.model_validate((await client.get("/queues")).json()).queues
    assert [(each.queue, each.queued, each.running, each.scheduled) for each in queues] == [
        ("default", 1, 1, 1),
        ("other", 1, 0, 0),
    ]
    assert (await client.get("/queues/other")).json()["queued"] == 1
    stats = answers.StatsAnswer.model_validate((await client.get("/stats")).json())
    assert (stats.queued, stats.running, stats.processing, stats.scheduled, stats.total) == (2, 1, 1, 1, 4)
    await client.post(f"/jobs/{claimed['id']}/cancel")
    assert (await client.get("/stats")).json()["cancelled"] == 1


async def test_pause_until_and_resume(client: httpx.AsyncClient) -> None:
    paused = await client.post("/queues/a%2Fb/pause", json={"until": "2999-01-01T00:00:00Z"})
    assert paused.status_code == 200
    queue = answers.QueueAnswer.model_validate(paused.json())
    assert (queue.queue, queue.paused) == ("a/b", True)
    assert paused.json()["paused_until"] == "2999-01-01T00:00:00Z"
    assert (await client.get("/queues/a/b")).json() == paused.json()
    resumed = (await client.post("/queues/a/b/resume")).json()
    assert (resumed["paused"], resumed["paused_until"]) == (False, None)


@pytest.mark.parametrize("name", ["absent", "%00", "%ed%a0%80", "x" * 201])
async def test_unknown_queues(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/queues/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "queue_not_found")
    assert (await client.post(f"/queues/{name}/resume")).status_code == 404


async def test_bad_pauses_are_named(client: httpx.AsyncClient) -> None:
    answer = await client.post("/queues/default/pause", json={"until": "tomorrow"})
    assert (answer.status_code, answer.json()["field"]) == (422, "until")


async def test_workers(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    assert (await client.get("/workers")).json() == {"workers": []}
    await conn.execute("select queue_pg.register_worker('w1', 'host', 7, '1.0', '{default}', '{chat}', 4)")
    [worker] = answers.WorkersAnswer.model_validate((await client.get("/workers")).json()).workers
    assert (worker.id, worker.capacity, worker.kinds, worker.live) == ("w1", 4, ["chat"], True)
    assert (await client.get("/stats")).json()["workers"] == 1


# ---- unknown kinds --------------------------------------------------------------------------------------------------


async def test_a_kind_like_a_known_one_is_a_typo(client: httpx.AsyncClient) -> None:
    answer = await client.post("/jobs", json={"kind": "caht"})
    assert answer.status_code == 422
    refusal = answer.json()
    assert (refusal["code"], refusal["field"], refusal["suggestions"]) == ("unknown_kind", "kind", ["chat"])
    assert "'chat'" in refusal["detail"]


async def test_a_kind_nobody_knows_waits_for_its_worker(client: httpx.AsyncClient) -> None:
    assert (await client.post("/jobs", json={"kind": "transcode"})).status_code == 201


async def test_a_queue_with_workers_takes_no_kind_they_lack(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection
) -> None:
    await conn.execute("select queue_pg.register_worker('w1', 'host', 7, '1.0', '{served}', '{chat}', 4)")
    assert (await client.post("/jobs", json={"kind": "transcode", "queue": "served"})).status_code == 422
    assert (await client.post("/jobs", json={"kind": "transcode", "queue": "other"})).status_code == 201


@pytest.mark.parametrize(("policy", "status"), [("accept", 201), ("refuse", 422)])
async def test_the_rule_can_be_set(make_client: Any, policy: str, status: int) -> None:
    async with make_client(unknown_kinds=policy) as client:
        assert (await client.post("/jobs", json={"kind": "transcode"})).status_code == status
        assert (await client.post("/jobs", json={"kind": "chat"})).status_code == 201


# ---- refusals that no route makes -----------------------------------------------------------------------------------


async def test_unknown_paths(client: httpx.AsyncClient) -> None:
    for path in ("/nothing", "/jobs/", "/jobs/a/b", "/docs/../app.py", "/docs/other.js"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path


async def test_wrong_methods_name_the_right_ones(client: httpx.AsyncClient) -> None:
    answer = await client.delete("/jobs")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    assert (await client.get("/submit_job")).status_code == 405


async def test_a_fault_of_ours_is_a_bare_500(
    client: httpx.AsyncClient, app: Starlette, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for fault in (RuntimeError("secret detail"), QueuePgError("secret detail")):

        async def stats(fault: Exception = fault) -> None:
            raise fault

        monkeypatch.setattr(app.state.service.queue, "stats", stats)
        answer = await client.get("/stats")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        assert "secret" not in answer.text
        assert "secret detail" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("path", ["/stats", "/livez", "/queues", "/workers", "/health"])
async def test_unknown_parameters_are_named(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(f"{path}?pretty=1")
    assert (answer.status_code, answer.json()["field"]) == (422, "pretty")


# ---- the description ------------------------------------------------------------------------------------------------


async def test_every_route_is_described(client: httpx.AsyncClient, app: Starlette) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    served = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in app.routes
        if isinstance(route, Route) and not route.path.startswith(("/docs", "/console", "/robots.txt"))
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == served


async def test_the_description_holds_together(client: httpx.AsyncClient) -> None:
    text = (await client.get("/openapi.json")).text
    document = json.loads(text)
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert references <= set(document["components"]["schemas"])
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    for operation in operations:
        assert operation["summary"]
        assert len(operation["summary"]) < 100
        assert operation["tags"]
    job = document["components"]["schemas"]["JobAnswer"]
    assert set(job["required"]) == set(answers.JobAnswer.model_fields)
    submission = document["components"]["schemas"]["SubmitBody"]
    assert submission["required"] == ["kind"]
    assert submission["additionalProperties"] is False
    [wait, vocab] = document["paths"]["/jobs/{id}"]["get"]["parameters"][1:]
    assert (wait["name"], wait["schema"]["maximum"]) == ("wait", schemas.MAX_WAIT_SECONDS)
    assert (vocab["name"], vocab["required"]) == ("vocab", False)


def test_every_endpoint_says_what_it_refuses() -> None:
    for endpoint in all_endpoints():
        if endpoint.body is not schemas.NoBody or endpoint.raw_body:
            assert {403, 422, 503} <= set(endpoint.refuses), endpoint.path
        if "{id}" in endpoint.path:
            assert 404 in endpoint.refuses, endpoint.path


async def test_the_docs_page_brings_its_own_assets(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|https?://", page.text)
    for name in re.findall(r'"docs/([^"]+)"', page.text):
        asset = await client.get(f"/docs/{name}")
        assert (asset.status_code, len(asset.content) > 0) == (200, True)
        assert asset.headers["x-content-type-options"] == "nosniff"
        assert name in ASSETS


async def test_the_root_leads_to_the_docs(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


async def test_answers_are_data_and_not_kept(client: httpx.AsyncClient) -> None:
    job = (await client.post("/jobs", json={"kind": "chat", "payload": "<script>alert(1)</script>"})).json()
    answer = await client.get(f"/jobs/{job['id']}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
