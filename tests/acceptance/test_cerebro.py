"""Cerebro's lines of the acceptance list."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from queue_pg.testing import Clock

MESSAGES = [{"role": "user", "content": "What is a queue?"}]


async def submit(api: httpx.AsyncClient, **fields: Any) -> str:
    answer = await api.post("/submit_job", json={"messages": MESSAGES, "metadata": {"priority": "normal"}, **fields})
    assert answer.status_code == 201, answer.text
    job_id: str = answer.json()["job_id"]
    return job_id


async def take(api: httpx.AsyncClient) -> dict[str, Any]:
    answer = await api.post("/get_job")
    assert answer.status_code == 200, answer.text
    taken: dict[str, Any] = answer.json()
    return taken


async def status(api: httpx.AsyncClient, job_id: str) -> str:
    found: str = (await api.get(f"/get_result/{job_id}")).json()["status"]
    return found


async def test_submit_get_job_complete_job_get_result_round_trip(api: httpx.AsyncClient) -> None:
    submitted = (await api.post("/submit_job", json={"messages": MESSAGES, "metadata": {"priority": "normal"}})).json()
    job_id = submitted["job_id"]
    assert submitted == {"job_id": job_id, "id": job_id, "status": "queued"}
    assert await status(api, job_id) == "queued"
    taken = await take(api)
    assert (taken["job_id"], taken["messages"]) == (job_id, MESSAGES)
    assert taken["metadata"] == {"priority": "normal"}
    assert await status(api, job_id) == "processing"
    done = await api.post("/complete_job", json={"job_id": job_id, "result": {"answer": "A line."}})
    assert done.status_code == 200
    found = (await api.get(f"/get_result/{job_id}")).json()
    assert (found["status"], found["result"]) == ("completed", {"answer": "A line."})


async def test_complete_job_marks_a_job_failed(api: httpx.AsyncClient) -> None:
    job_id = await submit(api)
    await take(api)
    done = await api.post("/complete_job", json={"job_id": job_id, "status": "failed", "error": "no model"})
    assert (done.status_code, done.json()["status"]) == (200, "failed")
    assert (await api.get(f"/get_result/{job_id}")).json()["error"]["message"] == "no model"


async def test_jobs_come_first_in_first_out(api: httpx.AsyncClient) -> None:
    submitted = [await submit(api) for _ in range(5)]
    assert [(await take(api))["job_id"] for _ in submitted] == submitted


async def test_get_job_of_an_idle_queue_is_204_after_block_timeout(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_BLOCK_TIMEOUT", "0.3")
    async with serve() as api:
        before = time.monotonic()
        answer = await api.post("/get_job")
        took = time.monotonic() - before
    assert (answer.status_code, answer.content) == (204, b"")
    assert 0.3 <= took < 5, "not the default of 5 s, and not at once"


async def test_get_job_is_answered_within_block_timeout_when_a_job_comes(serve: Any) -> None:
    async with serve(block_timeout_seconds=60) as api:
        waiting = asyncio.create_task(take(api))
        job_id = await submit(api)
        async with asyncio.timeout(30):
            assert (await waiting)["job_id"] == job_id


async def test_expired_job_timeout_returns_the_job_to_the_queue(
    serve: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_JOB_TIMEOUT", "20")
    async with serve(block_timeout_seconds=60) as api:
        job_id = await submit(api)
        first = await take(api)
        clock.advance(10)
        assert await status(api, job_id) == "processing"
        clock.advance(12)
        second = await take(api)
        assert (second["job_id"], second["messages"]) == (job_id, MESSAGES)
        assert second["lease_token"] > first["lease_token"]


async def test_late_complete_job_after_expiry_is_refused_with_409_and_no_retry_header(serve: Any, clock: Clock) -> None:
    async with serve(block_timeout_seconds=60) as api:
        job_id = await submit(api)
        first = await take(api)
        clock.advance(31)
        second = await take(api)
        late = {"job_id": job_id, "lease_token": first["lease_token"], "result": "late"}
        refused = await api.post("/complete_job", json=late)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (409, "false")
        assert refused.json()["code"] == "lease_lost"
        assert await status(api, job_id) == "processing", "the second worker's lease is untouched"
        good = {"job_id": job_id, "lease_token": second["lease_token"], "result": "in time"}
        assert (await api.post("/complete_job", json=good)).status_code == 200
        refused = await api.post("/complete_job", json=late)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (409, "false")
        assert (await api.get(f"/get_result/{job_id}")).json()["result"] == "in time"


async def test_late_complete_job_without_a_token_is_refused_too(api: httpx.AsyncClient, clock: Clock) -> None:
    job_id = await submit(api)
    await take(api)
    clock.advance(31)
    refused = await api.post("/complete_job", json={"job_id": job_id, "result": "late"})
    assert (refused.status_code, refused.headers["x-should-retry"]) == (409, "false")
    assert (await api.get(f"/get_result/{job_id}")).json()["result"] is None


async def test_ttl_removes_the_result(
    serve: Any, clock: Clock, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_TTL_SECONDS", "3600")
    async with serve() as api:
        job_id = await submit(api)
        await take(api)
        assert (await api.post("/complete_job", json={"job_id": job_id, "result": 1})).status_code == 200
        kept = await conn.execute("select retain_until - finished_at from queue_pg.finished_jobs")
        assert [row[0].total_seconds() for row in await kept.fetchall()] == [3600]
        clock.advance(3500)
        assert (await api.get(f"/get_result/{job_id}")).json()["result"] == 1
        clock.advance(200)
        gone = await api.get(f"/get_result/{job_id}")
        assert (gone.status_code, gone.json()["code"]) == (404, "job_not_found")
    clock.advance(3600)
    while True:
        maintained = await (await conn.execute("select again_seconds from queue_pg.maintain_history()")).fetchone()
        if maintained is not None and maintained[0] > 0:
            break
    left = await conn.execute("select count(*) from queue_pg.finished_jobs")
    assert await left.fetchone() == (0,), "and the row is gone, not only hidden"


async def test_stats_counts_each_state(api: httpx.AsyncClient) -> None:
    for _ in range(4):
        await submit(api)
    done, bad, running = [await take(api) for _ in range(3)]
    await api.post("/complete_job", json={"job_id": done["job_id"], "result": 1})
    await api.post("/complete_job", json={"job_id": bad["job_id"], "status": "failed"})
    cancelled = await submit(api)
    await api.post(f"/jobs/{cancelled}/cancel")
    parent = {"depends_on": [running["job_id"]]}
    assert (await api.post("/jobs", json={"kind": "chat", "queue": "cerebro", **parent})).status_code == 201
    assert (await api.post("/jobs", json={"kind": "chat", "delay_seconds": 600})).status_code == 201
    stats = (await api.get("/stats")).json()
    states = ("scheduled", "waiting", "queued", "running", "processing", "completed", "failed", "cancelled")
    assert {state: stats[state] for state in states} == dict.fromkeys(states, 1)
    assert stats["total"] == 7, "`processing` is Cerebro's word for `running`"


def test_env_file_is_read(dsn: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines = [f"DATABASE_URL={dsn}", f"API_PORT={port}", "REDIS_JOB_TIMEOUT=77", "REDIS_BLOCK_TIMEOUT=0"]
    (tmp_path / ".env").write_text("\n".join([*lines, "JOB_TTL_SECONDS=120", ""]))
    serving = subprocess.Popen(
        [sys.executable, "-m", "queue_pg.cli", "serve"], cwd=tmp_path, env=os.environ, stderr=subprocess.PIPE, text=True
    )
    try:
        assert serving.stderr is not None
        assert serving.stderr.readline().startswith(f"API on http://127.0.0.1:{port}")
        with psycopg.connect(dsn, autocommit=True) as connection:
            # Whoever maintains stores what is for the whole instance, a moment after the process is there.
            known = "select retention = '120 s' from queue_pg.settings"
            while connection.execute(known).fetchone() != (True,):
                assert serving.poll() is None
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as api:
            assert api.post("/get_job").status_code == 204
            api.post("/submit_job", json={"messages": MESSAGES})
            before = datetime.now(UTC)
            taken = api.post("/get_job").json()
            lease = datetime.fromisoformat(taken["lease_expires_at"]) - before
            assert 70 < lease.total_seconds() < 100
            assert api.post("/complete_job", json={"job_id": taken["job_id"]}).status_code == 200
        with psycopg.connect(dsn) as connection:
            [row] = connection.execute("select retain_until - finished_at from queue_pg.finished_jobs").fetchall()
            assert row[0].total_seconds() == 120
    finally:
        serving.terminate()
        serving.communicate(timeout=60)
    assert serving.returncode == 0
