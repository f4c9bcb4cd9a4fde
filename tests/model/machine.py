"""Hypothesis drives the SQL functions and the model side by side and compares all they know after each step.

The database's clock stands still between the steps that move it, so that times are equal or they are wrong, and what
happens exactly when a lease or a deadline ends is tried as well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from psycopg.types.json import Jsonb

from queue_pg.statements import statement
from queue_pg.testing import Clock
from tests.model.jobs import (
    KEY,
    LEASE,
    MAX_ATTEMPTS,
    MAX_LEASE_LOSSES,
    QUEUES,
    RETENTION,
    RETRY_BASE,
    RETRY_CAP,
    TIMEOUT,
    Illegal,
    Job,
    Model,
    Refused,
    Said,
    Wait,
)

EPOCH: Final = "2030-01-01 00:00:00+00"
OUTCOMES: Final = ("complete", "fail", "discard", "snooze", "wait", "release", "cancel", "plan")
PLAN: Final = '{"subtasks": ["one", "two"], "queue": "b"}'
INTERVENTIONS: Final = ("cancel", "cancel", "delete", "cancel and delete", "prefer", "pause", "resume")
LANES: Final = {"a": ["a"], "b": ["b"], "both": ["a", "b"]}

FROZEN_CLOCK: Final = (
    f"create or replace function queue_pg.now() returns timestamptz language sql volatile parallel safe"
    f" return timestamptz '{EPOCH}' + (select c.moved from queue_pg.testing_clock c)"
)
# Ids that begin with the same moment differ by chance, and the order of such jobs with them: here it is that in which
# they were made, so that a program does the same each time.
IDS_IN_ORDER: Final = (
    "create sequence queue_pg.model_ids",
    "create or replace function queue_pg.uuid7_at(at timestamptz) returns uuid language sql volatile"
    " return (lpad(to_hex(floor(extract(epoch from at) * 1000)::bigint), 12, '0') || '70008000'"
    " || lpad(to_hex(nextval('queue_pg.model_ids')), 12, '0'))::uuid",
    "create or replace function queue_pg.uuid7() returns uuid language sql volatile"
    " return queue_pg.uuid7_at(queue_pg.now())",
)
TABLES: Final = (
    "finished_jobs",
    "queue_counters",
    "job_events",
    "dependencies",
    "unsettled",
    "ended_children",
    "limits",
    "stepped_jobs",
    "job_signals",
    "job_steps",
)
# All that is compared, in one round trip: jobs, then counts, which have no id.
EVERYTHING: Final = (
    "select id, state::text, queue, priority, run_at, attempt, lease_token, lease_losses, error ->> 'code',"
    " lease_expires_at, null::timestamptz from queue_pg.jobs"
    " union all select id, state::text, queue, priority, run_at, attempt, lease_token, lease_losses, error ->> 'code',"
    " null, retain_until from queue_pg.finished_jobs"
    " union all select null, v.state, s.queue, v.count, null, null, null, null, null, null, null"
    " from queue_pg.queue_stats() s, lateral (values ('scheduled', s.scheduled), ('waiting', s.waiting),"
    " ('queued', s.queued), ('running', s.running), ('completed', s.completed), ('failed', s.failed),"
    " ('cancelled', s.cancelled)) v (state, count) where v.count <> 0"
    " union all select null, 'running', l.name, l.running, null, null, null, null, null, null, null"
    " from queue_pg.limits l where l.running <> 0"
)

# Small numbers first: they are what failures shrink to.
jobs = st.integers(0, 11)
# None: until the next thing falls due, to the moment.
seconds = st.sampled_from([None, None, None, None, 0, 1, 5, 10, 15, 20, 30, 31, 60, 100, 700])


def _one(said: Said) -> tuple[str, list[Any], Said]:
    """Return the call for one outcome with an id and a token, its further values, and what it comes to."""
    error = '{"code": "said"}'
    match said.outcome:
        case "complete":
            return "complete(%s, %s, '{}')", [], said
        case "fail":
            return "fail(%s, %s, %s, delay => %s)", [error, said.delay], said
        case "discard":
            return "fail(%s, %s, %s, retry => false)", [error], said
        case "snooze":
            return "snooze(%s, %s, coalesce(%s, interval '0'))", [said.delay], said
        case "cancel":
            return "cancel_claimed(%s, %s)", [], replace(said, code="cancelled")
        case "plan":
            return "plan(%s, %s, array['one', 'two'], queue => 'b')", [], said
        case _:
            return f"{said.outcome}(%s, %s)", [], said


class Database:
    """A connection to a database of the tests' own, its clock frozen, with settings that make things happen soon."""

    def __init__(self, dsn: str) -> None:
        Clock(dsn).advance(0)
        self._connection: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        for sql in (FROZEN_CLOCK, *IDS_IN_ORDER):
            self.run(sql)
        self.run(
            "select queue_pg.configure(retention => %s, max_attempts => %s, timeout => %s, lease => %s,"
            " retry_base => %s, retry_cap => %s, max_lease_losses => %s)",
            RETENTION["a"],
            MAX_ATTEMPTS,
            TIMEOUT,
            LEASE["a"],
            RETRY_BASE,
            RETRY_CAP,
            MAX_LEASE_LOSSES,
        )
        self.run("select queue_pg.configure_queue('b', retention => %s, lease => %s)", RETENTION["b"], LEASE["b"])
        self.steps = 0

    def close(self) -> None:
        self._connection.close()

    def run(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own."""
        cursor = self._connection.execute(sql.encode(), values or None)
        return cursor.fetchall() if cursor.description is not None else []

    def advance(self, by: timedelta) -> datetime:
        row = self._connection.execute(statement("testing_clock_advance"), {"by": by}).fetchone()
        assert row is not None
        now: datetime = row[0]
        return now

    def empty(self) -> None:
        """As new: no jobs, the clock at its beginning, nothing remembered by the session."""
        # Not deleted: what is dead makes claims go round the heads of lanes, by how long it takes to read.
        self.run("truncate queue_pg.jobs")
        # Partitions are of use to the next program as well, until reading all of them is more work than making some.
        partitions = self.run("select name from queue_pg.partitions where parent = 'finished_jobs'")
        if len(partitions) > 15:
            for (name,) in partitions:
                self.run(f"drop table if exists queue_pg.{name}")
            self.run("delete from queue_pg.partitions where parent = 'finished_jobs'")
        self.run("".join(f"delete from queue_pg.{name};" for name in TABLES))
        self.run(
            "update queue_pg.queues set paused_until = null; update queue_pg.testing_clock set moved = '0'; reset all"
        )
        # What is left to chance is the same each time that a program is run.
        self.run("select setseed(0), setval('queue_pg.model_ids', 1)")


class QueueMachine(RuleBasedStateMachine):
    """One program: a sequence of calls with their arguments. Compares model and database after each."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        database.empty()
        self.model = Model(database.advance(timedelta(0)), None)
        self.order: list[UUID] = []

    # -- helpers ------------------------------------------------------------------------------------------------------

    def job(self, nr: int) -> UUID | None:
        """One of the newest jobs, whatever has become of it."""
        return self.order[-1 - nr % len(self.order)] if self.order else None

    def refusal(self, action: Callable[[], object]) -> str | None:
        """The SQLSTATE by which an action is refused, by the model or by the database."""
        try:
            action()
        except Refused as refused:
            return refused.sqlstate
        except psycopg.Error as error:
            return error.sqlstate or "?"
        return None

    def both(self, sql: str, values: Sequence[Any], action: Callable[[], object]) -> None:
        """The database and the model do the same, or refuse it in the same way."""
        told = self.refusal(lambda: self.database.run(sql, *values))
        expected = self.refusal(action)
        assert told == expected, f"{sql} was answered by {told}, not by {expected}"

    def made_by(self, task: UUID) -> list[Job]:
        """Read the subtasks that a plan has just made."""
        rows = self.database.run(
            "select j.id, j.queue, j.run_at, j.priority, j.limit_key from queue_pg.dependencies d"
            " join queue_pg.jobs j on j.id = d.parent_id where d.child_id = %s and d.subtask is not null"
            " order by d.name",
            task,
        )
        rows = [row for row in rows if row[0] not in self.model.jobs]
        now = self.model.now
        made = [Job(job_id, queue, run_at, "queued", priority, key) for job_id, queue, run_at, priority, key in rows]
        assert all(job.run_at == now for job in made)
        self.order += [job.id for job in made]
        return made

    # -- rules --------------------------------------------------------------------------------------------------------

    @initialize(limit=st.sampled_from([None, 1, 2]), count=st.integers(0, 3))
    def begin(self, limit: int | None, count: int) -> None:
        self.insert("a", count, 0, KEY if limit else None)
        self.model.limit = limit
        if limit is not None:
            self.database.run("select queue_pg.set_limit('key', %s, max_running => %s)", KEY, limit)

    @rule(
        queue=st.sampled_from(QUEUES),
        priority=st.integers(-1, 2),
        delay=st.sampled_from([0, 0, 0, 5, 60]),
        key=st.sampled_from([None, KEY]),
        attempts=st.sampled_from([None, 1, 3]),
        timeout=st.sampled_from([None, None, 20]),
        deadline=st.sampled_from([None, None, 15, 60]),
        parents=st.lists(st.tuples(jobs, st.sampled_from(["cancel", "fail", "run"])), max_size=2),
    )
    def submit(
        self,
        queue: str,
        priority: int,
        delay: int,
        key: str | None,
        attempts: int | None,
        timeout: int | None,
        deadline: int | None,
        parents: list[tuple[int, str]],
    ) -> None:
        waits = [
            Wait(parent, str(place), policy)
            for place, (parent, policy) in enumerate((self.job(nr), policy) for nr, policy in parents)
            if parent is not None
        ]
        waits = [Wait(wait.parent, str(place), wait.policy) for place, wait in enumerate(waits)]
        now = self.model.now
        run_at = now + timedelta(seconds=delay)
        expires_at = None if deadline is None else now + timedelta(seconds=deadline)
        length = None if timeout is None else timedelta(seconds=timeout)
        depends_on = (
            Jsonb([{"job": str(wait.parent), "on_unsuccessful": wait.policy} for wait in waits]) if waits else None
        )
        made: list[UUID] = []
        told = self.refusal(
            lambda: made.extend(
                row[0]
                for row in self.database.run(
                    "select queue_pg.submit('k', queue => %s, priority => %s, run_at => %s, limit_key => %s,"
                    " max_attempts => %s, timeout => %s::interval, expires_at => %s, depends_on => %s)",
                    queue,
                    priority,
                    run_at,
                    key,
                    attempts,
                    length,
                    expires_at,
                    depends_on,
                )
            )
        )
        forgotten = any(self.model.state_of(wait.parent) is None for wait in waits)
        assert told == ("QP005" if forgotten else None), f"a job of {waits} was answered by {told}"
        if forgotten:
            return
        [job_id] = made
        self.model.submit(
            Job(
                job_id,
                queue,
                run_at,
                "queued",
                priority,
                key,
                attempts or MAX_ATTEMPTS,
                length or TIMEOUT,
                expires_at,
                waits=waits,
            )
        )
        self.order.append(job_id)

    @rule(
        queue=st.sampled_from(QUEUES),
        count=st.integers(1, 3),
        delay=st.sampled_from([0, 0, 5]),
        key=st.sampled_from([None, KEY]),
        way=st.sampled_from(["insert", "submit_many"]),
    )
    def insert(self, queue: str, count: int, delay: int, key: str | None, way: str = "insert") -> None:
        run_at = self.model.now + timedelta(seconds=delay)
        if way == "insert":
            rows = self.database.run(
                "insert into queue_pg.jobs (kind, queue, run_at, limit_key) select 'k', %s, %s, %s"
                " from generate_series(1, %s) returning id",
                queue,
                run_at,
                key,
                count,
            )
        else:
            several = [{"kind": "k", "queue": queue, "delay_seconds": delay, "limit_key": key}] * count
            rows = self.database.run("select id from queue_pg.submit_many(%s)", Jsonb(several))
        for (job_id,) in rows:
            self.model.submit(Job(job_id, queue, run_at, "queued", key=key))
            self.order.append(job_id)

    @precondition(lambda self: "queued" in self.states())
    @rule(lanes=st.sampled_from(list(LANES)), wanted=st.integers(1, 4), lease=st.sampled_from([None, None, 15]))
    def claim(self, lanes: str, wanted: int, lease: int | None) -> None:
        length = None if lease is None else timedelta(seconds=lease)
        rows = self.database.run(
            "select id, lease_token, attempt from queue_pg.claim('w', %s, max_jobs => %s, lease => %s)",
            LANES[lanes],
            wanted,
            length,
        )
        self.model.claim(LANES[lanes], wanted, length, [job_id for job_id, _, _ in rows])
        for job_id, token, attempt in rows:
            assert (token, attempt) == (self.model.jobs[job_id].token, self.model.jobs[job_id].attempt)

    @precondition(lambda self: self.model.claims)
    @rule(
        picks=st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
        lease=st.sampled_from([None, 5, 60]),
        by=st.sampled_from([0, 0, 10, 30, 100]),
    )
    def heartbeat(self, picks: list[int], lease: int | None, by: int) -> None:
        """After a while, of some of the newest claims, whether they stand or not."""
        self.advance(by)
        claims = self.newest(picks)
        length = None if lease is None else timedelta(seconds=lease)
        rows = self.database.run(
            "select id, lease_expires_at from queue_pg.heartbeat(%s::uuid[], %s::bigint[], %s)",
            [job_id for job_id, _ in claims],
            [token for _, token in claims],
            length,
        )
        assert dict(rows) == self.model.heartbeat(claims, length)

    @precondition(lambda self: "running" in self.states())
    @rule(
        picks=st.lists(
            st.tuples(st.integers(0, 5), st.sampled_from(OUTCOMES), st.sampled_from([None, None, 0, 5, 60])),
            min_size=1,
            max_size=3,
        )
    )
    def finish(self, picks: list[tuple[int, str, int | None]]) -> None:
        """Say how some of the newest claims have ended, whether they stand or not."""
        claims = self.newest([nr for nr, _, _ in picks])
        self.say(
            [
                Said(job_id, token, outcome, None if delay is None else timedelta(seconds=delay))
                for (job_id, token), (_, outcome, delay) in zip(claims, picks, strict=False)
            ]
        )

    @precondition(lambda self: "running" in self.states())
    @rule(nr=st.integers(0, 5), outcome=st.sampled_from(OUTCOMES), delay=st.sampled_from([None, 0, 5]))
    def finish_one(self, nr: int, outcome: str, delay: int | None) -> None:
        """Say how one has ended by the function for that, as clients in other languages do."""
        [(job_id, token)] = self.newest([nr])
        call, values, said = _one(Said(job_id, token, outcome, None if delay is None else timedelta(seconds=delay)))
        rows: list[tuple[Any, ...]] = []
        told = self.refusal(lambda: rows.extend(self.database.run(f"select queue_pg.{call}", job_id, token, *values)))
        answers = {job_id: str(rows[0][0])} if rows else {}
        made = {job_id: self.made_by(job_id)} if rows and outcome == "plan" else {}
        [accepted] = self.model.finish([said], answers, made)
        state = self.model.state_of(job_id)
        expected = None if accepted else "QP001" if state is None else "QP003"
        assert told == expected, f"{call} of {said} was answered by {told}, not by {expected}"
        assert not accepted or answers == {job_id: state}, f"{call} is answered by {answers}, should be {state}"

    @precondition(lambda self: "queued" in self.states())
    @rule(outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=3))
    def work(self, outcomes: list[str]) -> None:
        """Claim some, and end them at once."""
        before = len(self.model.claims)
        self.claim("both", len(outcomes), None)
        self.compare()
        claims = self.model.claims[before:]
        self.say([Said(job_id, token, outcome) for (job_id, token), outcome in zip(claims, outcomes, strict=False)])

    @precondition(lambda self: "running" in self.states())
    @rule(count=st.integers(1, 3))
    def complete(self, count: int) -> None:
        """What workers say mostly, of what they hold."""
        held = [claim for claim in self.model.claims if self.model.holds(*claim) is not None]
        self.say([Said(job_id, token, "complete") for job_id, token in held[-count:]])

    @precondition(lambda self: "queued" in self.states())
    @rule(outcome=st.sampled_from(OUTCOMES), by=st.sampled_from([31, 31, 101]))
    def stand_still(self, outcome: str, by: int) -> None:
        """A worker claims and stands still; others get its job, as far as it is for them; then it speaks."""
        self.claim("both", 1, None)
        self.time_passes(by, "all")
        self.claim("both", 4, None)
        self.compare()
        self.say_by_stale_tokens(outcome)

    @precondition(lambda self: self.model.stale())
    @rule(outcome=st.sampled_from(OUTCOMES))
    def say_by_stale_tokens(self, outcome: str) -> None:
        """With every claim there ever was that has ended: nothing of it counts."""
        stale = self.model.stale()
        ids, tokens = [job_id for job_id, _ in stale], [token for _, token in stale]
        assert self.database.run("select id from queue_pg.heartbeat(%s::uuid[], %s::bigint[])", ids, tokens) == []
        assert self.database.run("select id from queue_pg.held(%s::uuid[], %s::bigint[])", ids, tokens) == []
        # One call for each token of a job: a second mention of a job would be refused whatever its token is.
        batches: dict[int, list[Said]] = defaultdict(list)
        seen: Counter[UUID] = Counter()
        for job_id, token in stale:
            batches[seen[job_id]].append(Said(job_id, token, outcome))
            seen[job_id] += 1
        for batch in batches.values():
            assert not any(self.say(batch))

    @precondition(lambda self: "running" in self.states())
    @rule(
        nr=st.integers(0, 5), name=st.sampled_from(["sleep", "event"]), length=st.sampled_from([None, 0, 5, 20]),
        then=st.sampled_from(["go on", "wait", "wait"]),
    )  # fmt: skip
    def reach(self, nr: int, name: str, length: int | None, then: str) -> None:
        """A handler comes to a sleep or to an event, and mostly waits for it."""
        [(job_id, token)] = self.newest([nr])
        event = name == "event"
        until = timedelta(seconds=length or 0) if length is not None or not event else None
        call = "wait_for_event(%s, %s, %s, %s::interval)" if event else "sleep(%s, %s, %s, %s::interval)"
        answers: list[tuple[bool, bool]] = []
        read = f"select r.finished_at is not null, coalesce(r.timed_out, false) from queue_pg.{call} r"
        told = self.refusal(lambda: answers.extend(self.database.run(read, job_id, token, name, until)))

        def model() -> None:
            wait = self.model.reach(job_id, token, name, event=event, length=until)
            answers.append((wait.finished, wait.timed_out))

        expected = self.refusal(model)
        assert told == expected, f"{call} was answered by {told}, not by {expected}"
        assert len(set(answers)) <= 1, f"{call} was answered by {answers}"
        if answers and then == "wait":
            self.say([Said(job_id, token, "wait")])

    @precondition(lambda self: self.order)
    @rule(nr=jobs)
    def signal(self, nr: int) -> None:
        """An event comes for a job, whether it waits for it or not."""
        job_id = self.job(nr)
        assert job_id is not None
        answers: list[Any] = []
        told = self.refusal(lambda: answers.extend(self.database.run("select queue_pg.signal(%s, 'event')", job_id)))
        expected = self.refusal(lambda: answers.append((self.model.signal(job_id, "event"),)))
        assert told == expected, f"a signal was answered by {told}, not by {expected}"
        assert len(set(answers)) <= 1, f"a signal was answered by {answers}"

    def newest(self, picks: Sequence[int]) -> list[tuple[UUID, int]]:
        """Claims: those that stand come first, the newest of them and of the others before the older ones."""
        claims = list(reversed(self.model.claims))
        claims.sort(key=lambda claim: self.model.holds(*claim) is None)
        return [claims[nr % len(claims)] for nr in picks]

    def states(self) -> set[str]:
        return {job.state for job in self.model.jobs.values()}

    def say(self, said: list[Said]) -> list[bool]:
        rows = self.database.run(
            "select id, accepted, state from queue_pg.finish(%s::uuid[], %s::bigint[], %s::text[], %s::text[]::jsonb[],"
            " %s::text[]::jsonb[], %s::interval[])",
            [entry.id for entry in said],
            [entry.token for entry in said],
            [entry.outcome for entry in said],
            [PLAN if entry.outcome == "plan" else "{}" for entry in said],
            ['{"code": "said"}'] * len(said),
            [entry.delay for entry in said],
        )
        answers = {job_id: state for job_id, ok, state in rows if ok}
        made = {entry.id: self.made_by(entry.id) for entry in said if entry.outcome == "plan" and entry.id in answers}
        expected = self.model.finish(said, answers, made)
        accepted = [ok for _, ok, _ in rows]
        assert [job_id for job_id, _, _ in rows] == [entry.id for entry in said]
        assert accepted == expected, f"{accepted} of {said} were accepted, not {expected}"
        for entry, (job_id, _, state) in zip(said, rows, strict=True):
            assert state == self.model.state_of(job_id), f"{entry} is answered by {state}"
        return accepted

    def reap(self) -> None:
        answers: dict[UUID, str] = dict(self.database.run("select id, state from queue_pg.reap()"))
        assert set(answers) == self.model.reap(answers)
        for job_id, state in answers.items():
            assert state == self.model.jobs[job_id].state

    def promote(self) -> None:
        assert self.database.run("select queue_pg.promote()") == [(self.model.promote(),)]

    def expire(self) -> None:
        assert self.database.run("select queue_pg.expire()") == [(self.model.expire(),)]

    def advance(self, by: int | None) -> None:
        length = timedelta(seconds=by) if by is not None else self.model.next_due() - self.model.now
        self.model.now = self.database.advance(length)

    def maintain(self) -> None:
        running = [job.id for job in self.model.jobs.values() if job.state == "running"]
        [(reaped, promoted, expired)] = self.database.run("select reaped, promoted, expired from queue_pg.maintain()")
        answers = dict(self.database.run("select id, state from queue_pg.finished_jobs where id = any (%s)", running))
        reaps = len(self.model.reap(answers))
        for job in self.model.jobs.values():
            # When exactly is seen later; not now.
            job.run_at = job.window[0] if job.window is not None else job.run_at
        counts = (reaps, self.model.promote(), self.model.expire())
        assert (reaped, promoted, expired) == counts, f"{(reaped, promoted, expired)}, should be {counts}"

    @rule(by=seconds, what=st.sampled_from(["all", "all", "nothing", "reap", "promote", "expire", "maintain"]))
    def time_passes(self, by: int | None, what: str) -> None:
        """And all of maintenance is awake, or some of it."""
        self.advance(by)
        if what == "maintain":
            self.maintain()
        for step in ("expire", "reap", "promote"):
            if what in (step, "all"):
                getattr(self, step)()
                self.compare()

    @precondition(lambda self: any(job.live is False for job in self.model.jobs.values()))
    @rule(by=st.sampled_from([0, 60, 700]))
    def forget(self, by: int) -> None:
        """What is past its retention may vanish; nobody has seen it since."""
        self.advance(by)
        self.database.run("select queue_pg.maintain_history()")

    @precondition(lambda self: self.order)
    @rule(nr=jobs, what=st.sampled_from(INTERVENTIONS))
    def intervene(self, nr: int, what: str) -> None:
        job_id = self.order[-1 - nr % len(self.order)]
        match what:
            case "cancel":
                self.both("select queue_pg.cancel(%s)", [job_id], lambda: self.model.cancel(job_id))
            case "pause":
                queue = QUEUES[nr % 2]
                until = self.model.now + timedelta(seconds=nr)
                self.database.run("select queue_pg.pause_queue(%s, %s)", queue, until)
                self.model.paused[queue] = until
            case "resume":
                self.database.run("select queue_pg.resume_queue(%s)", QUEUES[nr % 2])
                self.model.paused.pop(QUEUES[nr % 2], None)
            case "prefer":
                self.both(
                    "select queue_pg.reprioritize(%s, %s)", [job_id, nr], lambda: self.model.reprioritize(job_id, nr)
                )
            case _:
                cancel = what != "delete"
                self.both(
                    "select queue_pg.delete(%s, %s)", [job_id, cancel], lambda: self.model.delete(job_id, cancel=cancel)
                )

    @precondition(lambda self: self.order)
    @rule(
        queue=st.sampled_from(QUEUES),
        action=st.sampled_from(["cancel", "retry", "reprioritize"]),
        priority=st.integers(-1, 2),
    )
    def act(self, queue: str, action: str, priority: int) -> None:
        """One action on all jobs of a queue that it is for, in the order of their ids."""
        self.database.run(
            "select queue_pg.act_on_jobs(%s, %s, priority => %s)",
            action,
            Jsonb({"queue": queue}),
            priority if action == "reprioritize" else None,
        )
        model = self.model
        named = sorted((job for job in model.jobs.values() if job.queue == queue), key=lambda job: job.id)
        if action == "cancel":
            model.cancel_all([job for job in named if job.live])
        for job in named:
            with suppress(Refused):
                match action:
                    case "retry" if job.state == "failed":
                        model.retry(job.id)
                    case "reprioritize" if job.live:
                        model.reprioritize(job.id, priority)
                    case _:
                        pass

    @precondition(lambda self: self.states() & {"failed", "cancelled"})
    @rule(nr=jobs, attempts=st.sampled_from([None, None, 1]))
    def retry(self, nr: int, attempts: int | None) -> None:
        """Mostly of what can be retried, now and then of anything."""
        ended = [
            job_id
            for job_id in self.order
            if job_id in self.model.jobs and self.model.jobs[job_id].state in ("failed", "cancelled")
        ]
        ids = (ended or self.order) if nr else self.order
        job_id = ids[-1 - nr % len(ids)]
        self.both("select queue_pg.retry(%s, %s)", [job_id, attempts], lambda: self.model.retry(job_id, attempts))

    # -- after each step ----------------------------------------------------------------------------------------------

    @invariant()
    def nothing_differs(self) -> None:
        self.database.steps += 1
        self.compare()

    def compare(self) -> None:
        """All that is known of jobs, and the counts of them."""
        model = self.model
        rows = self.database.run(EVERYTHING)
        stored = {row[0]: row for row in rows if row[0] is not None}
        for job_id, row in stored.items():
            job = model.jobs.get(job_id)
            assert job is not None, f"{row} is a job that nobody has submitted, or that was deleted"
            if job.window is not None:
                if not job.window[0] <= row[4] <= job.window[1]:
                    raise Illegal(f"{job_id} runs again at {row[4]}, which is not in {job.window}")
                job.run_at, job.window = row[4], None
            expected = (
                job_id,
                job.state,
                job.queue,
                job.priority,
                job.run_at,
                job.attempt,
                job.token,
                job.losses,
                job.error,
                job.lease_until,
                job.retain_until,
            )
            assert row == expected, f"is {row}, should be {expected}"
        gone = [job for job in model.jobs.values() if job.id not in stored and model.known(job)]
        assert not gone, f"vanished: {gone}"
        counts = Counter((row[2], row[1]) for row in stored.values())
        if model.limit is not None:
            counts[KEY, "running"] = model.running_with_key()
        told = {(row[2], row[1]): row[3] for row in rows if row[0] is None}
        assert told == +counts, f"the counts are {told}, should be {+counts}"
