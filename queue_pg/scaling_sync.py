# Generated from queue_pg/scaling.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""How many workers a queue needs, for autoscalers.

`scaling_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from psycopg import Connection

from queue_pg import action_store_sync as action_store
from queue_pg import arguments
from queue_pg.errors import InvalidJob
from queue_pg.scale_model import Scale


class SyncScaling(ABC):
    """What Queue inherits for autoscalers."""

    org: str | None

    @abstractmethod
    def connection(self, *, unsafe_to_repeat: bool = False) -> AbstractContextManager[Connection[Any]]:
        """Lend a connection."""

    def scale(
        self,
        queue: str,
        *,
        slots: int | None = None,
        jobs_per_worker: float | None = None,
        target_wait: timedelta | float | None = None,
        job_seconds: float | None = None,
        min_workers: int = 0,
        max_workers: int = 100,
    ) -> Scale:
        """Return how many workers a queue needs, of all organisations together, since workers serve all.

        One for every `jobs_per_worker` jobs that are queued or running (as many as it runs at once unless given); or,
        with `target_wait`, as many as start what is queued within that time, at `job_seconds` a job (as the newest ones
        took unless given). `slots` is how many jobs a worker runs at once (as those that live do unless given). Limits
        that let fewer run need fewer. Raises InvalidJob naming what is wrong.
        """
        arguments.check_filters(queue=queue)
        counts: dict[str, Any] = {"slots": slots, "min_workers": min_workers, "max_workers": max_workers}
        for field, value in counts.items():
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**31):
                raise InvalidJob(field, "must be an integer")
        with self.connection() as conn:
            return action_store.scale(
                conn,
                queue,
                slots=slots,
                jobs_per_worker=arguments.number("jobs_per_worker", jobs_per_worker),
                target_wait=arguments.wait("target_wait", target_wait),
                job_seconds=arguments.number("job_seconds", job_seconds),
                min_workers=min_workers,
                max_workers=max_workers,
                org=None,
            )
