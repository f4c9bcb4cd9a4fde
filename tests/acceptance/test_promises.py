"""What the founding systems promised without code behind it. Grafana's dashboard: test_monitoring.py."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import psycopg
import pytest
from in_process import running

from queue_pg import Queue, load_test
from queue_pg.load_test import LoadPlan
from queue_pg.tasks import Tasks
from queue_pg.testing import drain

ROOT = Path(__file__).parents[2]


def test_the_image_is_not_root() -> None:
    users = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("USER")]
    assert users == ["USER 1000:1000"]


async def test_there_is_a_gui(dsn: str, api: httpx.AsyncClient) -> None:
    async with running(dsn):
        job = (await api.post("/jobs", json={"kind": "chat", "payload": {"prompt": "Hello"}})).json()
        await api.get(f"/jobs/{job['id']}?wait=20")
    browser = {"accept": "text/html"}
    for path in (
        "/",
        "/console/jobs",
        f"/console/jobs/{job['id']}",
        "/console/new",
        "/console/queues",
        "/console/workers",
    ):
        page = await api.get(path, headers=browser)
        assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html"), path
    assert job["id"] in (await api.get("/console/jobs", headers=browser)).text
    assert "You asked: Hello" in (await api.get(f"/console/jobs/{job['id']}", headers=browser)).text


def test_there_is_a_load_test() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--list"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert {"latency_load", "http_single", "bulk", "drain"} <= {line.split()[0] for line in listed.stdout.splitlines()}


async def test_a_running_service_is_put_under_load(dsn: str, api: httpx.AsyncClient) -> None:
    job = {"kind": "chat", "payload": {"prompt": "Hello"}}
    plan = LoadPlan(url=str(api.base_url), job=job, rate=50, seconds=1, connections=8, wait_seconds=60)
    async with running(dsn, concurrency=32):
        report = await asyncio.to_thread(load_test.run, plan)
    assert (report.accepted, report.errors, report.ends) == (50, {}, {"completed": 50})
    assert 0 < report.submit["p50"] <= report.submit["max"]
    assert 0 < report.waited["p50"] <= report.done["p50"]


async def test_there_is_a_view_of_dead_letters_and_they_can_be_replayed(
    dsn: str, api: httpx.AsyncClient, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    tasks, broken = Tasks(), True

    @tasks.task(max_attempts=1)
    async def deliver(n: int) -> int:
        if broken:
            raise ConnectionError("the other side is down")
        return n

    jobs = [await queue.submit("deliver", {"n": n}, max_attempts=1) for n in range(3)]
    await drain(queue, tasks)
    dead = (await api.get("/jobs?state=failed")).json()["jobs"]
    assert {job["id"] for job in dead} == {str(job.id) for job in jobs}
    assert {job["error"]["code"] for job in dead} == {"ConnectionError"}
    seen = await (await conn.execute("select kind, code, message from queue_pg.failures")).fetchall()
    assert seen == [("deliver", "ConnectionError", "the other side is down")] * 3
    broken = False
    for job in dead:
        assert (await api.post(f"/jobs/{job['id']}/retry")).json()["state"] == "queued"
    await drain(queue, tasks)
    assert (await api.get("/jobs?state=failed")).json()["jobs"] == []
    assert [(await queue.get(job.id)).result for job in jobs] == [0, 1, 2]


async def test_the_test_mode_is_the_real_thing_on_a_dsn(dsn: str, queue: Queue) -> None:
    # Not a queue in memory that behaves otherwise: applications test with `drain` on any Postgres.
    tasks = Tasks()

    @tasks.task
    async def double(n: int) -> int:
        return 2 * n

    job = await queue.submit("double", {"n": 21})
    [ran] = await drain(queue, tasks)
    assert (ran.id, ran.result, ran.lease_token) == (job.id, 42, 1)


@pytest.mark.parametrize("choice", ["testcontainers:postgres:14", "nonsense"])
def test_tests_take_their_postgres_from_a_container_or_a_dsn(choice: str) -> None:
    # Collecting touches no server, so it tells only whether the choice is understood.
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/library/test_arrays.py"],
        cwd=ROOT,
        env={**os.environ, "QUEUE_PG_TEST_POSTGRES": choice},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if choice == "nonsense":
        assert collected.returncode == 4
        assert "neither embedded, testcontainers:<image> nor a DSN" in collected.stderr
    else:
        assert collected.returncode == 0, collected.stdout + collected.stderr
