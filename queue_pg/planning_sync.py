# Generated from queue_pg/planning.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""Tasks: work that is described, split into subtasks and followed as one.

`planning_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import DictRow, dict_row

from queue_pg import arguments, callers, task_model
from queue_pg.errors import InvalidJob, InvalidTransition, JobNotFound
from queue_pg.models import Job, JobState, NewJob, OnUnsuccessful
from queue_pg.sqlstates import translated
from queue_pg.statements import statement
from queue_pg.submission import JobChecker, encode_array
from queue_pg.task_model import NewTask, TaskInfo, TaskPage, task_of, task_of_job


class SyncPlanning(ABC):
    """What Queue inherits for tasks."""

    org: str | None
    max_payload_bytes: int

    @abstractmethod
    def connection(self, *, unsafe_to_repeat: bool = False) -> AbstractContextManager[Connection[Any]]:
        """Lend a connection."""

    @abstractmethod
    def submit_new(self, job: NewJob, *, connection: Any = None) -> tuple[Job, bool]:
        """Store one job; return it and whether it is new."""

    @abstractmethod
    def chain_new(
        self,
        job_id: UUID | str,
        job: NewJob,
        *,
        name: str = "parent",
        on_unsuccessful: OnUnsuccessful = "cancel",
        completed_only: bool = False,
    ) -> tuple[Job, bool]:
        """Store a job that follows another one; return it and whether it is new."""

    @abstractmethod
    def cancel(self, job_id: UUID | str, reason: str | None = None) -> Job:
        """End an unfinished job as cancelled."""

    @abstractmethod
    def retry(self, job_id: UUID | str, max_attempts: int | None = None, *, fresh: bool = False) -> Job:
        """Put a failed or cancelled job back."""

    def submit_task(self, task: NewTask | str, *, connection: Any = None) -> TaskInfo:
        """Store a task and return it; a text is the description of one that is planned by the rules.

        Those of the planner rules are there with their subtasks at once; the planner llm is a worker's business. With a
        `connection` of yours the task exists if and only if your transaction commits. Raises InvalidJob naming the
        field, UniqueKeyConflict, and JobNotFound for an unknown parent.
        """
        stored, _ = self.submit_task_new(task, connection=connection)
        return stored

    def submit_task_new(self, task: NewTask | str, *, connection: Any = None) -> tuple[TaskInfo, bool]:
        """Store a task as `submit_task` does; return it and whether it is new (false: its unique key was known)."""
        wanted = NewTask(description=task) if isinstance(task, str) else task
        job = task_model.job_of(wanted)
        if wanted.parent_task_id is not None:
            if connection is not None:
                raise InvalidJob("parent_task_id", "cannot be combined with a connection; use submit(depends_on=...)")
            parent = self.get_task(wanted.parent_task_id)
            return self._stored(*self.chain_new(parent.id, job, name=task_model.PARENT_NAME), parent.id)
        if not task_model.planned_by_rules(wanted):
            stored, created = self.submit_new(job, connection=connection)
            if connection is not None:
                # Only the caller's connection sees more of it.
                return task_of_job(stored), created
            return self._stored(stored, created, None)
        check = JobChecker(org=self.org or "default", max_payload_bytes=self.max_payload_bytes)
        params = {"pin": "on" if connection is None else "off", "jobs": encode_array([check(job)])}
        if connection is not None:
            with translated():
                [row] = callers.fetch_sync(connection, statement("submit_task"), params)
        else:
            with self.connection(unsafe_to_repeat=job.unique_key is None) as conn:
                [row] = callers.fetch_sync(conn, statement("submit_task"), params)
        return task_of(row), bool(row["created"])

    def get_task(self, task_id: UUID | str) -> TaskInfo:
        """Return a task, or a subtask by its id `<task>-<n>`; any job is one. Raises JobNotFound."""
        arguments.check_filters(task_id=str(task_id))
        with self.connection() as conn:
            found = self._task_rows(conn, "get_task", {"id": str(task_id), "org": self.org})
        if not found:
            raise JobNotFound(task_id if isinstance(task_id, UUID) else task_id[:100])
        return task_of(found[0])

    def list_tasks(
        self,
        *,
        state: JobState | str | None = None,
        parent_task_id: UUID | str | None = None,
        limit: int = 50,
        offset: int = 0,
        cursor: str | None = None,
    ) -> TaskPage:
        """Return a page of tasks, newest first: all, or the subtasks of one and those chained to it.

        `state` is a task's status. Give `page.next_cursor` as `cursor` for the next page; `offset`, 10,000 at most,
        counts from the newest, or from the cursor. Raises InvalidJob for a bad cursor, limit or filter.
        """
        limit = arguments.page_size(limit)
        params: dict[str, Any] = {
            "org": self.org,
            "state": arguments.state(state),
            "before": arguments.before(cursor),
            "limit": limit + 1,
            "offset": arguments.page_offset(offset, task_model.MAX_OFFSET),
        }
        name = "list_tasks"
        if parent_task_id is not None:
            arguments.check_filters(parent_task_id=str(parent_task_id))
            name, params["parent"] = "list_child_tasks", str(parent_task_id)
        with self.connection() as conn:
            found = [task_of(row) for row in self._task_rows(conn, name, params)]
        shown = found[:limit]
        return TaskPage(shown, arguments.cursor_of(shown[-1].id) if len(found) > limit else None)

    def chain_task(self, task_id: UUID | str, task: NewTask | str) -> TaskInfo:
        """Store a task that follows a completed one, with that one's output in its prompt, and return it.

        A text is a prompt. The output stands at the end of prompt or messages, unless these say where; other tasks take
        it by {{ parents.parent.output }}. Raises JobNotFound, and InvalidTransition unless the parent has completed.
        """
        chained, _ = self.chain_task_new(task_id, task)
        return chained

    def chain_task_new(self, task_id: UUID | str, task: NewTask | str) -> tuple[TaskInfo, bool]:
        """Store a task as `chain_task` does; return it and whether it is new (false: its unique key was known)."""
        wanted = NewTask(prompt=task) if isinstance(task, str) else task
        if wanted.parent_task_id is not None:
            raise InvalidJob("parent_task_id", "is the task that this one is chained to; leave it out")
        if task_model.planned_by_rules(wanted):
            raise InvalidJob("description", "the planner rules cannot take an output; plan by llm, or give a prompt")
        job = task_model.job_of(wanted)
        parent = self.get_task(task_id)
        if parent.job.state is JobState.COMPLETED:
            job = task_model.with_output(job, parent.output)
        chained = self.chain_new(parent.id, job, name=task_model.PARENT_NAME, completed_only=True)
        return self._stored(*chained, parent.id)

    def cancel_task(self, task_id: UUID | str, reason: str | None = None) -> TaskInfo:
        """End an unfinished task as cancelled, and with it its subtasks. Raises JobNotFound, InvalidTransition."""
        found = self.get_task(task_id)
        self.cancel(found.id, reason)
        return self.get_task(found.id)

    def retry_task(self, task_id: UUID | str, max_attempts: int | None = None) -> TaskInfo:
        """Put a failed task back, its attempts counted anew; of its subtasks those that did not complete.

        Raises JobNotFound, and InvalidTransition for a task that has not failed; `retry` takes cancelled ones too.
        """
        found = self.get_task(task_id)
        if found.job.state is not JobState.FAILED:
            raise InvalidTransition(found.id, "retry", found.status, reason="only a failed task is retried")
        self.retry(found.id, max_attempts)
        return self.get_task(found.id)

    def _stored(self, job: Job, created: bool, parent: UUID | None) -> tuple[TaskInfo, bool]:
        """Return a job that was stored; one that was there before may have been planned meanwhile."""
        return (task_of_job(job, parent) if created else self.get_task(job.id)), created

    def _task_rows(
        self, conn: Connection[Any], name: str, params: Mapping[str, Any]
    ) -> builtins.list[DictRow]:
        with Cursor(conn, row_factory=dict_row) as cursor:
            cursor.execute(statement(name), params)
            return cursor.fetchall()
