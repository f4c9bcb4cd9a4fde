# Generated from queue_pg/bulk.py by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""Storing many jobs on one connection: by COPY where that is possible, else by queue_pg.submit_many().

COPY takes jobs that have no unique keys and do not ask for the cache, on psycopg's connections. While Postgres stores
what has been sent the next jobs are made ready; a COPY is ended now and then, because it is one statement to the limits
on how long statements may take.
`bulk_sync.py` is generated from this file by tools/async_to_sync.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self, cast

import psycopg
from psycopg import Connection, Copy, Cursor
from psycopg.pq import PipelineStatus, TransactionStatus

from queue_pg import callers, store_sync as store
from queue_pg.copy_rows import HEADER, TRAILER, CopyRows
from queue_pg.errors import UniqueKeyConflict
from queue_pg.models import Submitted
from queue_pg.sqlstates import translate_error
from queue_pg.statements import statement
from queue_pg.submission import CheckedJob, encode_array

# Fewer are stored sooner by one statement than by the three that a COPY takes.
COPY_JOBS: Final = 40
JOBS_PER_COPY: Final = 10_000
BYTES_PER_COPY: Final = 32 * 1024 * 1024
SECONDS_PER_COPY: Final = 1.0
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_Connection = Connection[object]
# "COPY jobs, line 7, column payload: ..." in the server's language.
_LINE: Final = re.compile(r"^COPY [^,]*,\D*(\d+)", re.MULTILINE)


class SyncBulk:
    """Stores chunks of checked jobs on one connection, in order, all or none.

        with SyncBulk(conn, own_transaction=True, streams=True) as bulk:
            submitted += bulk.add(chunk.jobs, chunk.places)

    A transaction of our own is committed at the end. In a caller's a failure undoes what was stored here (on psycopg's
    connections; on others a refusal fails the transaction). With `streams` a COPY stays open between two calls, so that
    the connection cannot be used for anything else.
    Raises errors of the database as they are; `refused` is then the places of the jobs that may be meant, one if
    Postgres has said which.
    """

    def __init__(self, conn: Any, *, own_transaction: bool, streams: bool) -> None:
        self.refused: Sequence[int] = ()
        self._conn = conn
        self.own_transaction = own_transaction
        self._streams = streams
        self._psycopg = cast(_Connection, conn) if isinstance(conn, Connection) else None
        self._takes_copy = self._psycopg is not None and _takes_copy(self._psycopg)
        self._undoable = False
        self._transaction = ExitStack()
        self._copying = ExitStack()
        self._copy: Copy | None = None
        self._rows: CopyRows | None = None
        self._places: list[int] = []
        self._size = 0
        self._end_at = 0.0

    def __enter__(self) -> Self:
        if self.own_transaction:
            self._make_undoable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._transaction:
            if error is None:
                self.end()
                return
            self._copying.__exit__(kind, error, trace)
            raise error

    def add(self, jobs: Sequence[CheckedJob], places: Sequence[int], *, last: bool = False) -> list[Submitted]:
        """Store jobs; `places` are what `refused` calls them by. With `last` no more follow."""
        by_copy = self._takes_copy and (self._copy is not None or len(jobs) >= COPY_JOBS)
        if by_copy and any(terms.unique_key is not None or terms.caches for terms, _ in jobs):
            by_copy = False
        if by_copy or not last:
            self._make_undoable()
        if not by_copy:
            return self._submit(jobs, places)
        copy, rows = self._copy, self._rows
        if copy is None or rows is None:
            copy, rows = self._begin()
        data, ids = rows.add(jobs)
        self._places += places
        self._size += len(data)
        copy.write(data)
        enough = len(self._places) >= JOBS_PER_COPY or self._size >= BYTES_PER_COPY or time.monotonic() >= self._end_at
        if enough or not self._streams:
            self.end()
        return [Submitted(each, True) for each in ids]

    def end(self) -> None:
        """End the COPY that is under way; what it refuses is raised here."""
        copy, self._copy, self._rows = self._copy, None, None
        if copy is None:
            return
        try:
            copy.write(TRAILER)
            self._copying.close()
        except psycopg.Error as error:
            line = _LINE.search(error.diag.context or "")
            number = int(line[1]) if line else 0
            self.refused = self._places[number - 1 : number] or self._places
            raise
        finally:
            self._places, self._size = [], 0

    def _begin(self) -> tuple[Copy, CopyRows]:
        params = {"pin": "on" if self.own_transaction else "off"}
        [row] = callers.fetch_sync(self._conn, statement("submit_clock"), params)
        rows = CopyRows(_BEGINNING + timedelta(microseconds=int(row["microseconds"])))
        cursor = Cursor(self._conn)
        copy = self._copying.enter_context(cursor.copy(statement("submit_copy")))
        copy.write(HEADER)
        self._copy, self._rows = copy, rows
        self._end_at = time.monotonic() + SECONDS_PER_COPY
        return copy, rows

    def _make_undoable(self) -> None:
        conn = self._psycopg
        if conn is None or self._undoable:
            return
        self._undoable = True
        idle = conn.info.transaction_status == TransactionStatus.IDLE
        if idle and not self.own_transaction and not conn.autocommit:
            # A transaction that psycopg has begun by itself is the caller's to end; on an idle connection
            # `transaction()` would end it.
            callers.fetch_sync(conn, statement("now"), {})
        self._transaction.enter_context(conn.transaction())

    def _submit(self, jobs: Sequence[CheckedJob], places: Sequence[int]) -> list[Submitted]:
        self.end()
        try:
            return store.submit_many(self._conn, encode_array(jobs), own_transaction=self.own_transaction)
        except Exception as error:
            made = translate_error(error)
            self.refused = places
            if isinstance(made, UniqueKeyConflict):
                self.refused = [
                    place for (terms, _), place in zip(jobs, places, strict=True) if terms.unique_key == made.unique_key
                ][:1]
            raise


def _takes_copy(conn: _Connection) -> bool:
    # Rows are made as UTF-8, and COPY takes texts in the connection's encoding.
    return conn.pgconn.pipeline_status == PipelineStatus.OFF and conn.info.encoding == "utf-8"
