"""The queue as a person would explain it: jobs in a dictionary, and what each function does to them. No SQL, no I/O.

What a change of state is called, where it leads and what it does to `attempt` is read from docs/states.md; the model
only decides which of the changes it is. Where the queue is free to choose (which of two lanes comes first, how long a
backoff is inside its bounds) the model takes the queue's answer, if it is one of those allowed, and goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

STATES_PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "states.md"
_ROW: Final = re.compile(r"^\| (\w+) \| (\w+(?: \([^)]+\))?) \| (\w+) \| (same|\+1|-1|0) \| ", re.MULTILINE)
EDGES: Final = {(row[1], row[2]): (row[3], row[4]) for row in _ROW.finditer(STATES_PAGE.read_text())}
ENDS: Final = ("completed", "failed", "cancelled")

KEY: Final = "key"
QUEUES: Final = ("a", "b")
RETENTION: Final = {"a": timedelta(seconds=600), "b": timedelta(seconds=60)}
LEASE: Final = {"a": timedelta(seconds=30), "b": timedelta(seconds=10)}
TIMEOUT: Final = timedelta(seconds=100)
MAX_ATTEMPTS: Final = 2
MAX_LEASE_LOSSES: Final = 3
RETRY_BASE: Final = timedelta(seconds=10)
RETRY_CAP: Final = timedelta(seconds=15)


class Illegal(AssertionError):
    """The queue has done what the model does not allow."""


class Refused(Exception):
    """The model refuses this, as the queue should, with this SQLSTATE."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@dataclass
class Wait:
    """What a job waits for: an edge to a parent. `subtask`: the parent is a part of the job's own plan."""

    parent: UUID
    name: str
    policy: str
    outcome: str | None = None
    subtask: bool = False


# How long a wait without an end is slept for.
NO_END: Final = timedelta(hours=87_600)


@dataclass
class Reached:
    """A sleep, or a wait for an event, that a handler has come to; `token` is that of its newest claim that has."""

    event: bool
    until: datetime | None
    token: int
    finished: bool = False
    timed_out: bool = False


@dataclass
class Job:
    """A job as anybody can see it. `run_at` is a window while the queue may still choose it."""

    id: UUID
    queue: str
    run_at: datetime
    state: str
    priority: int = 0
    key: str | None = None
    max_attempts: int = MAX_ATTEMPTS
    timeout: timedelta = TIMEOUT
    expires_at: datetime | None = None
    attempt: int = 0
    token: int = 0
    losses: int = 0
    error: str | None = None
    claimed_at: datetime | None = None
    lease_until: datetime | None = None
    retain_until: datetime | None = None
    parents_left: int | None = None
    waits: list[Wait] = field(default_factory=list[Wait])
    window: tuple[datetime, datetime] | None = None
    reached: dict[str, Reached] = field(default_factory=dict[str, Reached])
    signals: set[str] = field(default_factory=set[str])

    @property
    def live(self) -> bool:
        return self.state not in ENDS


@dataclass(frozen=True)
class Said:
    """One entry of finish(): the claim, how it ended, after which delay it is to run again, and why it failed."""

    id: UUID
    token: int
    outcome: str
    delay: timedelta | None = None
    code: str = "said"


class Model:
    """All jobs of a queue whose clock stands still unless it is moved."""

    def __init__(self, now: datetime, limit: int | None) -> None:
        self.now = now
        self.limit = limit
        self.jobs: dict[UUID, Job] = {}
        self.paused: dict[str, datetime] = {}
        self.claims: list[tuple[UUID, int]] = []

    # -- looking ------------------------------------------------------------------------------------------------------

    def known(self, job: Job) -> bool:
        """Whether the job is there for those who look: not after its retention."""
        return job.live or (job.retain_until is not None and job.retain_until > self.now)

    def state_of(self, job_id: UUID) -> str | None:
        job = self.jobs.get(job_id)
        return job.state if job is not None and self.known(job) else None

    def holds(self, job_id: UUID, token: int) -> Job | None:
        """The job, if this claim of it still stands."""
        job = self.jobs.get(job_id)
        return job if job is not None and job.state == "running" and job.token == token else None

    def stale(self) -> list[tuple[UUID, int]]:
        """Every claim there ever was that has ended."""
        return [claim for claim in self.claims if self.holds(*claim) is None]

    def next_due(self) -> datetime:
        """The next moment at which something may happen by itself; now, if nothing will."""
        moments = [
            moment
            for job in self.jobs.values()
            if job.live
            for moment in (job.run_at, job.lease_until, job.expires_at, job.claimed_at and job.claimed_at + job.timeout)
            if moment is not None and self.now < moment < self.now + NO_END / 2
        ]
        return min(moments, default=self.now)

    def running_with_key(self) -> int:
        return sum(job.state == "running" and job.key is not None for job in self.jobs.values())

    def _find(self, job_id: UUID) -> Job:
        job = self.jobs.get(job_id)
        if job is None or not self.known(job):
            raise Refused("QP001")
        return job

    @contextmanager
    def _all_or_nothing(self) -> Generator[None]:
        """What is refused changes nothing."""
        before = deepcopy(self.jobs)
        try:
            yield
        except Refused:
            for job_id, job in before.items():
                vars(self.jobs[job_id]).update(vars(job))
            raise

    # -- changes of state, by the table -------------------------------------------------------------------------------

    def _change(self, job: Job, action: str) -> None:
        if (job.state, action) not in EDGES:
            raise Illegal(f"docs/states.md has no {action} of a job that is {job.state}")
        to, attempt = EDGES[job.state, action]
        job.state = to
        match attempt:
            case "+1":
                job.attempt += 1
            case "-1":
                job.attempt = max(job.attempt - 1, 0)
            case "0":
                job.attempt = 0
            case _:
                pass
        if to != "running":
            job.lease_until = None
        if to in ENDS:
            job.retain_until = self.now + RETENTION[job.queue]

    def _end(self, ends: Iterable[tuple[Job, str, str | None]]) -> None:
        """Jobs that end at once, by an action and with an error; then those that wait for them are told."""
        ended: list[Job] = []
        for job, action, error in ends:
            self._change(job, action)
            job.error = error
            ended.append(job)
        while ended:
            ended = self._tell(ended)

    def _tell(self, ended: Sequence[Job]) -> list[Job]:
        """Tell the children of jobs that have ended, and return those that end because of it."""
        states = {job.id: job.state for job in ended}
        next_ended: list[Job] = []
        for child in sorted(self.jobs.values(), key=lambda job: job.id):
            told = [wait for wait in child.waits if wait.outcome is None and wait.parent in states]
            for wait in told:
                wait.outcome = states[wait.parent]
            if told and child.state == "waiting" and child.parents_left:
                next_ended += self._settle(child, len(told), told)
        return next_ended

    def _settle(self, child: Job, settled: int, told: Sequence[Wait]) -> list[Job]:
        """`settled` of the parents of a waiting job have ended; `told` are those that may keep it from running."""
        assert child.parents_left is not None
        faults = [w for w in told if w.outcome in ("failed", "cancelled") and w.policy != "run"]
        planned = any(wait.subtask for wait in told)
        if faults:
            # One that makes it fail decides before one that cancels it.
            fault = min(faults, key=lambda wait: (wait.policy != "fail", wait.name))
            self._change(child, "settle (fail)" if fault.policy == "fail" else "settle (cancel)")
            child.error = f"{'subtask' if fault.name.startswith('subtask-') else 'parent'}_{fault.outcome}"
            return [child]
        if child.parents_left > settled:
            child.parents_left -= settled
            return []
        if planned:
            # Its output is what they have returned, which goes with them.
            whole = all(self.state_of(wait.parent) is not None for wait in child.waits if wait.subtask)
            self._change(child, "settle (subtasks)" if whole else "settle (fail)")
            child.error = None if whole else "output_error"
            return [child]
        child.parents_left = 0
        self._change(child, "settle (run_at to come)" if child.run_at > self.now else "settle")
        return []

    def _look_again(self, child: Job) -> None:
        """Settle a waiting job by all that is known of its parents."""
        assert child.parents_left is not None
        settled = child.parents_left - sum(wait.outcome is None for wait in child.waits)
        ended = self._settle(child, settled, child.waits)
        while ended:
            ended = self._tell(ended)

    # -- what applications do -----------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """A new job. Its parents may have ended already."""
        self.jobs[job.id] = job
        job.state = "scheduled" if job.run_at > self.now else "queued"
        if not job.waits:
            return
        job.state, job.parents_left = "waiting", len(job.waits)
        for wait in job.waits:
            state = self.state_of(wait.parent)
            if state is None:
                raise Illegal("a job was accepted that waits for one that nobody knows")
            wait.outcome = state if state in ENDS else None
        if any(wait.outcome for wait in job.waits):
            self._look_again(job)

    def cancel(self, job_id: UUID) -> None:
        job = self._find(job_id)
        if job.state == "cancelled":
            return
        if not job.live:
            raise Refused("QP002")
        self.cancel_all([job])

    def cancel_all(self, jobs: Sequence[Job]) -> None:
        """At once, and with tasks what is left of their parts."""
        family, grown = list(jobs), 0
        while grown < len(family):
            grown = len(family)
            for wait in (wait for task in family.copy() if task.parents_left for wait in task.waits if wait.subtask):
                part = self.jobs.get(wait.parent)
                if part is not None and part.live and part not in family:
                    family.append(part)
        self._end([(part, "cancel", "cancelled") for part in family])

    def retry(self, job_id: UUID, max_attempts: int | None = None) -> None:
        job = self._find(job_id)
        if job.state not in ("failed", "cancelled"):
            raise Refused("QP002")
        planned = False
        left: int | None = None
        if job.parents_left:
            with self._all_or_nothing():
                for wait in sorted((w for w in job.waits if w.subtask), key=lambda w: w.parent):
                    planned = True
                    state = self.state_of(wait.parent)
                    if state in ("failed", "cancelled"):
                        # One that cannot be retried, because a part of it is forgotten, stays as it is.
                        with suppress(Refused):
                            self.retry(wait.parent, max_attempts)
                    elif state is None and wait.outcome != "completed":
                        raise Refused("QP002")
            left = self._rejoin(job)
        self._change(job, "retry" if left is None else "retry (parents live)")
        job.run_at, job.losses, job.retain_until, job.claimed_at = self.now, 0, None, None
        job.max_attempts = max_attempts or job.max_attempts
        if job.expires_at is not None and job.expires_at <= self.now:
            job.expires_at = None
        if left is not None:
            job.parents_left = max(left, 1)
            if left == 0 or planned:
                self._look_again(job)

    def _rejoin(self, job: Job) -> int:
        """Who ended while it waited waits again for parents that live, and takes the others as they are."""
        for wait in job.waits:
            state = self.state_of(wait.parent)
            if state is not None and state not in ENDS:
                wait.outcome = None
            else:
                wait.outcome = state or wait.outcome or "cancelled"
                if not wait.subtask:
                    wait.policy = "run"
        return sum(wait.outcome is None for wait in job.waits)

    def delete(self, job_id: UUID, *, cancel: bool) -> None:
        with self._all_or_nothing():
            job = self._find(job_id)
            if job.live:
                if not cancel:
                    raise Refused("QP002")
                self.cancel(job_id)
            waiting = [other for other in self.jobs.values() if other.live and other.parents_left]
            if any(wait.parent == job_id for other in waiting for wait in other.waits):
                raise Refused("QP002")
        del self.jobs[job_id]

    def reprioritize(self, job_id: UUID, priority: int) -> None:
        job = self._find(job_id)
        if not job.live:
            raise Refused("QP002")
        job.priority = priority

    # -- what workers do ----------------------------------------------------------------------------------------------

    def claimable(self, queue: str, key: str | None) -> list[Job]:
        """The jobs of a lane that a claim may take, the next one first."""
        if queue in self.paused and self.paused[queue] > self.now:
            return []
        lane = [
            job
            for job in self.jobs.values()
            if job.state == "queued"
            and (job.queue, job.key) == (queue, key)
            and (job.expires_at is None or job.expires_at > self.now)
        ]
        return sorted(lane, key=lambda job: (-job.priority, job.run_at, job.id))

    def claim(self, queues: Collection[str], wanted: int, lease: timedelta | None, taken: Sequence[UUID]) -> None:
        """The queue has given out `taken`: as many as there may be, and of each lane the first ones."""
        lanes = [self.claimable(queue, key) for queue in queues for key in (None, KEY)]
        keyed = [job for lane in lanes for job in lane if job.key is not None]
        room = len(keyed) if self.limit is None else max(self.limit - self.running_with_key(), 0)
        most = min(wanted, sum(map(len, lanes)) - len(keyed) + min(len(keyed), room))
        if len(set(taken)) != most or len(taken) != most:
            raise Illegal(f"{len(taken)} jobs were given out, not {most}")
        if sum(job.id in taken for job in keyed) > room:
            raise Illegal("more jobs of the key were given out than its limit allows")
        for lane in lanes:
            own = sum(job.id in taken for job in lane)
            if any(job.id not in taken for job in lane[:own]):
                raise Illegal("a job was given out before one that comes first")
        jobs = [job for lane in lanes for job in lane if job.id in taken]
        if len(jobs) != most:
            raise Illegal("a job was given out that nobody may claim")
        for job in jobs:
            self._change(job, "claim")
            job.token += 1
            job.claimed_at = self.now
            job.lease_until = self.now + (lease or LEASE[job.queue])
            self.claims.append((job.id, job.token))

    def heartbeat(self, claims: Sequence[tuple[UUID, int]], lease: timedelta | None) -> dict[UUID, datetime]:
        """The leases that stand, and until when they do now."""
        held: dict[UUID, datetime] = {}
        for job_id, token in claims:
            job = self.holds(job_id, token)
            if job is None:
                continue
            assert job.claimed_at is not None
            length = lease or LEASE[job.queue]
            longest = job.claimed_at + job.timeout + length
            if longest > self.now:
                job.lease_until = held[job_id] = min(self.now + length, longest)
        return held

    def finish(
        self, said: Sequence[Said], answers: Mapping[UUID, str], made: Mapping[UUID, Sequence[Job]]
    ) -> list[bool]:
        """Which entries are accepted. `answers`: what the queue says those jobs are now; `made`: subtasks of plans."""
        accepted: list[bool] = []
        named: set[UUID] = set()
        ends: list[tuple[Job, str, str | None]] = []
        for entry in said:
            job = None if entry.id in named else self.holds(entry.id, entry.token)
            named.add(entry.id)
            accepted.append(job is not None)
            if job is None:
                continue
            match entry.outcome:
                case "complete":
                    ends.append((job, "complete", None))
                case "discard":
                    ends.append((job, "discard", entry.code))
                case "cancel":
                    ends.append((job, "cancel (by handler)", entry.code))
                case "fail":
                    self._fail(job, entry.delay, answers.get(job.id), ends)
                case "snooze":
                    job.run_at = self.now + (entry.delay or timedelta(0))
                    self._change(job, "snooze" if job.run_at > self.now else "snooze (over)")
                case "wait":
                    job.run_at = self._waits_until(job)
                    self._change(job, "wait" if job.run_at > self.now else "wait (over)")
                case "release":
                    self._change(job, "release")
                case "plan":
                    self._plan(job, made.get(job.id, []))
                case _:
                    raise AssertionError(entry.outcome)
        self._end(ends)
        return accepted

    def _waits_until(self, job: Job) -> datetime:
        """When a job goes on that waits for what its newest claim has come to: with the first that is over."""
        ends = [
            self.now if name in job.signals else wait.until or self.now + NO_END
            for name, wait in job.reached.items()
            if wait.token == job.token and not wait.finished
        ]
        return max(min(ends, default=self.now), self.now)

    def reach(self, job_id: UUID, token: int, name: str, *, event: bool, length: timedelta | None) -> Reached:
        """A handler comes to a sleep or to an event. The end of the wait is set once."""
        job = self.holds(job_id, token)
        if job is None:
            raise Refused("QP001" if self.state_of(job_id) is None else "QP003")
        until = None if length is None else self.now + length
        wait = job.reached.setdefault(name, Reached(event, until, token))
        wait.token = token
        over = wait.until is not None and wait.until <= self.now
        if not wait.finished and (over or (event and name in job.signals)):
            wait.finished, wait.timed_out = True, event and name not in job.signals
        return wait

    def signal(self, job_id: UUID, name: str) -> bool:
        """An event comes; whether it is the first of its name."""
        job = self._find(job_id)
        wait = job.reached.get(name)
        if not job.live or (wait is not None and wait.timed_out):
            raise Refused("QP002")
        if name in job.signals:
            return False
        job.signals.add(name)
        if job.state == "scheduled" and wait is not None and wait.token == job.token and not wait.finished:
            job.run_at, job.window = self.now, None
            self._change(job, "signal (waited for)")
        return True

    def _fail(
        self, job: Job, delay: timedelta | None, answer: str | None, ends: list[tuple[Job, str, str | None]]
    ) -> None:
        window = self._backoff(job) if delay is None else (self.now + delay, self.now + delay)
        if self._is_over(job, window, answer):
            ends.append((job, "fail (last attempt)", "said"))
            return
        job.window = window
        job.error = "said"
        self._change(job, "fail" if window[1] > self.now else "fail (at once)")

    def _plan(self, job: Job, made: Sequence[Job]) -> None:
        self._change(job, "plan")
        job.parents_left = len(made)
        for nr, part in enumerate(made):
            self.jobs[part.id] = part
            job.waits.append(Wait(part.id, f"subtask-{nr}", "fail", subtask=True))

    def _backoff(self, job: Job) -> tuple[datetime, datetime]:
        longest = min(RETRY_CAP, RETRY_BASE * 2 ** (max(job.attempt, 1) - 1))
        return self.now + longest / 2, self.now + longest

    def _is_over(self, job: Job, window: tuple[datetime, datetime], answer: str | None) -> bool:
        """Whether a failed attempt was the last: no more are left, or the next would begin after the deadline."""
        if job.attempt >= job.max_attempts:
            return True
        if job.expires_at is None or window[1] < job.expires_at:
            return False
        return window[0] >= job.expires_at or answer == "failed"

    # -- what happens by itself ---------------------------------------------------------------------------------------

    def reap(self, answers: Mapping[UUID, str]) -> set[UUID]:
        ends: list[tuple[Job, str, str | None]] = []
        reaped: set[UUID] = set()
        for job in self.jobs.values():
            if job.state != "running" or job.lease_until is None or job.lease_until >= self.now:
                continue
            assert job.claimed_at is not None
            reaped.add(job.id)
            if job.claimed_at + job.timeout <= self.now:
                window = self._backoff(job)
                if self._is_over(job, window, answers.get(job.id)):
                    ends.append((job, "reap (past timeout, last attempt)", "timeout"))
                    continue
                job.window, job.error = window, "timeout"
                self._change(job, "reap (past timeout)")
                continue
            job.losses += 1
            if job.losses >= MAX_LEASE_LOSSES:
                ends.append((job, "reap (third loss)", "lease_lost"))
            else:
                job.error = "lease_lost"
                self._change(job, "reap")
        self._end(ends)
        return reaped

    def promote(self) -> int:
        due = [job for job in self.jobs.values() if job.state == "scheduled" and job.run_at <= self.now]
        for job in due:
            self._change(job, "promote")
        return len(due)

    def expire(self) -> int:
        dead = [
            job
            for job in self.jobs.values()
            if job.state in ("scheduled", "waiting", "queued")
            and job.expires_at is not None
            and job.expires_at <= self.now
        ]
        self._end([(job, "expire", "expired") for job in dead])
        return len(dead)
