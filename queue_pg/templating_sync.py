# Generated from queue_pg/templating.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""Job templates: named, versioned defaults of jobs, submitted by name.

`templating_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import DictRow, dict_row

from queue_pg import arguments, callers, template_model
from queue_pg.errors import TemplateNotFound
from queue_pg.models import Submitted
from queue_pg.sqlstates import translated
from queue_pg.statements import statement
from queue_pg.template_model import JobTemplate


class SyncTemplating(ABC):
    """What Queue inherits for job templates."""

    org: str | None
    max_payload_bytes: int

    @abstractmethod
    def connection(self, *, unsafe_to_repeat: bool = False) -> AbstractContextManager[Connection[Any]]:
        """Lend a connection."""

    def put_template(
        self,
        name: str,
        kind: str,
        payload: Any = None,
        *,
        variables: Mapping[str, Any] | None = None,
        queue: str = "default",
        priority: int = 0,
        max_attempts: int | None = None,
        timeout: timedelta | float | None = None,
        limit_key: str | None = None,
        cost: int = 1,
        cache: bool | None = None,
        cache_for: timedelta | float | None = None,
        cache_version: str | None = None,
        description: str | None = None,
    ) -> JobTemplate:
        """Store a template and return it: its next version, or the newest if that is the same already.

        Strings of `payload` hold {{ variables.x }}; `variables` tells their types by name, as {"topic": "string",
        "words": {"type": "integer", "default": 50, "maximum": 500}}. `limit_key` may hold them too.
        With `cache`, `cache_for` or `cache_version` its jobs may be answered by identical work (docs/caching.md).
        Raises InvalidJob naming what is wrong.
        """
        params = template_model.new_template(
            name,
            kind,
            payload,
            variables=variables,
            description=description,
            defaults={
                "queue": queue,
                "priority": priority,
                "max_attempts": max_attempts,
                "timeout": arguments.duration("timeout", timeout),
                "limit_key": limit_key,
                "cost": cost,
                "cache": cache,
                "cache_for": arguments.duration("cache_for", cache_for),
                "cache_version": cache_version,
            },
            org=self.org or "default",
        )
        with self.connection() as conn:
            [row] = self._rows(conn, "put_template", params)
        return self.get_template(name, row["version"])

    def get_template(self, name: str, version: int | None = None) -> JobTemplate:
        """Return a template, in its newest version unless told otherwise. Raises TemplateNotFound."""
        arguments.check_filters(name=name)
        number = template_model.check_version(version)
        params = {"org": self.org, "name": name, "version": number, "after": None, "limit": 1}
        with self.connection() as conn:
            found = self._rows(conn, "templates", params)
        if not found:
            raise TemplateNotFound(name, version)
        return template_model.template(found[0])

    def list_templates(self, *, limit: int = 50, after: str | None = None) -> builtins.list[JobTemplate]:
        """Return templates by name in their newest versions, those after the name `after`."""
        arguments.check_filters(after=after)
        params = {"org": self.org, "name": None, "version": None, "after": after, "limit": arguments.page_size(limit)}
        with self.connection() as conn:
            return [template_model.template(row) for row in self._rows(conn, "templates", params)]

    def submit_template(
        self,
        name: str,
        variables: Mapping[str, Any] | None = None,
        *,
        version: int | None = None,
        connection: Any = None,
        **options: Any,
    ) -> Submitted:
        """Submit a job made from a template, in its newest version unless told otherwise; return its id.

        `options` are those of `submit` and win over the template's. Raises TemplateNotFound, and InvalidJob for a
        variable that is missing, unknown or of the wrong type: `variables.topic`.
        """
        submitted, _ = self.submit_from_template(
            name, variables, version=version, connection=connection, **options
        )
        return submitted

    def submit_from_template(
        self,
        name: str,
        variables: Mapping[str, Any] | None = None,
        *,
        version: int | None = None,
        connection: Any = None,
        **options: Any,
    ) -> tuple[Submitted, bool]:
        """Do what `submit_template` does, and also tell whether the job asks for the cache."""
        arguments.check_filters(name=name)
        params = {
            "pin": "on" if connection is None else "off",
            "name": name,
            "variables": template_model.encode_variables(variables, max_bytes=self.max_payload_bytes),
            # Text, which every driver takes.
            "version": str(template_model.check_version(version) or ""),
            "options": template_model.encode_options(options),
            "org": self.org or "default",
        }
        if connection is not None:
            with translated():
                [row] = callers.fetch_sync(connection, statement("submit_template"), params)
        else:
            with self.connection(unsafe_to_repeat=options.get("unique_key") is None) as conn:
                [row] = callers.fetch_sync(conn, statement("submit_template"), params)
        return Submitted(UUID(row["id"]), bool(row["created"])), bool(row["caches"])

    def _rows(self, conn: Connection[Any], name: str, params: Mapping[str, Any]) -> builtins.list[DictRow]:
        with Cursor(conn, row_factory=dict_row) as cursor:
            cursor.execute(statement(name), params)
            return cursor.fetchall()
