# Generated from queue_pg/acting.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""Actions on all jobs that a filter names, and the deletion of one.

`acting_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from queue_pg import action_store_sync as action_store
from queue_pg import arguments
from queue_pg.action_model import ActionResult, JobAction, JobFilter, cursor_of, job_filter, place_of
from queue_pg.errors import JobNotFound

# Jobs that one transaction changes.
JOBS_AT_ONCE: Final = 1_000


class SyncActing(ABC):
    """What Queue inherits for actions on many jobs."""

    org: str | None

    @abstractmethod
    def connection(self, *, unsafe_to_repeat: bool = False) -> AbstractContextManager[Connection[Any]]:
        """Lend a connection."""

    def act_on_jobs(
        self,
        action: JobAction,
        filter: JobFilter | Mapping[str, Any],  # noqa: A002
        *,
        reason: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        fresh: bool = False,
        dry_run: bool = False,
        cursor: str | None = None,
        max_seconds: float | None = None,
    ) -> ActionResult:
        """Cancel, retry, reprioritize or delete all jobs that a filter names, a thousand in a transaction.

            queue.act_on_jobs("retry", {"state": "failed", "queue": "mail", "error_code": "timeout"})

        `cancel` is for unfinished jobs, `retry` for failed ones (or cancelled ones, if the filter has that state),
        `reprioritize` for unfinished ones, `delete` for those that have ended. Jobs submitted after it began are left
        alone. `dry_run` counts. After `max_seconds` it stops, to be called again with the `cursor` of its result.
        An empty filter is refused: say `JobFilter(all=True)`. Raises InvalidJob naming what is wrong.
        """
        wanted = job_filter(filter).to_json()
        arguments.check_filters(action=action)
        arguments.max_attempts(max_attempts)
        if priority is not None:
            arguments.priority(priority)
        after, as_of = place_of(cursor)
        ends_at = None if max_seconds is None else time.monotonic() + max_seconds
        matched = changed = 0
        skipped = Counter[str]()
        while True:
            with self.connection() as conn:
                bite = action_store.act_on_jobs(
                    conn,
                    action,
                    wanted,
                    org=self.org,
                    reason=arguments.reason(reason),
                    priority=priority,
                    max_attempts=max_attempts,
                    fresh=fresh,
                    dry_run=dry_run,
                    max_jobs=JOBS_AT_ONCE,
                    after=after,
                    as_of=as_of,
                )
            matched += bite.matched
            changed += bite.changed
            skipped.update(bite.skipped)
            after, as_of = bite.last_id, bite.as_of
            if after is None or (ends_at is not None and time.monotonic() >= ends_at):
                return ActionResult(
                    action=action,
                    dry_run=dry_run,
                    matched=matched,
                    changed=changed,
                    skipped=dict(skipped),
                    done=after is None,
                    cursor=None if after is None else cursor_of(after, as_of),
                )

    def delete(self, job_id: UUID | str, *, cancel: bool = False) -> None:
        """Delete a job that has ended, with its events, logs, steps and artifacts; with `cancel` an unfinished one too.

        Raises InvalidTransition for one that has not ended, and for one whose result a waiting child may need;
        JobNotFound.
        """
        known = arguments.job_id(job_id)
        with self.connection() as conn:
            deleted = action_store.delete(conn, known, cancel=cancel, org=self.org)
        if not deleted:
            raise JobNotFound(known)
