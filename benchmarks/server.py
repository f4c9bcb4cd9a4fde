"""The PostgreSQL that everything is measured on: started here, durable, with a fresh database for every contestant."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from benchmarks import proc
from benchmarks.statements import Query
from queue_pg.dsn import with_database
from queue_pg.embedded import EmbeddedPostgres
from queue_pg.embedded.programs import available_versions

Connection = psycopg.Connection[Any]

# Durable, and large enough that no checkpoint falls into one contestant's run and not into another's.
SETTINGS = {
    "shared_buffers": "768MB",
    "max_wal_size": "8GB",
    "min_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "wal_buffers": "16MB",
    "max_connections": "500",
}
# As many as `min_wal_size` keeps, less some in use.
SEGMENTS = 240
SHOWN = (
    "fsync", "synchronous_commit", "full_page_writes", "wal_level", "wal_compression", "wal_sync_method", "autovacuum",
    "shared_buffers", "min_wal_size", "max_wal_size", "checkpoint_timeout", "max_connections",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Database:
    """A database of one contestant's own."""

    dsn: str

    def connect(self) -> Connection:
        """Connect in autocommit mode."""
        return psycopg.connect(self.dsn, autocommit=True)

    def execute(self, statement: Query, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own and return its rows, if it has any."""
        with self.connect() as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def scalar(self, statement: Query, parameters: Any = None) -> Any:
        """Return the first column of the first row."""
        return self.execute(statement, parameters)[0][0]

    def settle(self) -> None:
        """Bring all contestants to the same start: statistics and hint bits up to date, nothing left to write out."""
        self.execute("vacuum (analyze)")
        self.execute("checkpoint")


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server had used by a moment."""

    cpu_seconds: float
    wal_bytes: int

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.cpu_seconds - earlier.cpu_seconds, self.wal_bytes - earlier.wal_bytes)


class Server:
    """The running server."""

    def __init__(self, dsn: str) -> None:
        self._admin = psycopg.connect(with_database(dsn, "postgres"), autocommit=True)
        self.postmaster = self._postmaster()

    @property
    def version(self) -> str:
        """The server's version, such as 18.1."""
        return str(self._show("server_version"))

    @property
    def settings(self) -> dict[str, str]:
        """The settings that matter for the figures."""
        return {name: str(self._show(name)) for name in SHOWN}

    def usage(self) -> Usage:
        """Return CPU time of all the server's processes, ended ones included, and the bytes of WAL written so far."""
        row = self._admin.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
        assert row is not None
        return Usage(proc.cpu_seconds(self.postmaster), row[0])

    @contextmanager
    def database(self, name: str = "bench") -> Generator[Database]:
        """Make a fresh database, and drop it afterwards."""
        self._drop(name)
        self._admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield Database(with_database(self._admin_dsn(), name))
        finally:
            self._drop(name)

    def make_segments(self) -> None:
        """Have WAL segments to reuse, as a server has that has run for a while.

        A new one is 16 MB of zeros, written and flushed while all commits wait: 25 to 60 ms, twice a second.
        """
        row = self._admin.execute("select count(*) from pg_ls_waldir()").fetchone()
        assert row is not None
        for _ in range(SEGMENTS - int(row[0])):
            self._admin.execute("select pg_logical_emit_message(false, 'bench', 'a segment')")
            self._admin.execute("select pg_switch_wal()")
        self._admin.execute("checkpoint")

    def close(self) -> None:
        """Let go of the server."""
        self._admin.close()

    def _drop(self, name: str) -> None:
        self._admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def _admin_dsn(self) -> str:
        info = self._admin.info
        return f"postgresql://{info.user}:{info.password}@{info.host}:{info.port}/{info.dbname}"

    def _show(self, name: str) -> Any:
        row = self._admin.execute("select current_setting(%s)", (name,)).fetchone()
        assert row is not None
        return row[0]

    def _postmaster(self) -> int:
        own = proc.stat(self._admin.info.backend_pid)
        assert own is not None
        return own.parent


@contextmanager
def running_server(folder: Path) -> Generator[Server]:
    """Start the server with its data in `folder`; it ends with this process at the latest."""
    postgres = EmbeddedPostgres(folder)
    dsn = postgres.start()
    try:
        if _configure(dsn):
            postgres.stop()
            dsn = postgres.start()
        server = Server(dsn)
        try:
            yield server
        finally:
            server.close()
    finally:
        postgres.stop()


def programs() -> Path:
    """Return the folder of the newest PostgreSQL's programs."""
    versions = available_versions()
    return versions[max(versions, key=int)] / "bin"


def _configure(dsn: str) -> bool:
    """Write the settings; return whether they need a restart."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name, value in SETTINGS.items():
            connection.execute(sql.SQL("alter system set {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        _make_connecting_cheap(connection, dsn)
        connection.execute("select pg_reload_conf()")
        time.sleep(0.2)
        pending = connection.execute("select count(*) from pg_settings where pending_restart").fetchone()
        return pending is not None and pending[0] > 0


def _make_connecting_cheap(connection: Connection, dsn: str) -> None:
    # 64 clients of pgbench take most of a second for SCRAM's 4,096 rounds, which are nobody's figure.
    account = conninfo_to_dict(dsn)
    connection.execute("set scram_iterations = 1")
    connection.execute(
        sql.SQL("alter role {} password {}").format(
            sql.Identifier(str(account["user"])), sql.Literal(account["password"])
        )
    )
