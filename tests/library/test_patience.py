"""Nothing of ours waits for ever: not for a server that says nothing, and not for a lock that somebody keeps."""

from __future__ import annotations

import ast
import asyncio
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from queue_pg_workers import link as link_module
from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.kinds import handlers_of
from queue_pg_workers.link import Link
from queue_pg_workers.providers.mock import MockProvider
from queue_pg_workers.signals import Signals
from queue_pg_workers.webhooks.sender import WebhookSender
from queue_pg_workers.worker import Worker

from queue_pg import DatabaseUnavailable, Queue, SyncQueue, connections, patience, schema
from queue_pg.connections import SESSION_OPTIONS, connect
from queue_pg.models import NewJob
from queue_pg.patience import GRACE_SECONDS, answer_seconds
from queue_pg.tasks import Tasks
from queue_pg.wakeup import Wakeups
from tests.faults.lines import BOTH, Line

PATIENCE_SECONDS: Final = 20.0
SOURCES: Final = Path(__file__).resolve().parents[2]
SHORT: Final = "-c statement_timeout=200ms"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "GRACE_SECONDS", 0.2)


@pytest.fixture
def line(dsn: str) -> Iterator[Line]:
    line = Line(int(conninfo_to_dict(dsn)["port"] or 0), random.Random(1))
    yield line
    line.close()


@pytest.fixture
def through(dsn: str, line: Line) -> str:
    return make_conninfo(dsn, host="127.0.0.1", port=line.port, options=SHORT)


class Mute:
    """A server that takes connections, lets everybody in, and never answers a statement. `deaf`: lets nobody in."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.taken = threading.Semaphore(0)
        self._deaf = deaf
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def dsn(self) -> str:
        port = self._listener.getsockname()[1]
        return make_conninfo("postgresql://u@127.0.0.1/d", port=port, connect_timeout=2, options=SHORT)

    def close(self) -> None:
        for end in (self._listener, *self._kept):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._kept.append(client)
                self.taken.release()
                if not self._deaf:
                    threading.Thread(target=self._let_in, args=(client,), daemon=True).start()

    @staticmethod
    def _let_in(client: socket.socket) -> None:
        with suppress(OSError):
            while True:
                length, code = struct.unpack("!II", client.recv(8, socket.MSG_WAITALL))
                client.recv(length - 8, socket.MSG_WAITALL) if length > 8 else None
                if code == 196_608:
                    break
                client.sendall(b"N")  # no TLS, no GSS
            client.sendall(_said(b"R", struct.pack("!I", 0)))
            for name, value in (("server_version", "15.0"), ("client_encoding", "UTF8"), ("is_superuser", "off")):
                client.sendall(_said(b"S", f"{name}\0{value}\0".encode()))
            client.sendall(_said(b"K", struct.pack("!II", 1, 1)) + _said(b"Z", b"I"))
            while client.recv(65_536):
                pass


def _said(word: bytes, body: bytes) -> bytes:
    return word + struct.pack("!I", len(body) + 4) + body


@pytest.fixture(params=["deaf", "mute"])
def silent(request: pytest.FixtureRequest) -> Iterator[Mute]:
    server = Mute(deaf=request.param == "deaf")
    yield server
    server.close()


async def soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE_SECONDS)


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ("-c statement_timeout=60s", 60),
        ("-c statement_timeout=60s -c statement_timeout=250", 0.25),
        ("-c statement_timeout=5s --statement_timeout=2min", 120),
        ("--statement-timeout=1500ms -c timezone=UTC", 1.5),
        ("-cstatement_timeout='1h'", 3_600),
        (SESSION_OPTIONS, 60),
    ],
)
def test_the_client_waits_a_little_longer_than_the_server_works(
    options: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "GRACE_SECONDS", GRACE_SECONDS)
    assert answer_seconds(options) == pytest.approx(seconds + GRACE_SECONDS)


@pytest.mark.parametrize("options", ["", "-c lock_timeout=5s", "-c statement_timeout=60s -c statement_timeout=0"])
def test_who_says_so_waits_for_ever(options: str) -> None:
    assert answer_seconds(options) is None


def test_every_connection_is_made_with_a_deadline() -> None:
    """A check over the code: nobody connects but by connections.py, and what is embedded to a server of its own."""
    by_hand: list[str] = []
    for folder in ("queue_pg", "api", "workers"):
        for path in sorted((SOURCES / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
                    continue
                name = ast.unparse(node.func)
                # Surroundings connect as connections.py does (surroundings.py, below).
                if name in {"super().connect", "schema.connect", "self._surroundings.connect"}:
                    continue
                if name.endswith((".connect", "ConnectionPool")):
                    by_hand.append(f"{path.relative_to(SOURCES)}: {name}")
    assert sorted(by_hand) == [
        "queue_pg/connections.py: AsyncConnectionPool",
        "queue_pg/connections.py: LibraryAsyncConnection.connect",
        "queue_pg/connections.py: LibraryConnection.connect",
        "queue_pg/embedded/server.py: psycopg.connect",
        "queue_pg/schema.py: LibraryConnection.connect",
        "queue_pg/surroundings.py: connections.connect",
    ]
    for options in (SESSION_OPTIONS, schema.MIGRATION_OPTIONS):
        assert answer_seconds(options) is not None


# --- a server that says nothing ---------------------------------------------------------------------------------------


async def test_a_line_that_falls_silent_is_given_up(through: str, line: Line) -> None:
    async with Queue(through, notify=False) as queue:
        await queue.submit("k")
        line.hold(*BOTH)
        with pytest.raises(DatabaseUnavailable, match="outcome is unknown") as caught:
            await soon(queue.submit("k"))
        assert "no answer within 0.4 s" in str(caught.value.__cause__)
        line.flow()
        await soon(queue.submit("k"))


async def test_so_it_is_in_a_transaction_and_in_a_copy(through: str, line: Line) -> None:
    async with Queue(through, notify=False) as queue, queue.connection() as conn:
        with pytest.raises(psycopg.OperationalError, match="no answer within"):  # noqa: PT012
            async with conn.transaction():
                await conn.execute("select 1")
                line.hold(*BOTH)
                await soon(conn.execute("select 1"))
        assert conn.broken
        line.flow()
    async with Queue(through, notify=False) as queue:
        await queue.submit("k")
        line.hold(*BOTH)
        with pytest.raises(DatabaseUnavailable):
            await soon(queue.submit_many(NewJob(kind="k", payload="x" * 1_000) for _ in range(5_000)))


def test_a_line_that_falls_silent_is_given_up_blocking(through: str, line: Line) -> None:
    with SyncQueue(through, notify=False) as queue:
        queue.submit("k")
        line.hold(*BOTH)
        with pytest.raises(DatabaseUnavailable, match="outcome is unknown") as caught:
            queue.submit("k")
        assert "no answer within 0.4 s" in str(caught.value.__cause__)
        line.flow()
        queue.submit("k")


def test_who_waits_for_notifications_may_wait(dsn: str) -> None:
    with connect(make_conninfo(dsn, options=SHORT)) as conn:
        conn.execute("listen queue_pg_patience")
        assert list(conn.notifies(timeout=0.8)) == []
        conn.execute("select 1")


def test_what_the_server_ends_in_time_costs_no_connection(dsn: str) -> None:
    with connect(make_conninfo(dsn, options=SHORT)) as conn:
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("select pg_sleep(20)")
        conn.execute("select 1")


async def test_a_server_that_never_answers_is_given_up(silent: Mute) -> None:
    with pytest.raises(DatabaseUnavailable):
        await soon(_submit(silent.dsn))
    for call in (_submit_blocking, _look_at_schema, schema.migrate):
        with pytest.raises((DatabaseUnavailable, psycopg.OperationalError)):
            await soon(asyncio.to_thread(call, silent.dsn))


async def _submit(dsn: str) -> None:
    async with Queue(dsn, notify=False) as queue:
        await queue.submit("k")


def _submit_blocking(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        queue.submit("k")


def _look_at_schema(dsn: str) -> None:
    with schema.connect(dsn) as conn:
        schema.check(conn)


async def test_connections_of_a_worker_are_given_up_as_they_are_made(
    silent: Mute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "STATEMENT_SECONDS", 0.3)
    link = Link(silent.dsn, application="test")
    with pytest.raises((psycopg.OperationalError, TimeoutError)):
        await soon(link.run(lambda conn: conn.execute("select 1")))
    await link.close()


async def test_a_worker_and_a_listener_try_again_and_end(silent: Mute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queue_pg.wakeup.ANSWER_SECONDS", 0.2)
    with Wakeups(silent.dsn, application="test"):
        for _ in range(2):
            assert await asyncio.to_thread(silent.taken.acquire, timeout=PATIENCE_SECONDS)
    worker = _worker(silent.dsn)
    running = asyncio.create_task(worker.run())
    for _ in range(2):
        assert await asyncio.to_thread(silent.taken.acquire, timeout=PATIENCE_SECONDS)
    worker.stop()
    await soon(running)


def _worker(dsn: str) -> Worker:
    config = WorkerConfig(dsn=dsn, grace_seconds=1.0)
    handlers = handlers_of(Tasks(), MockProvider(), WebhookSender(config.webhooks), None)
    return Worker(config, handlers, signals=Signals())


# --- a lock that somebody keeps ---------------------------------------------------------------------------------------

Call = Callable[[Queue, UUID], Awaitable[Any]]
CALLS: Final[tuple[Call, ...]] = (
    lambda queue, job: queue.submit("k", unique_key="u"),
    lambda queue, job: queue.submit("k", {"a": 1}, cache=True),
    lambda queue, job: queue.submit("k", depends_on=[job]),
    lambda queue, job: queue.submit("k", limit_key="limited"),
    lambda queue, job: queue.submit_many([NewJob(kind="k") for _ in range(3)]),
    lambda queue, job: queue.claim("w", ["default"], lease_seconds=60),
    lambda queue, job: queue.heartbeat([job], [1]),
    lambda queue, job: queue.progress(job, 1, 0.5),
    lambda queue, job: queue.complete(job, 1),
    lambda queue, job: queue.fail(job, 1, "no"),
    lambda queue, job: queue.snooze(job, 1, 5),
    lambda queue, job: queue.save_step(job, 1, "s", 1),
    lambda queue, job: queue.wait_for_event(job, 1, "e"),
    lambda queue, job: queue.signal(job, "e"),
    lambda queue, job: queue.plan(job, 1, ["look", "write"]),
    lambda queue, job: queue.put_artifact(job, "a.txt", b"x"),
    lambda queue, job: queue.cancel(job),
    lambda queue, job: queue.retry(job),
    lambda queue, job: queue.rerun(job),
    lambda queue, job: queue.delete(job, cancel=True),
    lambda queue, job: queue.reprioritize(job, 3),
    lambda queue, job: queue.wait(job, timeout=0.1),
    lambda queue, job: queue.pause("elsewhere"),
    lambda queue, job: queue.drain("elsewhere"),
    lambda queue, job: queue.create_batch("b", on_all="k"),
    lambda queue, job: queue.schedule("s", "k", every=60),
    lambda queue, job: queue.put_template("t", "k"),
    lambda queue, job: queue.set_limit("key", "limited", max_running=1),
    lambda queue, job: queue.submit_task("do it"),
    lambda queue, job: queue.stats(),
)
TABLES: Final = """
select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'queue_pg' and c.relkind in ('r', 'p') and not c.relispartition order by 1
"""


async def test_a_table_that_somebody_keeps_locked_stops_nobody_for_ever(
    dsn: str, conn: psycopg.AsyncConnection
) -> None:
    """One table after the other, and all: every call answers, or says that the database did not."""
    hasty = make_conninfo(dsn, options="-c statement_timeout=100ms")
    worker = _worker(hasty)
    running = asyncio.create_task(worker.run())
    tables = [row[0] for row in await (await conn.execute(TABLES)).fetchall()]
    assert {"jobs", "finished_jobs", "limits", "batches", "schedules", "artifacts"} <= set(tables)
    stopped = 0
    async with Queue(hasty, notify=False, max_connections=len(CALLS)) as queue, Queue(dsn, notify=False) as patient:
        for table in [*tables, ", queue_pg.".join(tables)]:
            job = (await patient.submit("k", queue="aside")).id
            async with await psycopg.AsyncConnection.connect(dsn) as holder:
                await holder.execute(f"lock table queue_pg.{table} in access exclusive mode".encode())
                answers = await soon(asyncio.gather(*(call(queue, job) for call in CALLS), return_exceptions=True))
                maintained = await asyncio.gather(_maintain(hasty), return_exceptions=True)
                stopped += sum(isinstance(one, DatabaseUnavailable) for one in answers)
                wrong = [one for one in (*answers, *maintained) if isinstance(one, TypeError | AttributeError)]
                assert wrong == []
        assert stopped > len(tables)
        # Whoever was held up goes on.
        assert (
            await patient.wait((await patient.submit("chat", {"prompt": "x"})).id, PATIENCE_SECONDS)
        ).state == "completed"
    worker.stop()
    await soon(running)


async def _maintain(dsn: str) -> None:
    async with await connections.connect_async(dsn) as conn:
        await conn.execute("select queue_pg.maintain()")
        await conn.execute("select queue_pg.maintain_history()")
