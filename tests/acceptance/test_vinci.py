"""Vinci4D's lines of the acceptance list."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from in_process import running, soon
from model_server import ModelServer, Step, model_server
from queue_pg_workers.providers.mock import answer_to
from queue_pg_workers.providers.openai import OpenAIProvider
from worker_process import worker_process

from queue_pg import schema
from queue_pg.testing import Clock

ROOT = Path(__file__).parents[2]
HELLO = {"kind": "chat", "payload": {"prompt": "Hello"}}


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with model_server() as server:
        yield server


@pytest.fixture
async def provider(model: ModelServer) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(api_key="sk-test", base_url=model.base_url, model="gpt-4o-mini")
    yield provider
    await provider.aclose()


# -- now or later ------------------------------------------------------------------------------------------------------


async def test_a_job_without_scheduled_for_runs_at_once(dsn: str, api: httpx.AsyncClient) -> None:
    job = (await api.post("/jobs", json={**HELLO, "scheduled_for": None})).json()
    assert job["state"] == "queued"
    async with running(dsn):
        assert (await api.get(f"/jobs/{job['id']}?wait=20")).json()["state"] == "completed"


async def test_a_job_with_a_future_scheduled_for_waits_for_it(dsn: str, api: httpx.AsyncClient, clock: Clock) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    later = (await api.post("/jobs", json={**HELLO, "scheduled_for": due.isoformat()})).json()
    assert (later["state"], datetime.fromisoformat(later["run_at"])) == ("scheduled", due)
    now = (await api.post("/jobs", json=HELLO)).json()
    async with running(dsn):
        assert (await api.get(f"/jobs/{now['id']}?wait=20")).json()["state"] == "completed"
        assert (await api.get(f"/jobs/{later['id']}")).json()["state"] == "scheduled"
        clock.advance(3601)
        done = (await api.get(f"/jobs/{later['id']}?wait=20")).json()
    assert done["state"] == "completed"
    assert datetime.fromisoformat(done["started_at"]) >= due


async def test_many_who_claim_at_once_start_a_due_job_once(api: httpx.AsyncClient, clock: Clock) -> None:
    # Vinci's separate scheduler is gone: any process may promote, and claims decide who runs it.
    for n in range(20):
        await api.post("/jobs", json={"kind": "k", "delay_seconds": 60, "payload": {"n": n}})
    clock.advance(61)
    # Twenty between them at most, so that there is something for each, however little another one finds.
    answers = await asyncio.gather(
        *(api.post("/jobs/claim", json={"worker": f"w{n}", "max": 4, "wait": 20}) for n in range(5))
    )
    claimed = [job["id"] for answer in answers for job in answer.json()["jobs"]]
    while len(claimed) < 20:
        last = await api.post("/jobs/claim", json={"worker": "last", "max": 20, "wait": 20})
        assert last.json()["jobs"], "all of them come"
        claimed += [job["id"] for job in last.json()["jobs"]]
    assert len(claimed) == len(set(claimed)) == 20
    assert (await api.get("/stats")).json()["running"] == 20


# -- cancel ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["scheduled", "queued"])
async def test_cancel_before_it_runs(dsn: str, api: httpx.AsyncClient, clock: Clock, state: str) -> None:
    body = {**HELLO, "delay_seconds": 60} if state == "scheduled" else HELLO
    job = (await api.post("/jobs", json=body)).json()
    assert job["state"] == state
    assert (await api.post(f"/jobs/{job['id']}/cancel")).json()["state"] == "cancelled"
    clock.advance(61)
    async with running(dsn):
        other = (await api.post("/jobs", json=HELLO)).json()
        assert (await api.get(f"/jobs/{other['id']}?wait=20")).json()["state"] == "completed"
    found = (await api.get(f"/jobs/{job['id']}")).json()
    assert (found["state"], found["attempt"]) == ("cancelled", 0), "it never ran"


async def test_cancel_of_a_running_job_closes_the_socket_of_the_call_in_flight(
    dsn: str, api: httpx.AsyncClient, model: ModelServer, provider: OpenAIProvider
) -> None:
    model.script(Step(behaviour="hang"))
    async with running(dsn, provider=provider) as worker:
        assert await asyncio.to_thread(worker.wakeups.wait_listening, 20)
        job = (await api.post("/jobs", json=HELLO)).json()
        await soon(model.received.get())
        assert (await api.post(f"/jobs/{job['id']}/cancel")).json()["state"] == "cancelled"
        await soon(model.disconnects.get())
    found = (await api.get(f"/jobs/{job['id']}")).json()
    assert (found["state"], found["result"], found["error"]["code"]) == ("cancelled", None, "cancelled")
    assert len(model.requests) == 1, "nobody asks again"


async def test_cancel_of_what_has_ended_is_refused(dsn: str, api: httpx.AsyncClient) -> None:
    job = (await api.post("/jobs", json=HELLO)).json()
    async with running(dsn):
        await api.get(f"/jobs/{job['id']}?wait=20")
    refused = await api.post(f"/jobs/{job['id']}/cancel")
    assert (refused.status_code, refused.json()["state"]) == (409, "completed")


# -- retries and models ------------------------------------------------------------------------------------------------


async def test_a_running_job_goes_back_to_the_queue_until_its_attempts_are_exhausted(
    dsn: str, api: httpx.AsyncClient, model: ModelServer, provider: OpenAIProvider, clock: Clock
) -> None:
    model.script(*[Step(behaviour="status", status=500, error={"message": "no"})] * 2)
    job = (await api.post("/jobs", json={**HELLO, "max_attempts": 2})).json()
    async with running(dsn, provider=provider):
        await soon(model.received.get())
        # submitted, started, and the third is what this waits for.
        page = await api.get(f"/jobs/{job['id']}/events?after=2&wait=20", headers={"accept": "application/json"})
        assert [(event["type"], event["data"]["attempt"]) for event in page.json()["events"]] == [("failed", 1)]
        clock.advance(3600)
        found = (await api.get(f"/jobs/{job['id']}?wait=20")).json()
    assert (found["state"], found["attempt"], found["error"]["code"]) == ("failed", 2, "upstream_error")


async def test_the_mock_provider_answers_by_default(dsn: str, api: httpx.AsyncClient) -> None:
    job = (await api.post("/jobs", json=HELLO)).json()
    async with worker_process(dsn):
        found = (await api.get(f"/jobs/{job['id']}?wait=50")).json()
    assert (found["state"], found["result"]["provider"]) == ("completed", "mock")
    assert found["result"]["text"] == answer_to("Hello")


# -- migrations --------------------------------------------------------------------------------------------------------


def upgrade(dsn: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "queue_pg.cli", "migrate"],
        env={**os.environ, "DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


async def works(serve: Any, dsn: str, *earlier: str) -> None:
    """The schema is this code's, and a service and a worker on it do what was there and what is new."""
    with schema.connect(dsn) as connection:
        assert schema.verify(connection) == []
    async with serve(database_url=dsn) as api, running(dsn):
        job = (await api.post("/jobs", json=HELLO)).json()
        for job_id in (job["id"], *earlier):
            assert (await api.get(f"/jobs/{job_id}?wait=20")).json()["state"] == "completed"


async def test_migrations_go_up_from_empty(empty_dsn: str, serve: Any) -> None:
    assert "0001_initial" in upgrade(empty_dsn)
    await works(serve, empty_dsn)
    assert "0001_initial" not in upgrade(empty_dsn), "the second time there is nothing to do"


NUMBERED = [migration for migration in schema.migrations() if migration.name[0].isdigit()]


@pytest.mark.parametrize("applied", [1, len(NUMBERED) - 1], ids=["from the first", "from N-1"])
async def test_migrations_go_up_with_the_jobs_that_are_there(empty_dsn: str, serve: Any, applied: int) -> None:
    with schema.connect(empty_dsn) as connection, connection.transaction():
        connection.execute("set local check_function_bodies = off")
        connection.execute(schema._text("migration_table"))
        for migration in NUMBERED[:applied]:
            schema._apply(connection, migration)
        insert = "insert into queue_pg.jobs (kind, payload) values ('chat', '{\"prompt\": \"earlier\"}') returning id"
        earlier = [str(row[0]) for _ in range(3) for row in connection.execute(insert).fetchall()]
    upgrade(empty_dsn)
    await works(serve, empty_dsn, *earlier)


# -- what people look at -----------------------------------------------------------------------------------------------


async def test_docs_show_every_route(api: httpx.AsyncClient) -> None:
    page = await api.get("/docs")
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert "swagger-ui" in page.text
    described = (await api.get("/openapi.json")).json()
    assert {"/health", "/jobs", "/jobs/{id}", "/jobs/{id}/chain", "/jobs/{id}/retry", "/jobs/{id}/cancel"} <= set(
        described["paths"]
    )


# -- tasks -------------------------------------------------------------------------------------------------------------


async def test_a_task_now_and_one_for_later(dsn: str, api: httpx.AsyncClient, clock: Clock) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    now = (await api.post("/tasks", json={"name": "a", "prompt": "Hello", "scheduled_for": None})).json()
    later = (await api.post("/tasks", json={"name": "b", "prompt": "Hello", "scheduled_for": due.isoformat()})).json()
    assert (now["status"], later["status"]) == ("queued", "scheduled")
    assert datetime.fromisoformat(later["scheduled_for"]) == due
    async with running(dsn):
        assert (await api.get(f"/jobs/{now['id']}?wait=20")).json()["state"] == "completed"
        clock.advance(3601)
        assert (await api.get(f"/jobs/{later['id']}?wait=20")).json()["state"] == "completed"
    assert (await api.get(f"/tasks/{later['id']}")).json()["output"]["text"] == answer_to("Hello")


async def test_limit_offset_and_parent_filter(dsn: str, api: httpx.AsyncClient) -> None:
    tasks = [(await api.post("/tasks", json={"prompt": str(number)})).json()["id"] for number in range(4)]
    page = (await api.get("/tasks", params={"limit": 2, "offset": 1})).json()["tasks"]
    assert [each["id"] for each in page] == [tasks[2], tasks[1]]
    async with running(dsn):
        await api.get(f"/jobs/{tasks[0]}?wait=20")
    chained = (await api.post(f"/tasks/{tasks[0]}/chain", json={"prompt": "x"})).json()["id"]
    found = (await api.get("/tasks", params={"parent_task_id": tasks[0]})).json()["tasks"]
    assert [(each["id"], each["parent_task_id"]) for each in found] == [(chained, tasks[0])]


async def test_chain_only_a_completed_parent_with_its_output_in_the_prompt(
    dsn: str, api: httpx.AsyncClient, model: ModelServer, provider: OpenAIProvider
) -> None:
    parent = (await api.post("/tasks", json={"prompt": "Write"})).json()["id"]
    early = await api.post(f"/tasks/{parent}/chain", json={"prompt": "Shorten:"})
    assert early.status_code == 409
    model.script(Step(words=["A long text"]), Step(words=["Short"]))
    async with running(dsn, provider=provider):
        await api.get(f"/jobs/{parent}?wait=20")
        chained = (await api.post(f"/tasks/{parent}/chain", json={"prompt": "Shorten:"})).json()
        assert (await api.get(f"/jobs/{chained['id']}?wait=20")).json()["result"]["text"] == "Short"
    assert model.requests[1].body["messages"] == [{"role": "user", "content": "Shorten:\n\nA long text"}]


async def test_retry_only_failed(api: httpx.AsyncClient) -> None:
    async def retry(task: str) -> httpx.Response:
        return await api.post(f"/tasks/{task}/retry", json={"max_attempts": 5})

    task = (await api.post("/tasks", json={"prompt": "x", "max_attempts": 1})).json()["id"]
    assert (await retry(task)).status_code == 409
    [job] = (await api.post("/jobs/claim", json={"worker": "w"})).json()["jobs"]
    assert (await retry(task)).status_code == 409
    await api.post(f"/jobs/{task}/fail", json={"lease_token": job["lease_token"], "error": "no"})
    again = await retry(task)
    assert (again.status_code, again.json()["status"], again.json()["max_attempts"]) == (200, "queued", 5)
    await api.post(f"/tasks/{task}/cancel")
    assert (await retry(task)).status_code == 409
