"""BRAiN's lines of the acceptance list; its pool is the package in examples/brain."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from in_process import running, soon
from queue_pg_workers import heartbeat
from worker_process import told_pipe, worker_process

from queue_pg import Queue, waiting
from queue_pg.tasks import Tasks

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

CLUSTER, MISSION = "brain:cluster_tasks", "brain:mission_tasks"
AGENT = {"role": "scout", "name": "ann", "capabilities": ["search"]}
TYPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # a payload that fits, and one that does not
    "spawn_agent": ({"cluster_id": "c", "agent_def": AGENT}, {"cluster_id": "c", "agent_def": {"role": "scout"}}),
    "scale_cluster": ({"cluster_id": "c", "target_workers": 3}, {"cluster_id": "c", "target_workers": "many"}),
    "delegate_task": ({"cluster_id": "c", "task": {"find": 1}, "target_role": "scout"}, {"cluster_id": "c"}),
    "health_check": ({"cluster_id": "c"}, {}),
    "collect_metrics": ({"cluster_id": "c"}, {"cluster_id": 5}),
}


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[Any]:
    """BRAiN's client."""
    from brain import TaskQueue

    client = await TaskQueue(dsn).connect()
    yield client
    await client.close()


def cluster_tasks() -> Tasks:
    from brain.workers import cluster_tasks

    return cluster_tasks


@pytest.mark.parametrize("kind", TYPES)
async def test_a_valid_payload_of_each_of_the_five_types_is_done(dsn: str, pool: Any, kind: str) -> None:
    async with running(dsn, cluster_tasks(), queues=(CLUSTER,)):
        result = await pool.get_task_result(await pool.push_task(kind, TYPES[kind][0]), timeout=20)
    assert result["success"] is True


@pytest.mark.parametrize("kind", TYPES)
async def test_an_invalid_payload_of_each_of_the_five_types_is_refused(
    dsn: str, pool: Any, api: httpx.AsyncClient, kind: str
) -> None:
    bad = TYPES[kind][1]
    with pytest.raises(ValueError, match=f"payload of {kind}"):
        await pool.push_task(kind, bad)
    # Past the client it is stored, and refused where it would run: no handler sees it, and no retry is wasted on it.
    body = {"kind": kind, "queue": CLUSTER, "payload": bad}
    job_id = (await api.post("/jobs", json=body)).json()["id"]
    async with running(dsn, cluster_tasks(), queues=(CLUSTER,)):
        job = (await api.get(f"/jobs/{job_id}?wait=20")).json()
    assert (job["state"], job["attempt"], job["error"]["code"]) == ("failed", 1, "payload_invalid")
    assert job["error"]["field"].startswith("payload")


async def test_an_unknown_type_is_rejected(dsn: str, pool: Any, api: httpx.AsyncClient) -> None:
    with pytest.raises(ValueError, match="unknown task type 'self_destruct'"):
        await pool.push_task("self_destruct", {})
    async with running(dsn, cluster_tasks(), queues=(CLUSTER,)):
        refused = await api.post("/jobs", json={"kind": "self_destruct", "queue": CLUSTER, "payload": {}})
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_kind")
    assert (await api.get("/jobs")).json()["jobs"] == []


@pytest.mark.parametrize("body", [b"", b"{", b'{"kind": "health_check",}', b"\xff{}", b'{"kind": NaN}'])
async def test_malformed_json_is_rejected(api: httpx.AsyncClient, body: bytes) -> None:
    refused = await api.post("/jobs", content=body, headers={"content-type": "application/json"})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_job")
    assert (await api.get("/jobs")).json()["jobs"] == []


async def test_two_queues_are_served_by_their_own_workers(dsn: str, pool: Any, api: httpx.AsyncClient) -> None:
    from brain.workers import mission_tasks

    cluster = await pool.push_task("health_check", {"cluster_id": "c"})
    mission = await pool.push_task("run_mission", {"mission_id": "m", "steps": ["go"]})
    async with running(dsn, cluster_tasks(), queues=(CLUSTER,)):
        assert (await pool.get_task_result(cluster, timeout=20))["success"]
        assert (await api.get(f"/queues/{MISSION}")).json()["queued"] == 1, "the other pool's"
    async with running(dsn, mission_tasks, queues=(MISSION,)):
        assert (await pool.get_task_result(mission, timeout=20))["done"] == ["go: done"]


async def test_the_semaphore_is_never_exceeded(dsn: str, queue: Queue, conn: psycopg.AsyncConnection) -> None:
    tasks, most, now = Tasks(), 0, 0
    full, go_on = asyncio.Event(), asyncio.Event()

    @tasks.task
    async def work(n: int) -> int:
        nonlocal most, now
        now += 1
        most = max(most, now)
        if now == 3:
            full.set()
        try:
            await go_on.wait()
            await asyncio.sleep(0)
            return n
        finally:
            now -= 1

    jobs = [await queue.submit("work", {"n": n}) for n in range(30)]
    async with running(dsn, tasks, concurrency=3):
        await soon(full.wait())
        count = "select count(*) from queue_pg.jobs where state = 'running'"
        leased = await (await conn.execute(count)).fetchone()
        go_on.set()
        ended = [await queue.wait(job.id, timeout=20) for job in jobs]
    assert [job.result for job in ended] == list(range(30))
    assert (most, leased) == (3, (3,)), "all slots were used, and never more; nor is a job leased that no slot has"


async def test_the_heartbeat_row_comes_at_least_every_30_s(dsn: str, queue: Queue, pool: Any) -> None:
    assert heartbeat.MAX_INTERVAL_SECONDS <= 30
    bad = await queue.submit("scale_cluster", {"target_workers": "many"}, queue=CLUSTER)
    # A third of the lease is the interval, so that the test need not wait 10 s for a heartbeat.
    async with running(dsn, cluster_tasks(), queues=(CLUSTER,), worker_id="brain-1", lease_seconds=1.0):
        await pool.get_task_result(await pool.push_task("health_check", {"cluster_id": "c"}), timeout=20)
        await queue.wait(bad.id, timeout=20)

        async def told() -> Any:
            while (row := await pool.worker("brain-1")) is None or (row.processed, row.failed) != (2, 1):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            return row

        async def later(than: Any) -> Any:
            while (row := await pool.worker("brain-1")).heartbeat_at <= than:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            return row

        first = await soon(told())
        second = await soon(later(first.heartbeat_at))
        assert (second.id, second.active, second.processed, second.failed) == ("brain-1", 0, 2, 1)
        assert [worker.id for worker in await pool.active_workers()] == ["brain-1"]
    assert await pool.active_workers() == []


async def test_get_task_result_with_timeout_is_woken_by_notify(
    dsn: str, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the re-check that makes up for lost notifications, only a notification can end a wait that has begun.
    monkeypatch.setattr(waiting, "RECHECK_SECONDS", 3600.0)
    task_id = await pool.push_task("health_check", {"cluster_id": "c"})
    waiter = asyncio.create_task(pool.get_task_result(task_id, timeout=60))
    async with Queue(dsn) as worker:
        assert await asyncio.to_thread(pool._queue.wakeups.wait_listening, 20)
        followed = "select exists (select from queue_pg.jobs where id = %s and watched)"
        async with asyncio.timeout(20), worker.connection() as connection:
            while (await (await connection.execute(followed, [task_id])).fetchone()) != (True,):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        [claimed] = await worker.claim("w", [CLUSTER])
        await worker.complete(claimed.id, claimed.lease_token, {"success": True})
    assert (await asyncio.wait_for(waiter, 20))["success"] is True


async def test_get_task_result_gives_up_after_its_timeout(pool: Any) -> None:
    task_id = await pool.push_task("health_check", {"cluster_id": "c"})
    assert await pool.get_task_result(task_id, timeout=0.05) is None


async def test_sigterm_drains(dsn: str, queue: Queue, tmp_path: Path) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)
    async with (
        told_pipe(tmp_path) as pipe,
        worker_process(dsn, "telling_tasks", "--concurrency", "1", pipe=pipe) as worker,
    ):
        running_job = await queue.submit("until_file", {"path": str(held)})
        await worker.told("began")
        waiting_job = await queue.submit("quick")
        worker.signal(signal.SIGTERM)
        await worker.logged("is stopping, 1 jobs are running")
        assert (await queue.get(running_job.id)).state == "running", "it is not cut off"
        await asyncio.to_thread(held.write_text, "done in peace")
        assert await worker.ended() == 0
    ended = await queue.get(running_job.id)
    assert (ended.state, ended.result, ended.attempt) == ("completed", "done in peace", 1)
    assert (await queue.get(waiting_job.id)).state == "queued", "nothing new was begun"
    assert await queue.workers() == []


def test_the_container_runs_as_1000() -> None:
    steps = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
    last_stage = steps[max(n for n, step in enumerate(steps) if step.startswith("FROM")) :]
    assert [step for step in last_stage if step.startswith("USER")] == ["USER 1000:1000"]
    after = last_stage[last_stage.index("USER 1000:1000") :]
    assert not any(step.startswith(("RUN", "COPY")) for step in after)
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    for service in compose["services"].values():
        assert "user" not in service
        assert not service.get("privileged")
        assert "docker.sock" not in str(service.get("volumes", ""))
