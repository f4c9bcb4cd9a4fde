"""queue-pg: a durable queue for LLM work on the Postgres you already run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from queue_pg.batch_model import Batch, BatchAction, BatchPage, BatchState
from queue_pg.client import Queue
from queue_pg.client_sync import SyncQueue
from queue_pg.errors import (
    BatchNotFound,
    ConfigError,
    DatabaseUnavailable,
    InvalidBatchTransition,
    InvalidJob,
    InvalidTransition,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobUnsuccessful,
    LeaseLost,
    MigrationBusy,
    MigrationDiverged,
    NotMigrated,
    PayloadTooLarge,
    QueuePgError,
    ScheduleExists,
    ScheduleNotFound,
    SchemaError,
    SchemaTooNew,
    SubmitError,
    UniqueKeyConflict,
    UnknownKind,
    WaitTimeout,
)
from queue_pg.models import (
    Cancel,
    ClaimedJob,
    Dependencies,
    Dependency,
    Fail,
    Job,
    JobState,
    KindInfo,
    NewJob,
    Page,
    Parent,
    QueueStats,
    Snooze,
    Submitted,
    WhyWaiting,
    WorkerInfo,
)
from queue_pg.payloads import Unreadable
from queue_pg.schedules import NewSchedule, Schedule, Timing
from queue_pg.tasks import JobContext, Task, Tasks, current_job, task, use_queue

try:
    __version__ = version("queue-pg")
except PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0+unknown"

__all__ = [
    "Batch",
    "BatchAction",
    "BatchNotFound",
    "BatchPage",
    "BatchState",
    "Cancel",
    "ClaimedJob",
    "ConfigError",
    "DatabaseUnavailable",
    "Dependencies",
    "Dependency",
    "Fail",
    "InvalidBatchTransition",
    "InvalidJob",
    "InvalidTransition",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "JobNotFound",
    "JobState",
    "JobUnsuccessful",
    "KindInfo",
    "LeaseLost",
    "MigrationBusy",
    "MigrationDiverged",
    "NewJob",
    "NewSchedule",
    "NotMigrated",
    "Page",
    "Parent",
    "PayloadTooLarge",
    "Queue",
    "QueuePgError",
    "QueueStats",
    "Schedule",
    "ScheduleExists",
    "ScheduleNotFound",
    "SchemaError",
    "SchemaTooNew",
    "Snooze",
    "SubmitError",
    "Submitted",
    "SyncQueue",
    "Task",
    "Tasks",
    "Timing",
    "UniqueKeyConflict",
    "UnknownKind",
    "Unreadable",
    "WaitTimeout",
    "WhyWaiting",
    "WorkerInfo",
    "__version__",
    "current_job",
    "task",
    "use_queue",
]
