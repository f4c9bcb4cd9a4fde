# Generated from queue_pg/pulling.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""The pull worker's side of a Queue: claim, heartbeat, and tell how it ended.

`pulling_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import Connection

from queue_pg import arguments, step_store_sync as step_store, store_sync as store
from queue_pg.errors import InvalidJob, JobNotFound, LeaseLost
from queue_pg.handler_events import own_events, progress_event
from queue_pg.models import ClaimedJob, NewEvent, Renewed, Step
from queue_pg.payloads import decode_json, encode_json
from queue_pg.steps import MAX_STEP_BYTES


class SyncPulling(ABC):
    """What Queue inherits for workers that pull; the API serves it over HTTP."""

    org: str | None
    max_payload_bytes: int

    @abstractmethod
    def connection(self) -> AbstractContextManager[Connection[Any]]:
        """Lend a connection."""

    def claim(
        self,
        worker_id: str,
        queues: Sequence[str],
        *,
        kinds: Sequence[str] | None = None,
        max_jobs: int = 1,
        lease_seconds: float | None = None,
        arm: bool | None = None,
    ) -> list[ClaimedJob]:
        """Lease up to `max_jobs` queued jobs to `worker_id`; their payloads are JSON text (payloads.decode_json).

        With `arm` an empty-handed claim asks for a notification of the next job (wakeup.WAKE), and looks once more.
        """
        arguments.check_texts("queues", queues)
        arguments.check_texts("kinds", kinds or ())
        arguments.check_filters(worker_id=worker_id)
        arguments.lease_seconds(lease_seconds)
        with self.connection() as conn:
            return store.claim(
                conn,
                worker_id,
                queues,
                kinds=kinds,
                max_jobs=max_jobs,
                lease_seconds=lease_seconds,
                org=self.org,
                arm=arm,
            )

    def heartbeat(
        self, ids: Sequence[UUID], lease_tokens: Sequence[int], *, lease_seconds: float | None = None
    ) -> list[Renewed]:
        """Extend leases; an id that is absent from the answer has lost its lease.

        Without `lease_seconds` they last as long as those of their queue, whatever the claim asked for.
        """
        if len(ids) != len(lease_tokens):
            raise InvalidJob("lease_tokens", f"there are {len(lease_tokens)} for {len(ids)} ids")
        for token in lease_tokens:
            arguments.lease_token(token)
        arguments.lease_seconds(lease_seconds)
        with self.connection() as conn:
            return store.heartbeat(conn, ids, lease_tokens, lease_seconds=lease_seconds)

    def append_events(
        self, job_id: UUID | str, lease_token: int, events: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> int:
        """Append events, (type, data) each, to a claimed job; return the number of its newest one. Raises LeaseLost.

        Types of your own, `log` ({"stream", "line"}), `progress` and `chunk` ({"text"}); at most 64 KiB each.
        """
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        if not 1 <= len(events) <= arguments.MAX_PAGE:
            raise InvalidJob("events", f"must be 1 to {arguments.MAX_PAGE:,} events")
        new = [NewEvent(known, token, *event) for event in own_events(events)]
        arguments.check_filters(**{f"events[{place}].type": event.type for place, event in enumerate(new)})
        with self.connection() as conn:
            [answer] = store.append_events(conn, new)
        if not answer.accepted:
            if answer.state is None:
                raise JobNotFound(known)
            raise LeaseLost(known, answer.state)
        return answer.last_seq or 0

    def progress(self, job_id: UUID | str, lease_token: int, value: float | Mapping[str, Any]) -> int:
        """Tell how far a claimed job is: a fraction from 0 to 1 or an object; return the event's number."""
        name, data = progress_event(value)
        return self.append_events(job_id, lease_token, [(name, decode_json(data))])

    def complete(self, job_id: UUID | str, lease_token: int, result: Any = None) -> str:
        """End a claimed job as completed; return its new state. Raises LeaseLost."""
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        text = None if result is None else encode_json(result, field="result", max_bytes=self.max_payload_bytes)
        with self.connection() as conn:
            return store.complete(conn, known, token, text)

    def fail(
        self,
        job_id: UUID | str,
        lease_token: int,
        error: Mapping[str, Any] | BaseException | str,
        *,
        retry: bool = True,
        delay: timedelta | float | None = None,
    ) -> str:
        """End an attempt as failed; return the new state. Retried while attempts are left, unless `retry` is false.

        `delay` replaces the kind's backoff. Raises LeaseLost.
        """
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        text, wait = arguments.error_text(error), arguments.wait("delay", delay)
        with self.connection() as conn:
            return store.fail(conn, known, token, text, retry=retry, delay=wait)

    def snooze(self, job_id: UUID | str, lease_token: int, delay: timedelta | float) -> str:
        """Give a job back to run again after `delay`, burning no attempt; return its new state. Raises LeaseLost."""
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        wait = arguments.wait("delay", delay) or timedelta(0)
        with self.connection() as conn:
            return store.snooze(conn, known, token, wait)

    def release(self, job_id: UUID | str, lease_token: int) -> str:
        """Give a job back to its queue now, burning no attempt; return its new state. Raises LeaseLost."""
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        with self.connection() as conn:
            return store.release(conn, known, token)

    def cancel_claimed(self, job_id: UUID | str, lease_token: int, reason: str | None = None) -> str:
        """End a claimed job as cancelled, as its handler wants it; return its new state. Raises LeaseLost."""
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        with self.connection() as conn:
            return store.cancel_claimed(conn, known, token, arguments.reason(reason))

    def plan(
        self,
        job_id: UUID | str,
        lease_token: int,
        subtasks: Sequence[str],
        *,
        queue: str | None = None,
        kind: str | None = None,
        max_attempts: int | None = None,
        timeout: timedelta | float | None = None,
    ) -> str:
        """End an attempt with a plan, as `Plan` does: the job waits for these subtasks; return its new state.

        The other arguments are about the jobs that they become. Raises LeaseLost; InvalidJob naming `subtasks[2]`.
        """
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        arguments.subtasks(subtasks)
        arguments.check_filters(queue=queue, kind=kind)
        arguments.max_attempts(max_attempts)
        seconds = arguments.timeout_seconds(timeout)
        with self.connection() as conn:
            return store.plan(
                conn,
                known,
                token,
                subtasks,
                queue=queue,
                kind=kind,
                max_attempts=max_attempts,
                timeout_seconds=seconds,
            )

    # --- steps --------------------------------------------------------------------------------------------------------

    def save_step(self, job_id: UUID | str, lease_token: int, name: str, result: Any = None) -> None:
        """Keep the result of a finished step of a claimed job; `steps` has it in every later attempt.

        The same once more under the same lease changes nothing. Raises LeaseLost; InvalidJob for a name that another
        step has, for what is no JSON, or above 1 MiB.
        """
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        arguments.check_filters(name=name)
        text = None if result is None else encode_json(result, field="result", max_bytes=MAX_STEP_BYTES)
        with self.connection() as conn:
            step_store.save_step(conn, known, token, name, text)

    def sleep(
        self,
        job_id: UUID | str,
        lease_token: int,
        name: str,
        delay: timedelta | float | None = None,
        *,
        until: datetime | None = None,
    ) -> Step:
        """Begin a sleep of a claimed job, or look at it; without `finished_at` it is not over: then `suspend`.

        The first call says how long. Raises LeaseLost, InvalidJob.
        """
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        arguments.check_filters(name=name)
        if (delay is None) == (until is None):
            raise InvalidJob("delay", "give either delay or until")
        wait = arguments.wait("delay", delay)
        arguments.aware("until", until)
        with self.connection() as conn:
            return step_store.sleep(conn, known, token, name, delay=wait, until=until)

    def wait_for_event(
        self, job_id: UUID | str, lease_token: int, name: str, timeout: timedelta | float | None = None
    ) -> Step:
        """Look whether the event `name` has come for a claimed job; without `finished_at` it has not: then `suspend`.

        `result` is the payload of the signal, unless `timed_out`. The first call says for how long. Raises LeaseLost.
        """
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        arguments.check_filters(name=name)
        limit = arguments.wait("timeout", timeout)
        with self.connection() as conn:
            return step_store.wait_for_event(conn, known, token, name, timeout=limit)

    def suspend(self, job_id: UUID | str, lease_token: int) -> str:
        """Give a job back until what it waits for is over, burning no attempt; return its new state.

        That is `queued` when it is over by now. Raises LeaseLost.
        """
        known, token = arguments.job_id(job_id), arguments.lease_token(lease_token)
        with self.connection() as conn:
            return store.suspend(conn, known, token)
