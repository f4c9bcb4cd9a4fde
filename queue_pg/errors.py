"""Every error that queue-pg raises on purpose.

    QueuePgError
    ├── ConfigError                 a setting is missing or makes no sense
    ├── DatabaseUnavailable         Postgres cannot be reached, or went away
    ├── TooSlow                     a look for people took longer than it may; nothing is wrong with the database
    ├── SchemaError                 code and database schema do not fit
    │   ├── NotMigrated
    │   ├── SchemaTooNew
    │   ├── MigrationDiverged
    │   └── MigrationBusy
    ├── SubmitError                 a job was refused at the door; nothing was stored
    │   ├── InvalidJob
    │   │   └── PayloadTooLarge
    │   ├── UnknownKind
    │   ├── QueueDraining
    │   └── UniqueKeyConflict
    ├── ArtifactError               an artifact was not stored, or cannot be read
    │   ├── InvalidArtifact
    │   ├── ArtifactTooLarge
    │   ├── ArtifactNotFound
    │   └── ArtifactCorrupt
    ├── JobNotFound                 no such job, or its retention has passed
    ├── ScheduleNotFound            no schedule has this name
    ├── ScheduleExists              a new schedule was to have the name of another one
    ├── TemplateNotFound            no job template has this name, or this version
    ├── BatchNotFound               no such batch, or its retention has passed
    ├── LimitNotFound               no such limit
    ├── InvalidTransition           the job's state does not allow the action
    │   └── InvalidBatchTransition  the batch's does not
    ├── LeaseLost                   a worker wrote with a lease it no longer holds
    ├── InvalidStep                 a step of a handler makes no sense, or its result cannot be kept
    ├── EventTimeout                the event that a handler waited for did not come in time; a TimeoutError too
    ├── WaitTimeout                 the job had not ended in time; it goes on
    └── JobUnsuccessful             raised by `Queue.result` for a job that ended otherwise than `completed`
        ├── JobFailed
        └── JobCancelled

Each carries `code` (the same word in HTTP bodies and `--json` output), `hint` (what to do next) and the values
it is about as typed attributes. `exit_code` is what the command line ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar
from uuid import UUID


class QueuePgError(Exception):
    """Base of all errors of this project."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(QueuePgError):
    """A setting is missing or makes no sense."""

    code = "config"
    exit_code = 2

    def __init__(self, message: str, *, setting: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.setting = setting


class DatabaseUnavailable(QueuePgError):
    """Postgres cannot be reached, or the connection was lost before the outcome was known."""

    code = "database_unavailable"
    exit_code = 5


class TooSlow(QueuePgError):
    """A look for people took longer than it may; nothing is wrong with the database."""

    code = "too_slow"


class SchemaError(QueuePgError):
    """The database schema and this code do not fit each other."""

    code = "schema"
    exit_code = 3


class NotMigrated(SchemaError):
    """The database lacks migrations that this code needs."""

    code = "not_migrated"

    def __init__(self, pending: Sequence[str]) -> None:
        shown = ", ".join(pending[:3]) + (", ..." if len(pending) > 3 else "")
        super().__init__(f"The database lacks {len(pending)} migration(s): {shown}.", hint="Run: queue-pg migrate")
        self.pending = list(pending)


class SchemaTooNew(SchemaError):
    """The database holds a breaking migration that this code does not know."""

    code = "schema_too_new"

    def __init__(self, unknown: Sequence[str]) -> None:
        super().__init__(
            f"The database was migrated by a newer queue-pg ({', '.join(unknown)}) in a way this version cannot use.",
            hint="Upgrade this process to the version that ran the migration.",
        )
        self.unknown = list(unknown)


class MigrationDiverged(SchemaError):
    """An applied migration no longer has the content it was applied with."""

    code = "migration_diverged"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Migration {name} was changed after it had been applied.",
            hint="Restore the released file; released migrations are frozen. Put the change into a new one.",
        )
        self.name = name


class MigrationBusy(SchemaError):
    """A lock was not had in time: another migration runs, or a long transaction is in the way."""

    code = "migration_busy"


class SubmitError(QueuePgError):
    """A job was refused at the door; nothing was stored."""

    code = "invalid"
    exit_code = 2


class InvalidJob(SubmitError):
    """A field of a submission cannot be stored. `field` is a path such as `payload.messages[0]`."""

    code = "invalid_job"

    def __init__(self, field: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{field}: {reason}", hint=hint)
        self.field = field
        self.reason = reason


class PayloadTooLarge(InvalidJob):
    """A field is larger than the limit; both in bytes."""

    code = "too_large"

    def __init__(self, field: str, size: int, limit: int) -> None:
        super().__init__(field, f"{size:,} bytes are over the limit of {limit:,} bytes")
        self.size = size
        self.limit = limit


class UnknownKind(SubmitError):
    """No worker is known for this kind."""

    code = "unknown_kind"

    def __init__(self, kind: str, suggestions: Sequence[str] = ()) -> None:
        hint = f"Did you mean {' or '.join(repr(s) for s in suggestions)}?" if suggestions else None
        super().__init__(f"kind: no worker is known for kind {kind!r}.", hint=hint)
        self.field = "kind"
        self.kind = kind
        self.suggestions = list(suggestions)


class QueueDraining(SubmitError):
    """The queue takes no new jobs until it is resumed."""

    code = "queue_draining"
    exit_code = 6

    def __init__(self, queue: str) -> None:
        super().__init__(
            f"queue: {queue!r} is draining: it takes no new jobs.",
            hint="Submit to another queue, or resume this one.",
        )
        self.field = "queue"
        self.queue = queue


class UniqueKeyConflict(SubmitError):
    """The unique key already belongs to a job with another kind, queue or payload."""

    code = "unique_key_conflict"
    exit_code = 6

    def __init__(self, unique_key: str, job_id: UUID | None = None) -> None:
        super().__init__(
            f"unique_key: {unique_key!r} already belongs to job {job_id} with another body.",
            hint="Use a new key for new work, or send the same body again.",
        )
        self.field = "unique_key"
        self.unique_key = unique_key
        self.job_id = job_id


class ArtifactError(QueuePgError):
    """An artifact was not stored, or cannot be read."""

    code = "artifact"


class InvalidArtifact(ArtifactError):
    """Name, content or another field of an artifact cannot be taken; nothing was stored."""

    code = "invalid_artifact"
    exit_code = 2

    def __init__(self, field: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{field}: {reason}", hint=hint)
        self.field = field
        self.reason = reason


class ArtifactTooLarge(InvalidArtifact):
    """The artifact, or the job's artifacts together, are over a limit; nothing was stored."""

    code = "artifact_too_large"

    def __init__(self, field: str, reason: str, limit: int | None = None) -> None:
        hint = "Limits: MAX_ARTIFACT_BYTES, MAX_ARTIFACTS, MAX_JOB_ARTIFACT_BYTES."
        super().__init__(field, reason, hint=hint)
        self.limit = limit


class ArtifactNotFound(ArtifactError):
    """The job has no artifact of this name."""

    code = "artifact_not_found"
    exit_code = 4

    def __init__(self, job_id: UUID | str, name: str) -> None:
        super().__init__(f"Job {job_id} has no artifact {name!r}.", hint="List them, and look for the exact name.")
        self.job_id = job_id
        self.name = name


class ArtifactCorrupt(ArtifactError):
    """What is stored no longer has the hash it was stored under. `sha256` is the hash of the whole content."""

    code = "artifact_corrupt"

    def __init__(self, sha256: str, reason: str) -> None:
        super().__init__(
            f"The stored content {sha256} is corrupt: {reason}.", hint="Storing the same content again repairs it."
        )
        self.sha256 = sha256
        self.reason = reason


class JobNotFound(QueuePgError):
    """No job has this id, or its retention has passed."""

    code = "job_not_found"
    exit_code = 4

    def __init__(self, job_id: UUID | str) -> None:
        super().__init__(f"No job {job_id}.", hint="Check the id; finished jobs are dropped after their retention.")
        self.job_id = job_id


class ScheduleNotFound(QueuePgError):
    """No schedule has this name."""

    code = "schedule_not_found"
    exit_code = 4

    def __init__(self, name: str) -> None:
        super().__init__(f"No schedule {name!r}.", hint="See the names with: queue-pg schedules")
        self.name = name


class ScheduleExists(QueuePgError):
    """A new schedule was to have the name of another one."""

    code = "schedule_exists"
    exit_code = 6

    def __init__(self, name: str) -> None:
        super().__init__(f"There is a schedule {name!r} already.", hint="Take another name, or change that one.")
        self.name = name


class TemplateNotFound(QueuePgError):
    """No job template has this name, or this version."""

    code = "template_not_found"
    exit_code = 4

    def __init__(self, name: str, version: int | None = None) -> None:
        what = f"No template {name!r}" if version is None else f"Template {name!r} has no version {version}"
        super().__init__(f"{what}.", hint="See the names with: queue-pg templates")
        self.name = name
        self.version = version


class BatchNotFound(QueuePgError):
    """No batch has this id, or its retention has passed."""

    code = "batch_not_found"
    exit_code = 4

    def __init__(self, batch_id: UUID | str) -> None:
        super().__init__(
            f"No batch {batch_id}.", hint="Check the id; finished batches are dropped after the retention."
        )
        self.batch_id = batch_id


class LimitNotFound(QueuePgError):
    """There is no such limit."""

    code = "limit_not_found"
    exit_code = 4

    def __init__(self, scope: str, name: str) -> None:
        super().__init__(f"No limit of {scope} {name!r}.", hint="See which there are: queue-pg limits")
        self.scope = scope
        self.name = name


class InvalidTransition(QueuePgError):
    """The job's state does not allow the action."""

    code = "wrong_state"
    exit_code = 6

    def __init__(
        self, job_id: UUID | str, action: str, state: str, *, noun: str = "job", reason: str | None = None
    ) -> None:
        super().__init__(f"Cannot {action} {noun} {job_id}: {reason or f'it is {state}'}.")
        self.job_id = job_id
        self.action = action
        self.state = state


class InvalidBatchTransition(InvalidTransition):
    """The state of a batch does not allow the action."""

    def __init__(self, batch_id: UUID | str, action: str, state: str) -> None:
        super().__init__(batch_id, action, state, noun="batch")
        self.batch_id = batch_id


class LeaseLost(QueuePgError):
    """A worker wrote with a lease it no longer holds; nothing was changed. `state` is the job's state now."""

    code = "lease_lost"
    exit_code = 6

    def __init__(self, job_id: UUID | str, state: str | None = None) -> None:
        now = f"; it is {state} now" if state else ""
        super().__init__(
            f"The lease on job {job_id} is no longer held by this worker{now}.",
            hint="Drop the work: another worker has it, or it was cancelled.",
        )
        self.job_id = job_id
        self.state = state


class InvalidStep(QueuePgError):
    """A step of a handler makes no sense, or its result cannot be kept. No retry can help."""

    code = "invalid_step"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"step {name!r}: {reason}")
        self.name = name
        self.reason = reason


class EventTimeout(QueuePgError, TimeoutError):
    """The event that a handler waited for did not come in time. Uncaught, it fails the job for good."""

    code = "event_timeout"

    def __init__(self, job_id: UUID, event: str) -> None:
        super().__init__(f"The event {event!r} did not come in time.")
        self.job_id = job_id
        self.event = event


class WaitTimeout(QueuePgError):
    """The job, or batch, had not ended in time; it goes on. `timeout` is in seconds."""

    code = "wait_timeout"

    def __init__(self, job_id: UUID | str, timeout: float, state: str, *, noun: str = "Job") -> None:
        super().__init__(f"{noun} {job_id} is still {state} after {timeout:g} s.")
        self.job_id = job_id
        self.timeout = timeout
        self.state = state


class JobUnsuccessful(QueuePgError):
    """The job ended otherwise than `completed`. `error` is the job's stored error object."""

    code = "job_unsuccessful"

    def __init__(self, job_id: UUID, state: str, error: dict[str, Any] | None) -> None:
        why = f": {error.get('code')}: {error.get('message')}" if error else ""
        super().__init__(f"Job {job_id} {state}{why}")
        self.job_id = job_id
        self.state = state
        self.error = error


class JobFailed(JobUnsuccessful):
    """The job failed for good."""

    code = "job_failed"


class JobCancelled(JobUnsuccessful):
    """The job was cancelled."""

    code = "job_cancelled"
