"""BRAiN's worker pool, as the example package does it: its client, its five types, two queues, worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
PATIENCE_SECONDS = 30

VALID: dict[str, dict[str, Any]] = {
    "spawn_agent": {"cluster_id": "c", "agent_def": {"role": "scout", "name": "ann", "capabilities": ["search"]}},
    "scale_cluster": {"cluster_id": "c", "target_workers": 100},
    "delegate_task": {"cluster_id": "c", "task": {"find": "water"}, "target_role": "scout"},
    "health_check": {"cluster_id": "c"},
    "collect_metrics": {"cluster_id": "c"},
}
INVALID: list[tuple[str, Any, str]] = [
    ("spawn_agent", {"cluster_id": "c"}, "agent_def"),
    ("spawn_agent", {"cluster_id": "c", "agent_def": {"role": "scout"}}, "agent_def.name"),
    ("scale_cluster", {"cluster_id": "c", "target_workers": 0}, "target_workers"),
    ("delegate_task", {"cluster_id": "c", "task": [], "target_role": "scout"}, "task"),
    ("health_check", {"cluster_id": ""}, "cluster_id"),
    ("collect_metrics", {"cluster_id": "c", "more": 1}, "more"),
    ("collect_metrics", "c", "collect_metrics"),
]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
async def tasks(dsn: str) -> AsyncIterator[Any]:
    from brain import TaskQueue

    queue = await TaskQueue(dsn).connect()
    yield queue
    await queue.close()


@contextmanager
def worker(pool: str, dsn: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a worker process of a pool while the block lasts; it must end well when it is asked to."""
    process = subprocess.Popen(
        [sys.executable, "-m", "brain.worker", pool],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES), "DATABASE_URL": dsn, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.log = process.communicate(timeout=PATIENCE_SECONDS)[1]  # type: ignore[attr-defined]
    assert process.returncode == 0


async def test_every_type_is_done_by_its_worker(tasks: Any, dsn: str, conn: psycopg.AsyncConnection[Any]) -> None:
    ids = {kind: await tasks.push_task(kind, payload) for kind, payload in VALID.items()}
    mission = await tasks.push_task("run_mission", {"mission_id": "m", "steps": ["go"]})
    with worker("cluster", dsn, WORKER_ID="brain-1", WORKER_CONCURRENCY="2") as process:
        results = {kind: await tasks.get_task_result(task_id, PATIENCE_SECONDS) for kind, task_id in ids.items()}
        assert all(result["success"] for result in results.values())
        assert results["scale_cluster"]["workers"] == 100
        assert results["delegate_task"]["task"] == {"find": "water"}
        # The other queue is another pool's.
        assert await tasks.get_task_result(mission, timeout=0.1) is None
        [running] = await tasks.active_workers()
        assert (running.id, running.capacity, running.queues) == ("brain-1", 2, ["brain:cluster_tasks"])
        assert await tasks.worker("brain-1") is not None
        assert await tasks.worker("brain-2") is None
    for task_id in ids.values():
        assert f"Processing task {task_id}" in process.log  # type: ignore[attr-defined]
        assert f"Task {task_id} completed" in process.log  # type: ignore[attr-defined]
    with worker("mission", dsn):
        result = await tasks.get_task_result(mission, PATIENCE_SECONDS)
        assert result == {"success": True, "mission_id": "m", "done": ["go: done"]}
    kept = await conn.execute(
        "select distinct extract(epoch from retain_until - finished_at) from queue_pg.finished_jobs"
    )
    assert await kept.fetchall() == [(3600,)]


async def test_a_waiting_client_is_woken_by_the_end(tasks: Any, dsn: str) -> None:
    with ExitStack() as pool:
        pool.enter_context(worker("cluster", dsn))
        assert (await tasks.get_task_result(await tasks.push_task("health_check", {"cluster_id": "c"}), 30))["success"]


@pytest.mark.parametrize(("kind", "payload", "named"), INVALID)
async def test_a_payload_that_does_not_fit_is_refused(tasks: Any, kind: str, payload: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        await tasks.push_task(kind, payload)


async def test_an_unknown_type_is_refused(tasks: Any) -> None:
    with pytest.raises(ValueError, match="unknown task type 'self_destruct'; there are spawn_agent"):
        await tasks.push_task("self_destruct", {})


async def test_what_somebody_else_stored_badly_fails_without_a_retry(
    tasks: Any, dsn: str, conn: psycopg.AsyncConnection[Any]
) -> None:
    stored = await conn.execute(
        "select queue_pg.submit('scale_cluster', '{\"target_workers\": \"many\"}', queue => 'brain:cluster_tasks')"
    )
    [task_id] = await stored.fetchone() or [None]
    with worker("cluster", dsn):
        result = await tasks.get_task_result(str(task_id), PATIENCE_SECONDS)
    assert result["success"] is False
    assert "cluster_id" in result["error"]


async def test_no_result_in_time_and_no_such_task(tasks: Any) -> None:
    task_id = await tasks.push_task("health_check", {"cluster_id": "c"})
    assert await tasks.get_task_result(task_id, timeout=0.05) is None
    assert await tasks.get_task_result("01a201d7-08b0-71f7-bf5c-5b7c0f1213cf", timeout=5) is None


def test_the_demo_runs(dsn: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "brain.demo"],
        env={**os.environ, "DATABASE_URL": dsn},
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*VALID, "run_mission"]
    assert all("'success': True" in line for line in lines)


def test_a_pool_that_is_not_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "brain.worker", "kitchen"], cwd=EXAMPLES, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (2, "error: say which pool: cluster or mission\n")
