"""X-Request-ID: echoed, kept with the jobs, and in every line of the log."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from queue_pg import logs

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
GIVEN = {"x-request-id": "order-17"}


async def test_it_is_echoed_or_made(client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez", headers=GIVEN)).headers["x-request-id"] == "order-17"
    made = {(await client.get("/livez")).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in made)
    assert (await client.get("/no/such/path", headers=GIVEN)).headers["x-request-id"] == "order-17"
    assert (await client.get("/console", headers={**GIVEN, "accept": "text/html"})).headers[
        "x-request-id"
    ] == "order-17"


@pytest.mark.parametrize("value", ["", "a b", "a" * 129, "<script>", "ü", '"', "-x", "a\tb"])
async def test_one_that_cannot_be_passed_on_is_replaced(client: httpx.AsyncClient, value: str) -> None:
    answer = await client.post("/jobs", json={"kind": "chat"}, headers={"x-request-id": value.encode()})
    assert answer.status_code == 201
    assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
    assert answer.json()["metadata"] == {}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/jobs", {"json": {"kind": "chat", "metadata": {"a": 1}}}),
        ("/jobs", {"json": [{"kind": "chat"}, {"kind": "chat"}]}),
        ("/jobs", {"json": [{"kind": "chat", "key": "a"}, {"kind": "chat", "depends_on": ["a"]}]}),
        ("/jobs", {"content": b'{"kind":"chat"}\n', "headers": {"content-type": "application/x-ndjson"}}),
        ("/submit_job", {"json": {"messages": [{"role": "user", "content": "hi"}]}}),
        ("/tasks", {"json": {"name": "n", "prompt": "p"}}),
    ],
)
async def test_it_is_kept_with_the_jobs(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await client.post(path, **{**body, "headers": {**body.get("headers", {}), **GIVEN}})
    assert answer.status_code in (200, 201), answer.text
    jobs = (await client.get("/jobs")).json()["jobs"]
    assert jobs
    for job in jobs:
        stored = (await client.get(f"/jobs/{job['id']}")).json()
        assert stored["metadata"]["request_id"] == "order-17"
    assert path != "/jobs" or "a" not in body.get("json", {}) or stored["metadata"]["a"] == 1


async def test_it_is_kept_with_the_job_of_a_template(client: httpx.AsyncClient) -> None:
    made = await client.post("/templates", json={"name": "ask", "kind": "chat", "payload": {"prompt": "x"}})
    assert made.status_code == 201, made.text
    job = (await client.post("/jobs", json={"template": "ask"}, headers=GIVEN)).json()
    assert job["metadata"]["request_id"] == "order-17"
    assert job["metadata"]["template"]["name"] == "ask"


async def test_a_submission_may_have_one_of_its_own(client: httpx.AsyncClient) -> None:
    job = {"kind": "chat", "metadata": {"request_id": "mine"}}
    assert (await client.post("/jobs", json=job, headers=GIVEN)).json()["metadata"] == {"request_id": "mine"}


async def test_lines_of_a_request_have_its_ids(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from queue_pg_api.routes import queues

    caplog.handler.setFormatter(logs.formatter("json"))
    monkeypatch.setattr(queues, "queue_json", lambda _: 1 / 0)
    await client.post("/jobs", json={"kind": "chat"})
    with caplog.at_level(logging.ERROR):
        answer = await client.get("/queues", headers={**GIVEN, "traceparent": TRACEPARENT})
    assert answer.status_code == 500
    # Maintenance writes too: that the tests' server does not sync, for one.
    [line] = [line for line in map(json.loads, caplog.text.splitlines()) if line["level"] == "ERROR"]
    assert (line["request_id"], line["trace_id"]) == ("order-17", TRACEPARENT.split("-")[1])
    assert "ZeroDivisionError" in line["exception"]


def test_the_service_logs_json_when_told_to(dsn: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "queue-pg"), "serve", "--port", "0", "--access-log"]
    environment = {**os.environ, "DATABASE_URL": dsn, "LOG_FORMAT": "JSON"}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split()[2].rstrip(",")
            assert httpx.get(f"{url}/livez", headers=GIVEN).status_code == 200
        finally:
            process.terminate()
            _, written = process.communicate(timeout=60)
    # Maintenance writes too: that the tests' server does not sync, for one.
    lines = [json.loads(line) for line in written.splitlines() if line != "Stopped."]
    [line] = [line for line in lines if line["logger"] == "uvicorn.access"]
    assert (line["level"], line["request_id"]) == ("INFO", "order-17")
    assert '"GET /livez HTTP/1.1" 200' in line["message"]
