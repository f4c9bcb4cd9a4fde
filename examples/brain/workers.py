"""Worker classes: each serves one queue and routes its tasks to handlers by type."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeAlias

from brain.handlers import cluster, mission
from brain.payloads import CLUSTER_QUEUE, MISSION_QUEUE, TYPES, Payload
from queue_pg.tasks import Task, Tasks, current_job

log = logging.getLogger("brain")

Handler: TypeAlias = Callable[[Any], Awaitable[dict[str, Any]]]


class BaseWorker:
    """Names a queue and a handler for every type of task in it. A handler returns what is added to `success`."""

    queue: ClassVar[str]
    handlers: ClassVar[dict[str, Handler]]

    def __init__(self) -> None:
        self.tasks = Tasks()
        for kind, handler in self.handlers.items():
            queue, model = TYPES[kind]
            if queue != self.queue:
                raise TypeError(f"{type(self).__name__} serves {self.queue}, and {kind!r} belongs to {queue}")
            self.tasks.add(Task(fn=_routed(model, handler), kind=kind, queue=queue, payload_model=model))


class ClusterWorker(BaseWorker):
    """Looks after clusters of agents."""

    queue = CLUSTER_QUEUE
    handlers: ClassVar[dict[str, Handler]] = {
        "spawn_agent": cluster.spawn_agent,
        "scale_cluster": cluster.scale_cluster,
        "delegate_task": cluster.delegate_task,
        "health_check": cluster.health_check,
        "collect_metrics": cluster.collect_metrics,
    }


class MissionWorker(BaseWorker):
    """Runs missions."""

    queue = MISSION_QUEUE
    handlers: ClassVar[dict[str, Handler]] = {"run_mission": mission.run_mission}


def _routed(model: type[Payload], handler: Handler) -> Callable[..., Awaitable[dict[str, Any]]]:
    async def run(**fields: Any) -> dict[str, Any]:
        task_id = current_job().job_id
        log.info("Processing task %s", task_id)
        found = await handler(model.model_construct(**fields))
        log.info("Task %s completed", task_id)
        return {"success": True, **found}

    return run


# What `queue-pg worker brain.workers:cluster_tasks` names.
cluster_tasks = ClusterWorker().tasks
mission_tasks = MissionWorker().tasks
