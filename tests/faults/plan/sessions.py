"""A hunt for deadlocks: sessions that do at random all that locks many rows, beside workers and applications (F24)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

import psycopg

from tests.faults.arena import Arena
from tests.sql.test_mixture import QUEUES, WAYS, Session, rows

SESSIONS: Final = 8
AT_ONCE: Final = 20
# Of whoever finishes in no order, in bulk.
ENDS: Final = ("complete", "complete", "fail", "discard", "snooze", "release", "cancel")
DRAIN_SECONDS: Final = 60.0


class Hunter(Session):
    """A session of the mixture that also does everything in bulk, in any order, and forgets history meanwhile."""

    async def anybody_s(self) -> tuple[list[UUID], list[int]]:
        """Return leases that any of the sessions holds, in any order."""
        held = await rows(
            self.conn,
            "select id, lease_token from queue_pg.jobs where state = 'running' and worker_id = 'w'"
            " order by random() limit %s",
            AT_ONCE,
        )
        return [job for job, _ in held], [token for _, token in held]

    async def finish_many(self) -> None:
        """End some that others may end at the same moment."""
        jobs, tokens = await self.anybody_s()
        await self.conn.execute(
            "select * from queue_pg.finish(%s::uuid[], %s::bigint[], %s, %s::jsonb[], null, %s::interval[])",
            (jobs, tokens, self.dice.choices(ENDS, k=len(jobs)), ["1"] * len(jobs), ["20 ms"] * len(jobs)),
        )

    async def beat_many(self) -> None:
        await self.conn.execute("select * from queue_pg.heartbeat(%s::uuid[], %s::bigint[])", await self.anybody_s())

    async def claim_many(self) -> None:
        await self.conn.execute(
            "select id from queue_pg.claim('w', %s, max_jobs => %s)", (self.dice.sample(QUEUES, 4), AT_ONCE)
        )

    async def history(self) -> None:
        await self.conn.execute("select * from queue_pg.maintain_history()")


_MORE: Final = {
    Hunter.finish_many: 12,
    Hunter.beat_many: 4,
    Hunter.claim_many: 8,
    Hunter.history: 2,
}
_WAYS: Final[list[Callable[[Any], Awaitable[None]]]] = [
    way for ways in (WAYS, _MORE) for way, weight in ways.items() for _ in range(weight)
]
# Told that something is unknown, in another state, not held any more, of another body, or not allowed.
_ANSWERS: Final = frozenset({"QP001", "QP002", "QP003", "QP004", "QP005"})


def hunt_deadlocks(arena: Arena) -> None:
    """F24: bulk ends, cancels, retries, batches, reaping and retention meet at random; the server looks soon."""
    arena.forgets = True
    # The sessions fail and cancel jobs, and complete them without running them.
    arena.may_fail = arena.unwitnessed = None
    arena.postgres.execute("select queue_pg.configure(lease => '300 ms', retry_base => '0', retry_cap => '20 ms')")
    # Partitions are made and dropped all the time.
    arena.postgres.execute("insert into queue_pg.queues (queue, retention) values ('b', '2 seconds')")
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.mix()
    arena.progress()
    asyncio.run(_hunt(arena))
    log = (arena.postgres.folder / "server.log").read_text(errors="replace")
    arena.figures["waits_for_locks_of_400_ms"] = log.count("still waiting for")
    [[found]] = arena.postgres.execute("select deadlocks from pg_stat_database where datname = current_database()")
    # Those of retention and migrations are caught and tried again: no error, no line in the log.
    arena.figures["deadlocks_retried"] = found - log.count("deadlock detected")
    arena.progress()


async def _hunt(arena: Arena) -> None:
    dsn = arena.postgres.dsn
    connections = [
        await psycopg.AsyncConnection.connect(dsn, autocommit=True, options="-c statement_timeout=30s")
        for _ in range(SESSIONS)
    ]
    try:
        conn = connections[0]
        batches: list[UUID] = [
            row[0] for row in await rows(conn, "select queue_pg.create_batch() from generate_series(1, 3)")
        ]
        known: list[UUID] = [row[0] for row in await rows(conn, "select queue_pg.submit('k', queue => 'a')")]
        hunters = [Hunter(each, arena.random.randrange(2**32), known, batches) for each in connections]
        await asyncio.gather(*(_roam(hunter, arena.size.hits // SESSIONS) for hunter in hunters))
        for way in (method.__name__ for method in _MORE):
            arena.hits[way] += 0
        for hunter in hunters:
            for wrong in hunter.wrong:
                arena.violate("R1", wrong)
            for way, count in hunter.done.items():
                arena.hits[way] += count
        await _drain(conn)
        for what in (
            "recount_limits()",
            "unsettled",
            "unsettled_cache",
            "limits l where l.running <> 0 and l.scope = 'queue'",
        ):
            if found := await rows(conn, f"select * from queue_pg.{what}"):
                arena.violate("S7", f"after the hunt {what} has {found[:3]}")
    finally:
        for each in connections:
            await each.close()


async def _roam(hunter: Hunter, steps: int) -> None:
    for _ in range(steps):
        way = hunter.dice.choice(_WAYS)
        try:
            await way(hunter)
            hunter.done[getattr(way, "__name__", "?")] += 1
        except psycopg.Error as error:
            if error.sqlstate not in _ANSWERS:
                hunter.wrong.append(f"{getattr(way, '__name__', '?')}: {error.sqlstate} {error} {error.diag.context}")


async def _drain(conn: psycopg.AsyncConnection[Any]) -> None:
    """Run what the sessions have left to its end."""
    await conn.execute("select queue_pg.remove_limit(scope, name) from queue_pg.limits where rate is not null")
    await conn.execute("select queue_pg.resume_queue('c')")
    await conn.execute("select queue_pg.close_batch(id) from queue_pg.batches where state = 'open' and name is null")
    deadline = time.monotonic() + DRAIN_SECONDS
    # A batch that ends submits one job more.
    left = (
        "select 1 from queue_pg.jobs where queue = any (%s) union all"
        " select 1 from queue_pg.batches where name is null and finished_at is null limit 1"
    )
    while await rows(conn, left, QUEUES) and time.monotonic() < deadline:
        await conn.execute("select * from queue_pg.maintain()")
        await conn.execute("select * from queue_pg.maintain_history()")
        held = await rows(conn, "select id, lease_token from queue_pg.claim('w', %s, max_jobs => 1000)", QUEUES)
        await conn.execute(
            "select * from queue_pg.finish(%s::uuid[], %s::bigint[], %s)",
            ([job for job, _ in held], [token for _, token in held], ["complete"] * len(held)),
        )
        await asyncio.sleep(0 if held else 0.02)
