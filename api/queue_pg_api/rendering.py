"""Write jobs, claims and queues as JSON. Shapes are in `schemas.py`; tests validate these against those."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from queue_pg.attempt_model import Attempt
from queue_pg.batch_model import Batch
from queue_pg.gathering import StoredJob
from queue_pg.models import (
    Artifact,
    ClaimedJob,
    Dependencies,
    Dependency,
    Job,
    JobState,
    LogLine,
    QueueStats,
    Step,
    StoredEvent,
    WhyWaiting,
    WorkerInfo,
)
from queue_pg.payloads import Unreadable, error_object
from queue_pg.submission import CheckedJob
from queue_pg.task_model import TaskInfo
from queue_pg.template_model import JobTemplate
from queue_pg_api.answers import CerebroStatus, ZbrainState
from queue_pg_api.schemas import ErrorDetails


def timestamp(value: datetime | None) -> str | None:
    """Write RFC 3339 in UTC, ending in Z."""
    if value is None:
        return None
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def text_or_none(value: UUID | None) -> str | None:
    return None if value is None else str(value)


def json_or_mark(value: Any) -> Any:
    """Show stored JSON that Python cannot hold, such as 1e5000, by its first characters and the reason."""
    if isinstance(value, Unreadable):
        return {"unreadable": value.reason, "text": value.text[:1_000]}
    return value


def job_summary(job: Job) -> dict[str, Any]:
    """Render a job as listed."""
    return {
        "id": str(job.id),
        "kind": job.kind,
        "queue": job.queue,
        "org": job.org,
        "state": job.state.value,
        "priority": job.priority,
        "error": json_or_mark(job.error),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "created_at": timestamp(job.created_at),
        "run_at": timestamp(job.run_at),
        "started_at": timestamp(job.started_at),
        "finished_at": timestamp(job.finished_at),
        "expires_at": timestamp(job.expires_at),
        "timeout_seconds": job.timeout.total_seconds(),
        "unique_key": job.unique_key,
        "limit_key": job.limit_key,
        "cost": job.cost,
        "tags": job.tags,
        "metadata": json_or_mark(job.metadata),
        "worker_id": job.worker_id,
        "parent_id": text_or_none(job.parent_id),
        "batch_id": text_or_none(job.batch_id),
        "traceparent": job.traceparent,
        "lease_expires_at": timestamp(job.lease_expires_at),
        "rerun_of": text_or_none(job.rerun_of),
        "cached": job.cached_from is not None,
        "cached_from": text_or_none(job.cached_from),
    }


def job_json(job: Job) -> dict[str, Any]:
    """Render a whole job."""
    return {**job_summary(job), "payload": json_or_mark(job.payload), "result": json_or_mark(job.result)}


def task_summary(task: TaskInfo) -> dict[str, Any]:
    """Render a task as listed."""
    return {
        "task_id": str(task.id),
        "id": str(task.id),
        "name": task.name,
        "description": task.description,
        "prompt": task.prompt,
        "status": task.status.value,
        "priority": task.job.priority,
        "created_at": timestamp(task.job.created_at),
        "scheduled_for": timestamp(task.scheduled_for),
        "subtasks": task.subtasks,
        "subtask_ids": task.subtask_ids,
        "error": json_or_mark(task.job.error),
        "attempts": task.job.attempt,
        "max_attempts": task.job.max_attempts,
        "parent_task_id": text_or_none(task.parent_task_id),
    }


def task_json(task: TaskInfo) -> dict[str, Any]:
    """Render a whole task."""
    return {**task_summary(task), "output": json_or_mark(task.output)}


def dependencies_json(found: Dependencies) -> dict[str, Any]:
    """Render parents and children."""
    return {
        "parents": [_dependency(each) for each in found.parents],
        "children": [_dependency(each) for each in found.children],
        "parents_count": found.parents_count,
        "children_count": found.children_count,
    }


def _dependency(one: Dependency) -> dict[str, Any]:
    return {
        "id": str(one.id),
        "name": one.name,
        "on_unsuccessful": one.on_unsuccessful,
        "outcome": one.outcome,
        "state": one.state,
    }


def waiting_json(found: WhyWaiting) -> dict[str, Any]:
    """Render why a job does not run."""
    return {
        "reason": found.reason,
        "message": found.detail,
        "until": timestamp(found.until),
        "holders": [] if found.held_by is None else found.held_by.split(", "),
    }


def new_job_json(job: CheckedJob, stored: StoredJob) -> str:
    """Render a job that was stored just now as job_json would, without reading it back."""
    terms, payload = job
    created_at = stored.created_at
    run_at = terms.run_at or created_at
    if terms.delay_seconds is not None:
        run_at = created_at + timedelta(seconds=terms.delay_seconds)
    timeout = stored.timeout if terms.timeout_seconds is None else timedelta(seconds=terms.timeout_seconds)
    rest = json.dumps(
        {
            "id": str(stored.id),
            "kind": terms.kind,
            "queue": terms.queue,
            "org": terms.org,
            "state": "scheduled" if run_at > created_at else "queued",
            "priority": terms.priority,
            "error": None,
            "attempt": 0,
            "max_attempts": stored.max_attempts if terms.max_attempts is None else terms.max_attempts,
            "created_at": timestamp(created_at),
            "run_at": timestamp(run_at),
            "started_at": None,
            "finished_at": None,
            "expires_at": timestamp(terms.expires_at),
            "timeout_seconds": timeout.total_seconds(),
            "unique_key": None,
            "limit_key": terms.limit_key,
            "cost": terms.cost,
            "tags": terms.tags,
            "worker_id": None,
            "parent_id": None,
            "batch_id": None,
            "traceparent": terms.traceparent,
            "lease_expires_at": None,
            "rerun_of": None,
            "cached": False,
            "cached_from": None,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return f'{rest[:-1]},"metadata":{terms.metadata},"payload":{payload.decode()},"result":null}}'


def step_json(step: Step) -> dict[str, Any]:
    """Render a step of a job."""
    return {
        "name": step.name,
        "type": step.type,
        "result": json_or_mark(step.result),
        "timed_out": step.timed_out,
        "until": timestamp(step.until),
        "attempt": step.attempt,
        "begun_at": timestamp(step.begun_at),
        "finished_at": timestamp(step.finished_at),
    }


def claimed_json(job: ClaimedJob) -> str:
    """Render a claimed job as JSON text.

    Payload and metadata are passed on as the text that Postgres gave: decoding and encoding would cost time and
    the last digits of numbers.
    """
    rest = json.dumps(
        {
            "id": str(job.id),
            "kind": job.kind,
            "queue": job.queue,
            "org": job.org,
            "attempt": job.attempt,
            "max_attempts": job.max_attempts,
            "lease_token": job.lease_token,
            "lease_expires_at": timestamp(job.lease_expires_at),
            "lease_seconds": job.lease_seconds,
            "timeout_seconds": job.timeout_seconds,
            "tags": job.tags,
            "traceparent": job.traceparent,
            "created_at": timestamp(job.created_at),
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return f'{rest[:-1]},"metadata":{job.metadata},"payload":{job.payload}}}'


def event_json(event: StoredEvent) -> str:
    """Write an event; its data is JSON already."""
    at = "null" if event.at is None else f'"{timestamp(event.at)}"'
    return f'{{"seq":{event.seq},"at":{at},"type":"{event.type}","data":{event.data}}}'


def log_line_json(line: LogLine) -> dict[str, Any]:
    """Render a line of a job's log."""
    return {
        "seq": line.seq,
        "at": timestamp(line.at),
        "stream": line.stream,
        "line": line.line,
        "data": json_or_mark(line.data),
    }


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """Render an attempt of a job."""
    return {
        "seq": attempt.seq,
        "attempt": attempt.attempt,
        "worker_id": attempt.worker_id,
        "outcome": attempt.outcome,
        "started_at": timestamp(attempt.started_at),
        "ended_at": timestamp(attempt.ended_at),
        "waited_seconds": attempt.waited_seconds,
        "ran_seconds": attempt.ran_seconds,
        "error": json_or_mark(attempt.error),
        "run_at": timestamp(attempt.run_at),
        "ended_seq": attempt.ended_seq,
        "model": attempt.model,
        "usage": json_or_mark(attempt.usage),
    }


def stored_error(error: ErrorDetails) -> dict[str, Any]:
    """Make the error to store from what a worker reports; its text can hold anything and is always storable."""
    return error_object(error.code, error.message, **(error.model_extra or {}))


def cerebro_status(state: JobState) -> CerebroStatus:
    """Say a state in Cerebro's four words; a cancelled job is `failed`, its error's code says why."""
    match state:
        case JobState.SCHEDULED | JobState.WAITING | JobState.QUEUED:
            return CerebroStatus.QUEUED
        case JobState.RUNNING:
            return CerebroStatus.PROCESSING
        case JobState.COMPLETED:
            return CerebroStatus.COMPLETED
        case JobState.FAILED | JobState.CANCELLED:
            return CerebroStatus.FAILED


def zbrain_state(job: Job) -> ZbrainState:
    """Say a job's state in ZBrain's six words; what waits for its next attempt is `Retrying`."""
    match job.state:
        case JobState.SCHEDULED if job.attempt > 0:
            return ZbrainState.RETRYING
        case JobState.SCHEDULED | JobState.WAITING | JobState.QUEUED:
            return ZbrainState.PENDING
        case JobState.RUNNING:
            return ZbrainState.RUNNING
        case JobState.COMPLETED:
            return ZbrainState.SUCCEEDED
        case JobState.FAILED:
            return ZbrainState.FAILED
        case JobState.CANCELLED:
            return ZbrainState.CANCELED


def in_words(job: Job, vocab: str | None) -> dict[str, Any]:
    """Give what replaces a rendered job's own words, for a client that asked for another system's."""
    return {} if vocab is None else {"state": zbrain_state(job).value}


def cerebro_result(job: Job) -> dict[str, Any]:
    """Render a job as `/get_result` answers it."""
    return {
        "job_id": str(job.id),
        "id": str(job.id),
        "status": cerebro_status(job.state).value,
        "result": json_or_mark(job.result),
        "error": json_or_mark(job.error),
        "metadata": json_or_mark(job.metadata),
        "attempt": job.attempt,
        "created_at": timestamp(job.created_at),
        "finished_at": timestamp(job.finished_at),
    }


def artifact_json(artifact: Artifact) -> dict[str, Any]:
    """Render an artifact, without its content."""
    return {
        "name": artifact.name,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "content_type": artifact.content_type,
        "attempt": artifact.attempt,
        "created_at": timestamp(artifact.created_at),
    }


def queue_json(stats: QueueStats) -> dict[str, Any]:
    """Render a queue with its counts."""
    return {
        "queue": stats.queue,
        "org": stats.org,
        "state": stats.state,
        "paused": stats.paused,
        "paused_until": timestamp(stats.paused_until),
        "scheduled": stats.scheduled,
        "waiting": stats.waiting,
        "queued": stats.queued,
        "running": stats.running,
        "completed": stats.completed,
        "failed": stats.failed,
        "cancelled": stats.cancelled,
        "oldest_queued_seconds": stats.oldest_queued_seconds,
    }


def worker_json(worker: WorkerInfo) -> dict[str, Any]:
    """Render a worker process."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "version": worker.version,
        "queues": worker.queues,
        "kinds": worker.kinds,
        "capacity": worker.capacity,
        "active": worker.active,
        "processed": worker.processed,
        "failed": worker.failed,
        "stopping": worker.stopping,
        "started_at": timestamp(worker.started_at),
        "heartbeat_at": timestamp(worker.heartbeat_at),
        "live": worker.live,
    }


def batch_json(batch: Batch) -> dict[str, Any]:
    """Render a batch with its counts."""
    return {
        "id": str(batch.id),
        "name": batch.name,
        "org": batch.org,
        "state": batch.state.value,
        "run": batch.run,
        "total": batch.total,
        "scheduled": batch.scheduled,
        "waiting": batch.waiting,
        "queued": batch.queued,
        "running": batch.running,
        "completed": batch.completed,
        "failed": batch.failed,
        "cancelled": batch.cancelled,
        "unfinished": batch.unfinished,
        "percent": batch.percent,
        "on_complete": json_or_mark(batch.on_complete),
        "on_failed": json_or_mark(batch.on_failed),
        "on_all": json_or_mark(batch.on_all),
        "on_first_failed": json_or_mark(batch.on_first_failed),
        "callback_ids": [str(each) for each in batch.callback_ids],
        "callback_error": batch.callback_error,
        "first_failed_at": timestamp(batch.first_failed_at),
        "first_failed_id": text_or_none(batch.first_failed_id),
        "metadata": json_or_mark(batch.metadata),
        "created_at": timestamp(batch.created_at),
        "closed_at": timestamp(batch.closed_at),
        "cancelled_at": timestamp(batch.cancelled_at),
        "finished_at": timestamp(batch.finished_at),
    }


def template_json(template: JobTemplate) -> dict[str, Any]:
    """Render a job template."""
    return {
        "name": template.name,
        "version": template.version,
        "org": template.org,
        "kind": template.kind,
        "queue": template.queue,
        "priority": template.priority,
        "max_attempts": template.max_attempts,
        "timeout_seconds": None if template.timeout is None else template.timeout.total_seconds(),
        "limit_key": template.limit_key,
        "cost": template.cost,
        "cache": template.cache,
        "cache_for_seconds": None if template.cache_for is None else template.cache_for.total_seconds(),
        "cache_version": template.cache_version,
        "payload": json_or_mark(template.payload),
        "variables": json_or_mark(template.variables),
        "description": template.description,
        "created_at": timestamp(template.created_at),
    }
