# Generated from queue_pg/limiting.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""What Queue does with limits of work in flight.

`limiting_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg import Connection

from queue_pg import arguments
from queue_pg import limit_store_sync as limit_store
from queue_pg.errors import InvalidJob, LimitNotFound
from queue_pg.models import Limit
from queue_pg.payloads import encode_json
from queue_pg.submission import MAX_KEY_CHARS, MAX_NAME_CHARS, seconds

SCOPES: Final = ("queue", "key")
PERIODS: Final = ("second", "minute", "hour", "day")
MOST: Final = 1_000_000
MAX_LIMITS_PAGE: Final = 1_000
LEAST_WEIGHT: Final = 0.001
MOST_WEIGHT: Final = 1_000


class SyncLimiting(ABC):
    """What Queue inherits for limits. Those of another tenant are invisible.

    `scope` is "queue", and `name` a queue; or "key", and `name` what jobs have as their `limit_key`, whatever queues
    they are in. A key that ends with * is a template: the first job of a key that begins so makes that key's own limit.
    """

    org: str | None

    @abstractmethod
    def connection(self) -> AbstractContextManager[Connection[Any]]:
        """Lend a connection."""

    def set_limit(
        self,
        scope: str,
        name: str,
        *,
        max_running: int | None = None,
        rate: int | None = None,
        per: str = "second",
        burst: int | None = None,
        weight: float | None = None,
        ageing: timedelta | float | None = None,
    ) -> Limit:
        """Make a limit or replace what it says, and return it; what runs goes on, and a pause stays.

        At most `max_running` attempts run at once. At most `rate` units of cost start per "second", "minute", "hour" or
        "day", `burst` (None: `rate`) of them at once after a quiet time; every attempt takes its job's `cost`.
        `weight`, from 0.001 to 1,000 (None: 1), is a key's or tenant's share of a queue beside others, in units of
        cost, or a queue's share of a worker. `ageing`, of a queue: one turn of eight is for the job that has waited
        longest, whatever its priority, if it has for that time. Raises InvalidJob.
        """
        _check(scope, name)
        share = _weight(weight)
        ageing_seconds = seconds("ageing", ageing, shortest=timedelta(milliseconds=100), longest=timedelta(days=365))
        for field, value in (("max_running", max_running), ("rate", rate), ("burst", burst)):
            if value is not None:
                _whole(field, value, MOST)
        if per not in PERIODS:
            raise InvalidJob("per", f"must be one of {', '.join(PERIODS)}")
        with self.connection() as conn:
            limit_store.set_limit(
                conn,
                scope,
                name,
                max_running=max_running,
                rate=rate,
                per=per,
                burst=burst,
                weight=share,
                ageing_seconds=ageing_seconds,
                org=self.org or "default",
            )
        return self.get_limit(scope, name)

    def limits(
        self, *, scope: str | None = None, limit: int = 100, after: tuple[str, str] | None = None
    ) -> list[Limit]:
        """Return limits by scope and name; for more give both of the last one as `after`."""
        if scope is not None:
            _check(scope, "any")
        if after is not None:
            _check(*after)
        _whole("limit", limit, MAX_LIMITS_PAGE)
        with self.connection() as conn:
            # Behind those of all tenants that have the name.
            place = None if after is None else (*after, self.org or "\U0010ffff")
            return limit_store.limits(conn, org=self.org, scope=scope, after=place, limit=limit)

    def get_limit(self, scope: str, name: str) -> Limit:
        """Return a limit with what runs now. Raises LimitNotFound, as all that follow."""
        _check(scope, name)
        with self.connection() as conn:
            found = limit_store.limits(conn, org=self.org or "default", scope=scope, name=name, limit=1)
        if not found:
            raise LimitNotFound(scope, name)
        return found[0]

    def remove_limit(self, scope: str, name: str) -> None:
        """End a limit, a template with all that were made from it."""
        _check(scope, name)
        with self.connection() as conn:
            if not limit_store.remove_limit(conn, scope, name, org=self.org or "default"):
                raise LimitNotFound(scope, name)

    def pause_limit(self, scope: str, name: str, until: datetime | None = None) -> Limit:
        """Stop claims under a limit until a moment, or until `resume_limit`; makes one that has only the pause."""
        _check(scope, name)
        arguments.aware("until", until)
        with self.connection() as conn:
            limit_store.pause_limit(conn, scope, name, until=until, org=self.org or "default")
        return self.get_limit(scope, name)

    def resume_limit(self, scope: str, name: str) -> Limit:
        """Allow claims under a paused limit again."""
        _check(scope, name)
        with self.connection() as conn:
            if not limit_store.resume_limit(conn, scope, name, org=self.org or "default"):
                raise LimitNotFound(scope, name)
        return self.get_limit(scope, name)


def _check(scope: Any, name: Any) -> None:
    if scope not in SCOPES:
        raise InvalidJob("scope", f"must be one of {', '.join(SCOPES)}")
    most = MAX_KEY_CHARS if scope == "key" else MAX_NAME_CHARS
    if not isinstance(name, str) or not 1 <= len(name) <= most:
        raise InvalidJob("name", f"must be a string of 1 to {most} characters")
    encode_json(name, field="name")


def _whole(field: str, value: Any, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidJob(field, f"must be an integer from 1 to {most:,}")


def _weight(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not LEAST_WEIGHT <= value <= MOST_WEIGHT:
        raise InvalidJob("weight", f"must be a number from {LEAST_WEIGHT} to {MOST_WEIGHT:,}")
    return float(value)
