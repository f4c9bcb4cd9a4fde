"""Everything at once: sessions that do at random whatever can be done, and what has to hold after it, and during it.

The choices are those of a seed; how the sessions meet is not.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection[Any]

QUEUES = ["a", "b", "c", "work_queue"]
SECONDS = 5.0
SESSIONS = 8
# Told that something is unknown, in another state, not held any more, of another body, or not allowed.
ANSWERS = {"QP001", "QP002", "QP003", "QP004", "QP005"}


async def rows(conn: Connection, query: str, *args: Any) -> list[tuple[Any, ...]]:
    return await (await conn.execute(query.encode(), args)).fetchall()


class Session:
    """One of the sessions, and what they all know."""

    def __init__(self, conn: Connection, seed: int, known: list[UUID], batches: list[UUID]) -> None:
        self.conn = conn
        self.dice = random.Random(seed)
        self.known = known
        self.batches = batches
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.held: list[tuple[UUID, int]] = []

    async def run(self, until: float) -> None:
        ways = [way for way, weight in WAYS.items() for _ in range(weight)]
        while asyncio.get_running_loop().time() < until:
            way = self.dice.choice(ways)
            try:
                await way(self)
                self.done[way.__name__] += 1
            except psycopg.Error as error:
                self.refused[f"{way.__name__} {error.sqlstate}"] += 1
                if error.sqlstate not in ANSWERS:
                    self.wrong.append(f"{way.__name__}: {error.sqlstate} {error} {error.diag.context}")

    def chance(self, part: float) -> bool:
        return self.dice.random() < part

    def job(self) -> UUID:
        # Mostly one of the newest.
        return self.known[-1 - min(int(self.dice.expovariate(1 / 15)), len(self.known) - 1)]

    def wish(self, *, depends: bool = True) -> dict[str, Any]:
        job: dict[str, Any] = {
            "kind": "k",
            "queue": self.dice.choice(QUEUES[:3]),
            "priority": self.dice.choice([0, 0, 5, 9]),
            "payload": self.dice.randrange(6),
        }
        if self.chance(0.4):
            job["limit_key"] = self.dice.choice(["t:1", "t:2", "own", "none"])
            job["cost"] = self.dice.choice([1, 3])
        if self.chance(0.3):
            job["batch_id"] = str(self.dice.choice(self.batches[-4:]))
        if self.chance(0.1):
            job["unique_key"] = f"u{self.dice.randrange(40)}"
        if self.chance(0.1):
            job["delay_seconds"] = self.dice.random() / 2
        if self.chance(0.1):
            job["max_attempts"] = 1
        if depends and self.known and self.chance(0.25):
            job["depends_on"] = [
                {
                    "job": str(parent),
                    "name": f"p{number}",
                    "on_unsuccessful": self.dice.choice(["cancel", "run", "fail"]),
                }
                for number, parent in enumerate({self.job() for _ in range(self.dice.randint(1, 3))})
            ]
            job["payload"] = {"from": "{{ parents.p0.state }}"} if self.chance(0.5) else 1
        elif self.chance(0.4):
            job["cache"] = True
            if self.chance(0.5):
                job["cache_for_seconds"] = self.dice.choice([0, 0.2, 60])
        return job

    async def submit(self) -> None:
        jobs = [self.wish() for _ in range(self.dice.choice([1, 1, 1, 2, 5]))]
        found = await rows(self.conn, "select id from queue_pg.submit_many(%s::jsonb)", json.dumps(jobs))
        self.known += [row[0] for row in found]

    async def expiring(self) -> None:
        found = await rows(
            self.conn,
            "select queue_pg.submit("
            "  'k', %s::jsonb, 'a', expires_at => queue_pg.now() + interval '100 ms', cache => %s)",
            str(self.dice.randrange(6)),
            self.chance(0.5),
        )
        self.known.append(found[0][0])

    async def graph(self) -> None:
        jobs = [{**self.wish(depends=False), "key": f"n{number}"} for number in range(4)]
        for number in range(1, 4):
            for name in ("cache", "cache_for_seconds", "unique_key"):
                jobs[number].pop(name, None)
            jobs[number]["depends_on"] = [f"n{self.dice.randrange(number)}"]
        found = await rows(self.conn, "select id from queue_pg.submit_many(%s::jsonb)", json.dumps(jobs))
        self.known += [row[0] for row in found]

    async def task(self) -> None:
        found = await rows(self.conn, "select queue_pg.submit_task('Do it', priority => %s)", self.dice.choice([0, 5]))
        self.known.append(found[0][0])
        found = await rows(self.conn, "select parent_id from queue_pg.dependencies where child_id = %s", found[0][0])
        self.known += [row[0] for row in found]

    async def claim(self) -> None:
        self.held += await rows(
            self.conn,
            "select id, lease_token from queue_pg.claim('w', %s, max_jobs => %s)",
            self.dice.sample(QUEUES, self.dice.randint(1, 4)),
            self.dice.choice([1, 2, 5]),
        )

    async def finish(self) -> None:
        self.dice.shuffle(self.held)
        ended, self.held = self.held[:3], self.held[3:]
        outcomes = self.dice.choices(
            ["complete", "fail", "discard", "snooze", "wait", "plan", "release", "cancel"],
            [9, 2, 2, 1, 2, 2, 1, 1],
            k=3,
        )
        if self.chance(0.5):
            outcomes = ["complete"] * 3
        plan = json.dumps({"subtasks": ["x", "y"], "queue": self.dice.choice(QUEUES)})
        await self.conn.execute(
            "select * from queue_pg.finish(%s::uuid[], %s::bigint[], %s, %s::jsonb[], null, %s::interval[])",
            (
                [job for job, _ in ended],
                [token for _, token in ended],
                outcomes[: len(ended)],
                [plan if outcome == "plan" else "1" for outcome in outcomes[: len(ended)]],
                ["50 ms"] * len(ended),
            ),
        )

    async def suspend(self) -> None:
        if self.held:
            job, token = self.held.pop()
            await self.conn.execute("select queue_pg.save_step(%s, %s, %s, '1')", (job, token, f"s{token}"))
            await self.conn.execute("select queue_pg.wait_for_event(%s, %s, 'go', '200 ms')", (job, token))
            await self.conn.execute("select queue_pg.wait(%s, %s)", (job, token))

    async def heartbeat(self) -> None:
        await self.conn.execute(
            "select * from queue_pg.heartbeat(%s::uuid[], %s::bigint[])",
            ([job for job, _ in self.held], [token for _, token in self.held]),
        )

    async def say(self) -> None:
        await self.conn.execute(
            "select * from queue_pg.append_events(%s::uuid[], %s::bigint[], %s, %s::jsonb[])",
            ([j for j, _ in self.held], [t for _, t in self.held], ["log"] * len(self.held), ["{}"] * len(self.held)),
        )

    async def steer(self) -> None:
        statement = self.dice.choice(
            [
                "select count(*) from queue_pg.cancel(%s)",
                "select count(*) from queue_pg.retry(%s)",
                "select count(*) from queue_pg.retry(%s, fresh => true)",
                "select queue_pg.signal(%s, 'go')",
                "select count(*) from queue_pg.reprioritize(%s, 7)",
                "select count(*) from queue_pg.watch(array[%s])",
                "select queue_pg.follow(array[%s])",
                "select count(*) from queue_pg.why_waiting(%s)",
            ]
        )
        await self.conn.execute(statement.encode(), (self.job(),))

    async def many(self) -> None:
        action, state = self.dice.choice(
            [("cancel", "queued"), ("cancel", "waiting"), ("retry", "failed"), ("retry", "cancelled")]
        )
        await self.conn.execute(
            "select * from queue_pg.act_on_jobs(%s, %s::jsonb, max_jobs => 10)",
            (action, json.dumps({"state": state, "queue": self.dice.choice(QUEUES)})),
        )

    async def delete(self) -> None:
        # Batches go on counting what was deleted.
        await self.conn.execute(
            "select queue_pg.delete(j.id) from queue_pg.job(%s) j where j.batch_id is null", (self.job(),)
        )

    async def rerun(self) -> None:
        found = await rows(self.conn, "select id from queue_pg.rerun(%s)", self.job())
        self.known.append(found[0][0])

    async def batch(self) -> None:
        if self.chance(0.3) or not self.batches:
            call = '{"kind": "k", "queue": "a", "limit_key": "t:1"}'
            found = await rows(
                self.conn, "select queue_pg.create_batch(on_all => %s, on_first_failed => %s)", call, call
            )
            self.batches.append(found[0][0])
            return
        statement = self.dice.choice(
            ["close_batch(%s)", "cancel_batch(%s)", "retry_failed(%s)", "retry_failed(%s, and_cancelled => true)"]
        )
        await self.conn.execute(f"select queue_pg.{statement}".encode(), (self.dice.choice(self.batches[-6:]),))

    async def limit(self) -> None:
        statement = self.dice.choice(
            [
                "select queue_pg.set_limit('key', 't:*', max_running => 2, weight => 2)",
                "select queue_pg.set_limit('key', 't:1', max_running => 3)",
                "select queue_pg.set_limit('key', 'own', rate => 50, burst => 5, max_running => 4)",
                "select queue_pg.set_limit('key', 'own', weight => 3)",
                "select queue_pg.set_limit('queue', 'a', max_running => 4, ageing => '1 s')",
                "select queue_pg.set_limit('queue', 'b', weight => 2)",
                "select queue_pg.remove_limit('key', 't:*')",
                "select queue_pg.remove_limit('key', 't:1')",
                "select queue_pg.remove_limit('key', 'own')",
                "select queue_pg.remove_limit('queue', 'a')",
                "select queue_pg.pause_limit('key', 't:1', queue_pg.now() + interval '50 ms')",
                "select queue_pg.resume_limit('key', 't:1')",
                "select queue_pg.pause_queue('c', queue_pg.now() + interval '50 ms')",
                "select queue_pg.tidy_limits()",
            ]
        )
        await self.conn.execute(statement.encode())

    async def check(self) -> None:
        # Exact at any moment, not only at the end.
        wrong = await rows(self.conn, "select * from queue_pg.recount_limits()")
        if wrong:
            self.wrong.append(f"counts of limits: {wrong}")

    async def maintain(self) -> None:
        await self.conn.execute("select * from queue_pg.maintain()")
        if self.chance(0.1):
            await self.conn.execute("select queue_pg.sweep()")
        if self.chance(0.05):
            await self.conn.execute("select queue_pg.forget_answers()")


WAYS = {
    Session.submit: 16,
    Session.expiring: 1,
    Session.graph: 3,
    Session.task: 2,
    Session.claim: 16,
    Session.finish: 22,
    Session.suspend: 2,
    Session.heartbeat: 4,
    Session.say: 2,
    Session.steer: 12,
    Session.many: 2,
    Session.delete: 3,
    Session.rerun: 1,
    Session.batch: 4,
    Session.limit: 3,
    Session.check: 2,
    Session.maintain: 5,
}


async def drain(conn: Connection, clock: Clock) -> None:
    """Run what there is to its end."""
    await conn.execute("select queue_pg.close_batch(id) from queue_pg.batches where state = 'open'")
    for _ in range(1_000):
        await conn.execute("select * from queue_pg.maintain()")
        await conn.execute("select * from queue_pg.claim('w', %s, max_jobs => 1000)", (QUEUES,))
        held = await rows(conn, "select id, lease_token from queue_pg.jobs where state = 'running'")
        for job, token in held:
            await conn.execute("select queue_pg.complete(%s, %s, '2')", (job, token))
        if not held and await rows(conn, "select from queue_pg.jobs limit 1") == []:
            break
        if not held:
            clock.advance(1)  # what is put off falls due
    stuck = "select j.id, j.state::text, j.limit_key, w.* from queue_pg.jobs j, queue_pg.why_waiting(j.id) w"
    assert await rows(conn, stuck) == []
    await conn.execute("select * from queue_pg.maintain()")


async def check_all(conn: Connection) -> None:
    assert await rows(conn, "select * from queue_pg.recount_limits()") == []
    assert await rows(conn, "select * from queue_pg.limits where running <> 0") == []
    assert await rows(conn, "select * from queue_pg.unsettled") == []
    assert await rows(conn, "select * from queue_pg.unsettled_cache") == []
    assert await rows(conn, "select * from queue_pg.cache_entries where job_id is not null") == []
    assert await rows(conn, "select * from queue_pg.dependencies where outcome is null") == []
    counts = "count(*) filter (where state = 'completed'), count(*) filter (where state = 'failed'), " + (
        "count(*) filter (where state = 'cancelled')"
    )
    assert await rows(
        conn,
        "select id, completed, failed, cancelled from queue_pg.batch_progress where completed + failed + cancelled > 0"
        " order by id",
    ) == await rows(
        conn, f"select batch_id, {counts} from queue_pg.finished_jobs where batch_id is not null group by 1 order by 1"
    )
    assert await rows(conn, "select * from queue_pg.batches where finished_at is null") == []
    assert await rows(
        conn,
        "select queue, completed, failed, cancelled from queue_pg.queue_stats()"
        " where completed + failed + cancelled > 0"
        ' order by queue collate "C"',
    ) == await rows(conn, f'select queue, {counts} from queue_pg.finished_jobs group by 1 order by queue collate "C"')
    gaps = await rows(
        conn,
        "select f.id, e.seqs from queue_pg.finished_jobs f cross join lateral ("
        "  select array_agg(e.seq order by e.seq) as seqs from queue_pg.events(f.id) e) e"
        " where e.seqs is distinct from array(select generate_series(1, cardinality(e.seqs)))",
    )
    assert gaps == []
    twice = await rows(conn, "select id from queue_pg.finished_jobs group by id having count(*) > 1")
    assert twice == []


async def mixture(conn: Connection, dsn: str, seed: int, seconds: float) -> Counter[str]:
    await conn.execute("select queue_pg.configure(lease => '500 ms', retry_base => '0', retry_cap => '20 ms')")
    known: list[UUID] = []
    batches = [row[0] for row in await rows(conn, "select queue_pg.create_batch() from generate_series(1, 3)")]
    known += [row[0] for row in await rows(conn, "select queue_pg.submit('k', queue => 'a')")]
    sessions = [
        Session(
            await Connection.connect(dsn, autocommit=True, options="-c statement_timeout=15s"),
            seed * 1_000 + number,
            known,
            batches,
        )
        for number in range(SESSIONS)
    ]
    try:
        until = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(session.run(until) for session in sessions))
    finally:
        for session in sessions:
            await session.conn.close()
    assert [wrong for session in sessions for wrong in session.wrong] == []
    await conn.execute("select queue_pg.remove_limit(scope, name) from queue_pg.limits where rate is not null")
    await drain(conn, Clock(dsn))
    await check_all(conn)
    return sum((session.done + session.refused for session in sessions), Counter())


@pytest.mark.parametrize("seed", [1])
async def test_whatever_meets_everything_ends_and_all_counts_are_right(conn: Connection, dsn: str, seed: int) -> None:
    done = await mixture(conn, dsn, seed, SECONDS)
    assert done.total() > 100
