"""A worker pool for clusters of agents, after BRAiN's: a client, typed tasks on two queues, worker classes.

    queue = TaskQueue()
    await queue.connect()
    task_id = await queue.push_task("health_check", {"cluster_id": "c1"})
    result = await queue.get_task_result(task_id, timeout=10)

Workers: `python -m brain.worker cluster` and `python -m brain.worker mission`, as many as you like.
"""

from __future__ import annotations

from brain.client import TaskQueue
from brain.workers import BaseWorker, ClusterWorker, MissionWorker

__all__ = ["BaseWorker", "ClusterWorker", "MissionWorker", "TaskQueue"]
