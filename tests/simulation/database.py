"""The real database under a simulation: its time, its chance and its ids are those of the simulation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psycopg

from queue_pg.schema import migrate
from tests.faults import ledgers
from tests.faults.ledgers import Edge, Stored
from tests.faults.parts import Parts, read_parts
from tests.simulation.backends import EPOCH_SECONDS, Backends

# Each statement of the simulation begins by saying what time it is, in microseconds.
_CLOCK: Final = (
    "create or replace function queue_pg.now() returns timestamptz language sql volatile parallel safe"
    " return timestamptz 'epoch' + make_interval(secs =>"
    f" coalesce(nullif(current_setting('sim.now', true), '')::float8 / 1e6, {EPOCH_SECONDS} + 1000))"
)
_IDS: Final = (
    "create sequence queue_pg.simulated_ids",
    "create or replace function queue_pg.uuid7_at(at timestamptz) returns uuid language sql volatile"
    " return (lpad(to_hex(floor(extract(epoch from at) * 1000)::bigint), 12, '0') || '70008000'"
    " || lpad(to_hex(nextval('queue_pg.simulated_ids')), 12, '0'))::uuid",
    "create or replace function queue_pg.uuid7() returns uuid language sql volatile"
    " return queue_pg.uuid7_at(queue_pg.now())",
)
# What functions measure of themselves is real time, which no two runs have in common.
_MEASURING: Final = (
    "select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'queue_pg'::regnamespace"
    " and p.prokind = 'f' and p.prosrc ~ 'clock_timestamp' order by p.oid"
)
_TABLES: Final = (
    "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
    " where n.nspname in ('queue_pg', 'faults') and c.relkind in ('r', 'p') and not c.relispartition"
    " and c.relname <> 'migrations' order by 1"
)
_SEQUENCES: Final = (
    "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
    " where n.nspname in ('queue_pg', 'faults') and c.relkind = 'S' order by 1"
)


class Database:
    """A database of the simulation's own, used for one run after the other."""

    def __init__(self, dsn: str, planted: Sequence[tuple[str, str, str]] = ()) -> None:
        """`planted`: functions, what they say, and what they shall say instead."""
        self.dsn = dsn
        migrate(dsn)
        ledgers.install(dsn)
        self._connection = psycopg.connect(dsn, autocommit=True)
        for sql in (_CLOCK, *_IDS, "alter table faults.edges alter at set default queue_pg.now()"):
            self.run(sql)
        for (definition,) in self.run(_MEASURING):
            if "function queue_pg.now()" not in definition.lower():
                self.run(definition.replace("clock_timestamp()", "queue_pg.now()"))
        for name, said, instead in planted:
            [(definition,)] = self.run(
                "select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'queue_pg'::regnamespace"
                " and p.proname = %s",
                name,
            )
            assert said in definition, f"{name} does not say {said}"
            self.run(definition.replace(said, instead))
        self.run("select queue_pg.maintain_history()")
        for (table,) in self.run(_TABLES):
            self.run(f"alter table {table} set (autovacuum_enabled = off)" if not self._parted(table) else "select 1")
        # What a new database holds.
        self._tables = [table for (table,) in self.run(_TABLES)]
        self._sequences = [
            (name, *self.run(f"select last_value, is_called from {name}")[0]) for (name,) in self.run(_SEQUENCES)
        ]
        self.run("create schema kept")
        self._kept = [table for table in self._tables if self.run(f"select 1 from {table} limit 1")]
        for table in self._kept:
            self.run(f"create table kept.{table.partition('.')[2]} as select * from {table}")
        self.backends = Backends(dsn)
        self._used = False

    def _parted(self, table: str) -> bool:
        return self.run("select relkind from pg_class where oid = %s::regclass", table) == [("p",)]

    def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(sql.encode(), values or None)
        return cursor.fetchall() if cursor.description is not None else []

    def empty(self) -> None:
        """As new, to the last byte: where rows lie decides in which order they are found."""
        used = [table for table in self._tables if self.run(f"select 1 from {table} limit 1")]
        self.run(f"truncate {', '.join(used)} cascade")
        for table in self._kept:
            self.run(f"insert into {table} select * from kept.{table.partition('.')[2]}")
        self.run("select " + ", ".join(f"setval('{name}', {last}, {called})" for name, last, called in self._sequences))

    def live(self) -> int:
        """Return how many jobs have not ended, and batches that will."""
        [(count,)] = self.run(
            "select (select count(*) from queue_pg.jobs)"
            " + (select count(*) from queue_pg.batches where state = 'closed')"
        )
        return int(count)

    def edges(self) -> list[Edge]:
        return ledgers.read_edges(self._connection)

    def stored(self) -> list[Stored]:
        return ledgers.read_stored(self._connection)

    def parts(self) -> Parts:
        """Return what the tables say of artifacts, events, batches and steps."""
        return read_parts(Path("/nowhere"), self._connection)

    def said(self) -> dict[str, list[str]]:
        """Return the lines in each job's log."""
        rows = self.run(
            "select job_id::text, array_agg(data ->> 'line') from queue_pg.job_events where type = 'log' group by 1"
        )
        return dict(rows)

    def close(self) -> None:
        self.backends.close()
        self._connection.close()
