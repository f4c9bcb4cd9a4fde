"""Tasks of clusters."""

from __future__ import annotations

from typing import Any

from brain.payloads import CollectMetrics, DelegateTask, HealthCheck, ScaleCluster, SpawnAgent
from queue_pg import current_job


async def spawn_agent(payload: SpawnAgent) -> dict[str, Any]:
    """The same job always starts the same agent, so that a second run of it does no harm."""
    agent = payload.agent_def
    agent_id = f"{payload.cluster_id}-{agent.name}-{current_job().job_id.hex[-8:]}"
    return {"agent_id": agent_id, "role": agent.role, "capabilities": agent.capabilities}


async def scale_cluster(payload: ScaleCluster) -> dict[str, Any]:
    return {"cluster_id": payload.cluster_id, "workers": payload.target_workers}


async def delegate_task(payload: DelegateTask) -> dict[str, Any]:
    return {"cluster_id": payload.cluster_id, "delegated_to": payload.target_role, "task": payload.task}


async def health_check(payload: HealthCheck) -> dict[str, Any]:
    return {"cluster_id": payload.cluster_id, "status": "healthy"}


async def collect_metrics(payload: CollectMetrics) -> dict[str, Any]:
    job = current_job()
    return {"cluster_id": payload.cluster_id, "metrics": {"attempt": job.attempt, "queue": job.queue}}
