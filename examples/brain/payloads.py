"""What each type of task takes. Whatever does not fit is refused before it is stored, and again before it runs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=200)]


class Payload(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class AgentDefinition(Payload):
    """An agent to be started."""

    role: Name
    name: Name
    capabilities: list[Name] = Field(default_factory=list[str], max_length=100)


class SpawnAgent(Payload):
    """Start an agent in a cluster."""

    cluster_id: Name
    agent_def: AgentDefinition


class ScaleCluster(Payload):
    """Have so many workers in a cluster."""

    cluster_id: Name
    target_workers: int = Field(ge=1, le=100)


class DelegateTask(Payload):
    """Give a task to whoever has a role."""

    cluster_id: Name
    task: dict[str, Any]
    target_role: Name


class HealthCheck(Payload):
    """Ask how a cluster is."""

    cluster_id: Name


class CollectMetrics(Payload):
    """Ask what a cluster has done."""

    cluster_id: Name


class RunMission(Payload):
    """Work towards a goal, step by step."""

    mission_id: Name
    steps: list[Name] = Field(min_length=1, max_length=100)


CLUSTER_QUEUE = "brain:cluster_tasks"
MISSION_QUEUE = "brain:mission_tasks"

TYPES: dict[str, tuple[str, type[Payload]]] = {
    "spawn_agent": (CLUSTER_QUEUE, SpawnAgent),
    "scale_cluster": (CLUSTER_QUEUE, ScaleCluster),
    "delegate_task": (CLUSTER_QUEUE, DelegateTask),
    "health_check": (CLUSTER_QUEUE, HealthCheck),
    "collect_metrics": (CLUSTER_QUEUE, CollectMetrics),
    "run_mission": (MISSION_QUEUE, RunMission),
}
