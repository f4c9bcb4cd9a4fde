"""Three sessions on one job: each runs one statement and commits, in every order in which they can.

Nothing sleeps. A statement that waits for a lock is seen in pg_stat_activity; then the others go on, and an order in
which somebody commits who still waits is one that cannot be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import permutations
from typing import Any, Final
from uuid import UUID

import psycopg

from queue_pg.statements import statement
from queue_pg.testing import Clock
from tests.faults import ledgers
from tests.faults.checker import Expectation, check, describe
from tests.faults.ledgers import Evidence

Connection = psycopg.AsyncConnection[Any]

# The worker of the first claim says what it says with token 1, whatever has happened since.
FINISH: Final = "select accepted from queue_pg.finish(array[%(id)s::uuid], array[1::bigint], array['{}'])"
ACTIONS: Final = {
    "claim": "select id from queue_pg.claim('other', '{default}')",
    "heartbeat": "select id from queue_pg.heartbeat(array[%(id)s::uuid], array[1::bigint])",
    "reap": "select id from queue_pg.reap()",
    "finish": FINISH.format("complete"),
    "cancel": "select id from queue_pg.cancel(%(id)s)",
    "snooze": FINISH.format("snooze"),
    "retry": "select id from queue_pg.retry(%(id)s)",
    "promote": "select queue_pg.promote()",
    "retention": "select created from queue_pg.maintain_history()",
}
CLAIMED: Final = ("select queue_pg.submit('k')", "select from queue_pg.claim('w', '{default}')")
# How the job comes to where it is, and how many seconds pass then.
STARTS: Final[dict[str, tuple[Sequence[str], float]]] = {
    "queued": (CLAIMED[:1], 0),
    "due": (("select queue_pg.submit('k', delay => '5 seconds')",), 6),
    "lease over": (CLAIMED, 31),
    "failed": ((*CLAIMED, "select queue_pg.fail(j.id, 1, '{}', retry => false) from queue_pg.jobs j"), 0),
    "forgotten": ((*CLAIMED, "select queue_pg.fail(j.id, 1, '{}', retry => false) from queue_pg.jobs j"), 0),
}
# Their retention is over; without the ledger, to which a finished job that changes is a fault.
OVER: Final = (
    "set session_replication_role = replica; update queue_pg.finished_jobs set retain_until = queue_pg.now();"
    " reset session_replication_role"
)
CLEAN: Final = (
    "set session_replication_role = replica; delete from queue_pg.jobs; delete from queue_pg.finished_jobs;"
    " delete from queue_pg.job_events; delete from queue_pg.queue_counters; delete from faults.edges;"
    " reset session_replication_role"
)
LIVE: Final = ("queued", "scheduled", "waiting", "running")


@dataclass
class Session:
    """One transaction of one statement."""

    name: str
    connection: Connection
    task: asyncio.Task[list[tuple[Any, ...]]] | None = None
    answer: list[tuple[Any, ...]] | None = None
    sqlstate: str | None = None
    committed: bool = False

    @property
    def waits(self) -> bool:
        return self.task is not None

    def start(self, job_id: UUID) -> None:
        self.task = asyncio.create_task(self._run(job_id))

    async def _run(self, job_id: UUID) -> list[tuple[Any, ...]]:
        return await (await self.connection.execute(ACTIONS[self.name].encode(), {"id": job_id})).fetchall()

    def collect(self) -> None:
        """Take the answer of a statement that is done."""
        assert self.task is not None
        error = self.task.exception()
        if error is None:
            self.answer = self.task.result()
        else:
            assert isinstance(error, psycopg.Error), error
            self.sqlstate = error.sqlstate or type(error).__name__
        self.task = None

    async def commit(self) -> None:
        """End the transaction; one whose statement was refused is rolled back."""
        await (self.connection.commit() if self.sqlstate is None else self.connection.rollback())
        self.committed = True

    @property
    def said_yes(self) -> bool:
        """Whether the statement did something to the job."""
        match self.name:
            case "finish" | "snooze":
                return self.answer == [(True,)]
            case "promote":
                return self.answer == [(1,)]
            case _:
                return bool(self.answer)


def orders() -> Iterator[tuple[int, ...]]:
    """Every order of three sessions' steps: each number comes twice, first its statement, then its commit."""
    yield from sorted(set(permutations((0, 0, 1, 1, 2, 2))))


@dataclass
class Arena:
    """A database with three sessions, somebody who watches them, and the ledger of tests/faults."""

    watcher: Connection
    reader: psycopg.Connection[Any]
    connections: Sequence[Connection]
    tried: int = 0
    impossible: set[tuple[int, ...]] = field(default_factory=set[tuple[int, ...]])

    @staticmethod
    async def open(dsn: str) -> Arena:
        Clock(dsn).advance(0)
        ledgers.install(dsn)
        watcher = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        await watcher.execute("alter table faults.edges alter at set default queue_pg.now()")
        await watcher.execute("select queue_pg.configure(retention => '1 hour')")
        await watcher.execute("select queue_pg.maintain_history()")
        connections = [await psycopg.AsyncConnection.connect(dsn) for _ in range(3)]
        for connection in connections:
            await connection.execute("set deadlock_timeout = '20ms'")
            await connection.commit()
        return Arena(watcher, psycopg.connect(dsn, autocommit=True), connections)

    async def close(self) -> None:
        for connection in (self.watcher, *self.connections):
            await connection.close()
        self.reader.close()

    async def make(self, start: str) -> UUID:
        await self.watcher.execute(CLEAN)
        statements, seconds = STARTS[start]
        for sql in statements:
            await self.watcher.execute(sql.encode())
        if start == "forgotten":
            await self.watcher.execute(OVER)
        if seconds:
            await self.watcher.execute(statement("testing_clock_advance"), {"by": timedelta(seconds=seconds)})
        row = await (
            await self.watcher.execute("select id from queue_pg.jobs union all select id from queue_pg.finished_jobs")
        ).fetchone()
        assert row is not None
        job_id: UUID = row[0]
        return job_id

    async def settle(self, sessions: Sequence[Session]) -> None:
        """Until every statement is done or waits for a lock."""
        while open_ones := [session for session in sessions if session.task is not None]:
            for session in open_ones:
                if session.task is not None and session.task.done():
                    session.collect()
            rest = {session.connection.info.backend_pid: session for session in sessions if session.task is not None}
            rows = await (
                await self.watcher.execute(
                    "select pid from pg_stat_activity where pid = any (%s) and wait_event_type = 'Lock'"
                    # One that was given its lock a moment ago may still look as if it waited.
                    " and pg_blocking_pids(pid) <> '{}'",
                    (list(rest),),
                )
            ).fetchall()
            if {pid for (pid,) in rows} == set(rest):
                return
            await asyncio.wait([s.task for s in rest.values() if s.task is not None], timeout=0.002)

    async def play(self, start: str, names: Sequence[str], order: tuple[int, ...]) -> list[str]:
        """One order of one triple; returns what is wrong."""
        if any(order[: len(prefix)] == prefix for prefix in self.impossible):
            return []
        job_id = await self.make(start)
        sessions = [Session(name, connection) for name, connection in zip(names, self.connections, strict=True)]
        begun: set[int] = set()
        for place, number in enumerate(order):
            session = sessions[number]
            if number not in begun:
                begun.add(number)
                session.start(job_id)
            elif session.waits:
                self.impossible.add(order[: place + 1])
                break
            else:
                await session.commit()
            await self.settle(sessions)
        # What could not go on in this order ends in any.
        while left := [session for session in sessions if not session.committed]:
            ready = [session for session in left if not session.waits]
            if not ready:
                return [f"all wait for each other: {[session.name for session in left]}"]
            for session in ready:
                await session.commit()
            await self.settle(sessions)
        self.tried += 1
        return self.verify(start, job_id, [session for number, session in enumerate(sessions) if number in begun])

    def verify(self, start: str, job_id: UUID, sessions: Sequence[Session]) -> list[str]:
        """What is wrong with what the sessions were told, the ledger says and the tables hold."""
        edges = ledgers.read_edges(self.reader)
        stored = ledgers.read_stored(self.reader)
        yes = {session.name for session in sessions if session.said_yes}
        wrong: list[str] = []
        # To be told that the job is in another state by now, or forgotten, is an answer; a deadlock is not.
        refusals = {"QP002", "QP001"} if start == "forgotten" else {"QP002"}
        wrong += [f"{s.name}: {s.sqlstate}" for s in sessions if s.sqlstate is not None and s.sqlstate not in refusals]
        gone = start == "forgotten" and any(session.name == "retention" for session in sessions)
        if len(stored) != 1 and not (gone and not stored):
            wrong.append(f"there are {len(stored)} rows of the job")
        account = check(Evidence([], [], edges, stored), Expectation(may_remain=LIVE, may_fail=None, unwitnessed=None))
        wrong += [str(v) for v in account.violations if not (gone and not stored and v.invariant == "S1")]
        # Who was told that he has ended the first lease has ended it, and nobody else.
        ended = sum(edge.before == "running" and edge.after != "running" and edge.token == 1 for edge in edges)
        first = {"finish", "snooze", "reap"} if start == "lease over" else {"finish", "snooze"}
        if len(yes & first) > ended - (start in ("failed", "forgotten")):
            wrong.append(f"{sorted(yes & first)} have each ended the first lease")
        # Nobody says anything with another token.
        if any(edge.what == "renewed" and edge.token != 1 for edge in edges):
            wrong.append("the first worker's heartbeat has renewed the lease of another")
        if "finish" in yes and stored and stored[0].state != "completed":
            wrong.append(f"the job was completed, and is {stored[0].state}")
        return wrong


async def play_all(dsn: str, start: str, names: Sequence[str]) -> int:
    """Every order of a triple; returns how many there were."""
    arena = await Arena.open(dsn)
    try:
        for order in orders():
            wrong = await arena.play(start, names, order)
            text = " ".join(names[number] for number in order)
            assert not wrong, f"{start}: {text}\n{describe(wrong)}"
    finally:
        await arena.close()
    return arena.tried
