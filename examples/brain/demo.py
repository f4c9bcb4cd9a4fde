"""`python -m brain.demo`: one task of each type, done by two workers of the pool that it starts and stops."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

from brain.client import TaskQueue

TASKS: list[tuple[str, dict[str, Any]]] = [
    ("spawn_agent", {"cluster_id": "c1", "agent_def": {"role": "scout", "name": "ann", "capabilities": ["search"]}}),
    ("scale_cluster", {"cluster_id": "c1", "target_workers": 3}),
    ("delegate_task", {"cluster_id": "c1", "task": {"find": "water"}, "target_role": "scout"}),
    ("health_check", {"cluster_id": "c1"}),
    ("collect_metrics", {"cluster_id": "c1"}),
    ("run_mission", {"mission_id": "m1", "steps": ["go", "look", "return"]}),
]


async def push_and_wait() -> None:
    queue = await TaskQueue().connect()
    try:
        ids = {kind: await queue.push_task(kind, payload) for kind, payload in TASKS}
        for kind, task_id in ids.items():
            print(kind, await queue.get_task_result(task_id, timeout=30))
    finally:
        await queue.close()


def main() -> None:
    pools = [subprocess.Popen([sys.executable, "-m", "brain.worker", pool]) for pool in ("cluster", "mission")]
    try:
        asyncio.run(push_and_wait())
    finally:
        for pool in pools:
            pool.terminate()
        for pool in pools:
            pool.wait()


if __name__ == "__main__":
    main()
