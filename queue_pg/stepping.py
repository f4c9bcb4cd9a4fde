"""What a Queue offers about the steps of jobs, the events they wait for, and running them again for comparison.

`stepping_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from psycopg import AsyncConnection

from queue_pg import arguments, step_store
from queue_pg.errors import InvalidJob, JobNotFound
from queue_pg.models import Job, NewJob, Step
from queue_pg.payloads import encode_json
from queue_pg.submission import JobChecker

MAX_SIGNAL_BYTES = 1024 * 1024


class AsyncStepping(ABC):
    """What Queue inherits about steps, signals and reruns."""

    org: str | None
    max_payload_bytes: int

    @abstractmethod
    def connection(self, *, unsafe_to_repeat: bool = False) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """Lend a connection."""

    @abstractmethod
    async def get(self, job_id: UUID | str) -> Job:
        """Return a job, live or finished. Raises JobNotFound."""

    async def steps(self, job_id: UUID | str) -> list[Step]:
        """Return the steps of a job in the order in which they were begun. Raises JobNotFound."""
        known = arguments.job_id(job_id)
        async with self.connection() as conn:
            found = await step_store.steps(conn, known, org=self.org)
        if not found:
            await self.get(known)
        return found

    async def signal(self, job_id: UUID | str, name: str, payload: Any = None) -> bool:
        """Tell an unfinished job that the event `name` has come, whether it waits for it already or not.

        Of one name the first signal counts; False says that there was one, and nothing was changed. Raises JobNotFound,
        and InvalidTransition for a job that has ended or has given up waiting for the event.
        """
        known = arguments.job_id(job_id)
        arguments.check_filters(name=name)
        text = None if payload is None else encode_json(payload, field="payload", max_bytes=MAX_SIGNAL_BYTES)
        async with self.connection() as conn:
            created = await step_store.signal(conn, known, name, text, org=self.org)
        if created is None:
            raise JobNotFound(known)
        return created

    async def rerun(
        self,
        job_id: UUID | str,
        *,
        payload: Any = None,
        payload_patch: Mapping[str, Any] | None = None,
        model: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: timedelta | float | None = None,
        max_attempts: int | None = None,
        timeout: timedelta | float | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Job:
        """Submit a job like this one, live or finished, as a new job whose `rerun_of` is this one's id, and return it.

        What is not given is as in the origin; unique key, deadline, parent and batch are not taken over. `payload`
        replaces the payload; `payload_patch` is merged into it, None removing a key (RFC 7396); `model` sets the model
        of a chat job. Raises JobNotFound, InvalidJob and PayloadTooLarge.
        """
        known = arguments.job_id(job_id)
        # The checks of a submission, by the same names; what was not given is replaced by something harmless.
        wanted = NewJob(
            kind="rerun",
            payload=payload,
            queue="default" if queue is None else queue,
            priority=0 if priority is None else priority,
            run_at=run_at,
            delay=arguments.duration("delay", delay),
            max_attempts=max_attempts,
            timeout=arguments.duration("timeout", timeout),
            tags=() if tags is None else tags,
            metadata={} if metadata is None else metadata,
        )
        check = JobChecker(org=self.org or "default", max_payload_bytes=self.max_payload_bytes)
        terms, body = check(wanted)
        arguments.check_filters(model=model)
        patch = None
        if payload_patch is not None:
            if payload is not None:
                raise InvalidJob("payload_patch", "excludes payload; give one of them")
            if not isinstance(cast(Any, payload_patch), Mapping):
                raise InvalidJob("payload_patch", f"must be an object, not {type(payload_patch).__name__}")
            patch = encode_json(dict(payload_patch), field="payload_patch", max_bytes=self.max_payload_bytes)
        changes = {
            "payload": None if payload is None else body.decode(),
            "payload_patch": patch,
            "model": model,
            "queue": queue,
            "priority": priority,
            "run_at": terms.run_at,
            "delay": None if terms.delay_seconds is None else timedelta(seconds=terms.delay_seconds),
            "max_attempts": max_attempts,
            "timeout": None if terms.timeout_seconds is None else timedelta(seconds=terms.timeout_seconds),
            "tags": None if tags is None else terms.tags,
            "metadata": None if metadata is None else terms.metadata,
        }
        async with self.connection(unsafe_to_repeat=True) as conn:
            job = await step_store.rerun(conn, known, changes, org=self.org)
        if job is None:
            raise JobNotFound(known)
        return job
