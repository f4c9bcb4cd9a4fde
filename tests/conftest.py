"""A real Postgres for every test: one server for the run, one database for the test, cloned from a migrated template.

`QUEUE_PG_TEST_POSTGRES` chooses the server:
    embedded                      (default) the one that `make demo` uses, in a temporary folder, without fsync
    testcontainers:<image>        a container of that image, such as testcontainers:postgres:14
    postgresql://user@host/db     a server that runs already; the user needs CREATEDB
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import hypothesis
import psycopg
import pytest
from psycopg import sql

from queue_pg.dsn import normalise_dsn, with_database
from queue_pg.embedded import EmbeddedPostgres
from queue_pg.errors import ConfigError
from queue_pg.schema import migrate
from queue_pg.settings import Settings, variables

if TYPE_CHECKING:
    from queue_pg.testing import Clock

# What a machine stands still for is not the example's fault. (The same whether CI is set or not.)
hypothesis.settings.register_profile("queue-pg", deadline=None)
hypothesis.settings.load_profile("queue-pg")

# Shells ignore it for what they start in the background, and all processes of a test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHOICE = os.environ.get("QUEUE_PG_TEST_POSTGRES", "embedded").strip() or "embedded"
CONTAINERS = "testcontainers:"
ORPHAN_SECONDS = 60
CONTAINER_COMMAND = "postgres -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=200"


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """The server of this run: the DSN to administrate it by, and the template that holds all migrations."""

    admin_dsn: str
    template: str


# -- once per run, in the process that controls it ---------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    # A developer's own key or database must not be used by a test.
    for field in Settings.model_fields.values():
        for name in variables(field):
            os.environ.pop(name, None)
    worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker_input is not None:
        config.stash[_RUN] = _Run(folder=Path(worker_input["queue_pg_folder"]), dsn=worker_input["queue_pg_dsn"])
        return
    run = _Run(folder=_make_folder(), dsn=None)
    config.stash[_RUN] = run
    if CHOICE.startswith(CONTAINERS):
        if not config.option.collectonly:
            run.container, run.dsn = _start_container(CHOICE.removeprefix(CONTAINERS))
    elif CHOICE != "embedded":
        try:
            run.dsn = normalise_dsn(CHOICE)
        except ConfigError as error:
            raise pytest.UsageError(
                f"QUEUE_PG_TEST_POSTGRES is neither embedded, testcontainers:<image> nor a DSN: {error}"
            ) from None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell each xdist worker which server to use."""
    run = node.config.stash[_RUN]
    node.workerinput["queue_pg_folder"] = str(run.folder)
    node.workerinput["queue_pg_dsn"] = run.dsn


def pytest_report_header(config: pytest.Config) -> str:
    return f"postgres: {CHOICE if CHOICE == 'embedded' or CHOICE.startswith(CONTAINERS) else 'given DSN'}"


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(_RUN, None)
    if run is None or hasattr(config, "workerinput"):
        return
    if run.container is not None:
        run.container.stop()
    elif run.dsn is not None and run.marker.exists():
        with psycopg.connect(run.dsn, autocommit=True) as admin:
            _drop(admin, run.template, is_template=True)
    else:
        _remove_embedded(run.embedded)
    shutil.rmtree(run.folder, ignore_errors=True)


@dataclass(slots=True)
class _Run:
    """What the controller and the xdist workers of one run share. `dsn` is None for the embedded server."""

    folder: Path
    dsn: str | None
    container: Any = None

    @property
    def embedded(self) -> EmbeddedPostgres:
        return EmbeddedPostgres(self.folder / "postgres", durable=False)

    @property
    def template(self) -> str:
        return f"template_{self.folder.name.replace('-', '_')}"

    @property
    def marker(self) -> Path:
        return self.folder / "template-is-ready"

    @contextmanager
    def alone(self) -> Generator[None]:
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


_RUN = pytest.StashKey[_Run]()


def _fast_place() -> str | None:
    # Copying a template in memory takes 10 ms, on a busy disk ten times that. Containers often have 64 MB there.
    memory = Path("/dev/shm")  # noqa: S108 - a folder of a random name is made in it
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * 1024**3
    return str(memory) if roomy and CHOICE == "embedded" else None


def _start_container(image: str) -> tuple[Any, str]:
    from docker.errors import DockerException
    from testcontainers.community.postgres import PostgresContainer

    try:
        container = PostgresContainer(image, username="postgres", password="postgres", dbname="postgres", driver=None)
        container.with_command(CONTAINER_COMMAND)
        container.start()
    except DockerException as error:
        raise pytest.UsageError(f"QUEUE_PG_TEST_POSTGRES={CHOICE} needs a container engine: {error}") from None
    return container, container.get_connection_url()


def _make_folder() -> Path:
    """Make the run's folder, and remove those of runs that were killed; a live run holds a lock in its folder."""
    place = _fast_place() or tempfile.gettempdir()
    for old in Path(place).glob("queue-pg-tests-*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime < ORPHAN_SECONDS:
                continue  # it may be about to take its lock
            with (old / "run.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="queue-pg-tests-", dir=place))
    folder.chmod(0o711)  # as root, the server's account has to pass through
    descriptor = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # until this process ends
    return folder


def _remove_embedded(server: EmbeddedPostgres) -> None:
    # A killed worker leaves the server to its guard, which needs a moment.
    deadline = time.monotonic() + 30
    while server.running() is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    if server.cluster.is_symlink():
        shutil.rmtree(server.cluster.resolve().parent, ignore_errors=True)


# -- once per process --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """The server of this run, with the template made."""
    run = pytestconfig.stash[_RUN]
    server = run.embedded if run.dsn is None else None
    admin_dsn = run.dsn if server is None else with_database(server.start(), "postgres")
    assert admin_dsn is not None
    try:
        with run.alone():
            if not run.marker.exists():
                _make_template(admin_dsn, run.template)
                run.marker.touch()
        yield PostgresServer(admin_dsn=admin_dsn, template=run.template)
    finally:
        if server is not None:
            server.stop()


@pytest.fixture(scope="session")
def admin(postgres_server: PostgresServer) -> Iterator[psycopg.Connection]:
    """A connection that may create and drop databases."""
    with psycopg.connect(postgres_server.admin_dsn, autocommit=True) as connection:
        yield connection


def _make_template(admin_dsn: str, template: str) -> None:
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        _drop(admin, template, is_template=True)
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(template)))
        migrate(with_database(admin_dsn, template))
        # Nobody can connect, so nothing is ever in the way of copying it.
        admin.execute(
            sql.SQL("alter database {} with is_template true allow_connections false").format(sql.Identifier(template))
        )


# -- once per test -----------------------------------------------------------------------------------------------------

END_CONNECTIONS = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = %(database)s"

_numbers = count(1)


@pytest.fixture
def dsn(postgres_server: PostgresServer, admin: psycopg.Connection) -> Iterator[str]:
    """The DSN of a fresh, migrated database, dropped after the test."""
    with _database(admin, postgres_server.template) as name:
        yield with_database(postgres_server.admin_dsn, name)


@pytest.fixture
def empty_dsn(postgres_server: PostgresServer, admin: psycopg.Connection) -> Iterator[str]:
    """The DSN of a fresh database without any migration, dropped after the test."""
    with _database(admin, "template1") as name:
        yield with_database(postgres_server.admin_dsn, name)


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """An autocommit connection to the test's database."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def clock(dsn: str) -> Clock:
    """The database's clock, movable: `clock.advance(seconds)`."""
    from queue_pg.testing import Clock

    return Clock(dsn)


@pytest.fixture
def stopped(dsn: str, clock: Clock) -> Clock:
    """The database's clock, which stands still until it is moved: what is measured by it is exact."""
    now = clock.advance(0)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "create or replace function queue_pg.now() returns timestamptz language sql volatile parallel safe"
            f" return timestamptz '{now}' + (select c.moved from queue_pg.testing_clock c)"
        )
    return clock


@contextmanager
def _database(admin: psycopg.Connection, template: str) -> Generator[str]:
    name = f"queue_pg_test_{next(_numbers)}_{uuid4().hex[:12]}"
    # Copying files beats writing WAL several times over, but checkpoints twice: a good deal only without fsync.
    by_file = admin.info.server_version >= 150000 and admin.execute("show fsync").fetchone() == ("off",)
    strategy = sql.SQL(" strategy file_copy") if by_file else sql.SQL("")
    admin.execute(
        sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template)) + strategy
    )
    try:
        yield name
    finally:
        # DROP sleeps 100 ms when a connection that was closed just now has not ended yet, so see it off first.
        for _ in range(100):
            if admin.execute(END_CONNECTIONS, {"database": name}).fetchone() == (0,):
                break
        _drop(admin, name)


def _drop(admin: psycopg.Connection, name: str, *, is_template: bool = False) -> None:
    identifier = sql.Identifier(name)
    if is_template:
        with suppress(psycopg.errors.InvalidCatalogName):
            admin.execute(sql.SQL("alter database {} with is_template false").format(identifier))
    admin.execute(sql.SQL("drop database if exists {} with (force)").format(identifier))
