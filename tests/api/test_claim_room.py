"""Many claims that wait: fair, few statements, nothing swallowed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from queue_pg_api import claim_room, queue_watch
from queue_pg_api.claim_room import ClaimRoom, Wanted
from queue_pg_api.queue_watch import QueueWatch

from queue_pg.errors import DatabaseUnavailable, InvalidJob
from queue_pg.models import ClaimedJob
from queue_pg.wakeup import WAKE, Wakeups


class Jobs:
    """A queue in memory that counts how often it is asked, and whom it served."""

    def __init__(self) -> None:
        self.available = 0
        self.claims = 0
        self.served: list[str] = []
        self.armed: list[bool] = []
        self.returned: list[UUID] = []
        self.fault: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.asked = asyncio.Event()
        # Committed at the very moment of the next look, too late for it.
        self.too_late = 0

    async def claim(self, wanted: Wanted, arm: bool) -> list[ClaimedJob]:
        self.claims += 1
        self.armed.append(arm)
        taken = min(self.available, wanted.max_jobs)
        self.available += self.too_late - taken
        self.too_late = 0
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        if taken:
            self.served.append(wanted.worker)
        return [_job() for _ in range(taken)]

    async def give_back(self, jobs: Sequence[ClaimedJob]) -> None:
        self.available += len(jobs)
        self.returned += [job.id for job in jobs]


def _job() -> ClaimedJob:
    now = datetime.now(UTC)
    return ClaimedJob(
        id=uuid4(), org="default", queue="q", kind="k", payload="{}", metadata="{}", attempt=1, max_attempts=1,
        lease_token=1, lease_expires_at=now, lease_seconds=30, timeout_seconds=60, tags=[], traceparent=None,
        created_at=now,
    )  # fmt: skip


def wanted(worker: str = "w", *, queues: tuple[str, ...] = ("q",), max_jobs: int = 1) -> Wanted:
    return Wanted(org="default", worker=worker, queues=queues, kinds=None, max_jobs=max_jobs, lease_seconds=None)


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
async def room(jobs: Jobs) -> AsyncIterator[ClaimRoom]:
    room = ClaimRoom(jobs.claim, jobs.give_back, fallback_seconds=3600)
    yield room
    await room.close()


async def start(room: ClaimRoom, *wants: Wanted) -> list[asyncio.Task[list[ClaimedJob]]]:
    """Start claims that wait, one after the other, and return when all stand in line."""
    tasks: list[asyncio.Task[list[ClaimedJob]]] = []
    for each in wants:
        tasks.append(asyncio.create_task(room.claim(each, wait_seconds=60, until=())))
        await settle()
    assert room.waiting == len(wants)
    return tasks


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_thousand_idle_waiters_cost_one_claim_per_wake_up(room: ClaimRoom, jobs: Jobs) -> None:
    tasks = [asyncio.create_task(room.claim(wanted(f"w{n}"), wait_seconds=60, until=())) for n in range(1_000)]
    await settle()
    assert room.waiting == 1_000
    jobs.claims = 0
    room.wake()
    room.wake()
    room.wake()
    await settle()
    assert jobs.claims == 1
    jobs.available = 3
    room.wake()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await settle()
    assert jobs.claims == 1 + 4
    assert room.waiting == 997
    await finish(tasks)


async def finish(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_waited_longest_is_served_first(room: ClaimRoom, jobs: Jobs) -> None:
    tasks = await start(room, *(wanted(f"w{n}") for n in range(5)))
    jobs.available = 3
    room.wake()
    await asyncio.gather(*tasks[:3])
    assert jobs.served == ["w0", "w1", "w2"]
    await finish(tasks)


async def test_lines_of_different_queues_do_not_wait_for_each_other(room: ClaimRoom, jobs: Jobs) -> None:
    tasks = await start(
        room, wanted("a", queues=("x",)), wanted("b", queues=("y", "z")), wanted("c", queues=("z", "y"))
    )
    jobs.claims = 0
    room.wake()
    await settle()
    assert jobs.claims == 2
    await finish(tasks)


async def test_a_job_that_comes_while_joining_is_not_missed(room: ClaimRoom, jobs: Jobs) -> None:
    jobs.gate = asyncio.Event()
    task = asyncio.create_task(room.claim(wanted(), wait_seconds=60, until=()))
    await jobs.asked.wait()  # the first claim found nothing and is on its way back
    jobs.available = 1
    room.wake()
    jobs.gate.set()
    assert len(await asyncio.wait_for(task, 5)) == 1


async def test_without_any_wake_up_the_fallback_finds_jobs(jobs: Jobs) -> None:
    room = ClaimRoom(jobs.claim, jobs.give_back, fallback_seconds=0.02)
    [task] = await start(room, wanted())
    jobs.available = 1
    assert len(await asyncio.wait_for(task, 5)) == 1


async def test_a_wait_ends_by_time_and_by_event(room: ClaimRoom) -> None:
    assert await room.claim(wanted(), wait_seconds=0.01, until=()) == []
    stop = asyncio.Event()
    task = asyncio.create_task(room.claim(wanted(), wait_seconds=60, until=(stop,)))
    await settle()
    stop.set()
    assert await asyncio.wait_for(task, 5) == []
    assert room.waiting == 0
    assert await room.claim(wanted(), wait_seconds=60, until=(stop,)) == []


async def test_jobs_of_a_waiter_that_left_go_back_and_on(room: ClaimRoom, jobs: Jobs) -> None:
    leaver, stayer = await start(room, wanted("leaver"), wanted("stayer"))
    jobs.gate = asyncio.Event()
    jobs.asked.clear()
    jobs.available = 1
    room.wake()
    await jobs.asked.wait()  # claimed for the leaver, and on its way
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    jobs.gate.set()
    assert len(await asyncio.wait_for(stayer, 5)) == 1
    assert len(jobs.returned) == 1


async def test_a_first_claim_that_is_cancelled_half_way_is_handed_back(room: ClaimRoom, jobs: Jobs) -> None:
    jobs.gate = asyncio.Event()
    jobs.available = 2
    task = asyncio.create_task(room.claim(wanted(max_jobs=2), wait_seconds=0, until=()))
    await jobs.asked.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    jobs.gate.set()
    await room.close()
    assert len(jobs.returned) == 2


async def test_a_waiter_cancelled_in_the_moment_of_being_served(room: ClaimRoom, jobs: Jobs) -> None:
    [task] = await start(room, wanted())
    jobs.asked.clear()
    jobs.available = 1
    room.wake()
    await jobs.asked.wait()  # its job is in its future, and the task has not run since
    task.cancel()
    answers = await asyncio.gather(task, return_exceptions=True)
    await room.close()
    # Either it got the job or the job went back; in no case is it lost.
    assert len(jobs.returned) + (0 if isinstance(answers[0], BaseException) else len(answers[0])) == 1


async def test_an_outage_is_told_to_all_who_wait(room: ClaimRoom, jobs: Jobs) -> None:
    tasks = await start(room, wanted("a"), wanted("b"), wanted("c"))
    jobs.fault = DatabaseUnavailable("gone")
    room.wake()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 3
    assert room.waiting == 0


async def test_one_waiters_fault_is_its_own(room: ClaimRoom, jobs: Jobs) -> None:
    first, second = await start(room, wanted("a"), wanted("b"))
    jobs.fault = InvalidJob("lease", "too long")
    room.wake()
    await asyncio.wait([first])
    jobs.fault = None
    jobs.available = 1
    room.wake()
    assert isinstance(first.exception(), InvalidJob)
    assert len(await asyncio.wait_for(second, 5)) == 1


async def test_a_storm_of_wake_ups_is_spaced(room: ClaimRoom, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_room, "ROUND_SPACING_SECONDS", 0.2)
    tasks = await start(room, wanted())
    jobs.claims = 0
    began_at = time.monotonic()
    for _ in range(1_000):
        room.wake()
        await asyncio.sleep(0)
    assert jobs.claims <= 2 + (time.monotonic() - began_at) / 0.2
    await finish(tasks)


# ---- with notifications ----------------------------------------------------------------------------------------------


class Listening(Wakeups):
    """A listener without a connection; `notify` is what Postgres would have sent."""

    def __init__(self) -> None:
        super().__init__("postgresql://nobody@127.0.0.1:1/nothing", (WAKE,))
        self.on = True

    @property
    def listening(self) -> bool:
        return self.on

    async def notify(self, queue: str) -> None:
        with self._lock:
            woken = list(self._subscribers.get((WAKE, queue), ()))
        for subscription in woken:
            subscription.signal()
        await settle()


class Disarmed(list[list[str]]):
    async def __call__(self, queues: Sequence[str]) -> None:
        self.append(sorted(queues))


@pytest.fixture
def wakeups() -> Listening:
    return Listening()


@pytest.fixture
def disarmed() -> Disarmed:
    return Disarmed()


@pytest.fixture
async def armed_room(jobs: Jobs, wakeups: Listening, disarmed: Disarmed) -> AsyncIterator[ClaimRoom]:
    watch = QueueWatch(wakeups, disarmed)
    room = ClaimRoom(jobs.claim, jobs.give_back, watch=watch, fallback_seconds=3600)
    yield room
    await room.close()
    await watch.close()


async def test_only_claims_that_wait_and_hear_arm(
    armed_room: ClaimRoom, jobs: Jobs, wakeups: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_room, "SECOND_LOOK_SECONDS", 3600)
    await armed_room.claim(wanted(), wait_seconds=0, until=())
    wakeups.on = False
    await armed_room.claim(wanted(), wait_seconds=0.001, until=())
    assert jobs.armed == [False, False]
    wakeups.on = True
    tasks = await start(armed_room, wanted())
    assert jobs.armed == [False, False, True]
    await wakeups.notify("q")
    assert jobs.armed[3:] == [True]  # woken in vain: armed anew
    await finish(tasks)


async def test_only_lines_of_the_queue_are_woken(
    armed_room: ClaimRoom, jobs: Jobs, wakeups: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_room, "SECOND_LOOK_SECONDS", 3600)
    tasks = await start(armed_room, wanted("x", queues=("x",)), wanted("yz", queues=("y", "z")))
    jobs.claims = 0
    await wakeups.notify("other")
    assert jobs.claims == 0
    jobs.available = 1
    await wakeups.notify("z")
    assert await asyncio.wait_for(tasks[1], 5)
    assert jobs.served == ["yz"]
    jobs.available = 1
    armed_room.wake()  # a notification without a name
    assert await asyncio.wait_for(tasks[0], 5)


async def test_a_hint_that_was_never_sent_is_made_up_for(armed_room: ClaimRoom, jobs: Jobs) -> None:
    jobs.too_late = 1
    [task] = await start(armed_room, wanted())
    assert await asyncio.wait_for(task, 5)


async def test_there_is_one_second_look_and_no_third(
    armed_room: ClaimRoom, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_room, "SECOND_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(claim_room, "ROUND_SPACING_SECONDS", 0.001)
    tasks = await start(armed_room, wanted("a"), wanted("b"))
    await armed_room.claim(wanted("c", queues=("else",)), wait_seconds=0.5, until=())
    # The three first looks, and second ones of both lines: of that with two waiters twice, should b have come late, and
    # for each of them. A third, a fourth and so on would be over fifty.
    assert 4 <= jobs.claims <= 8
    await finish(tasks)


async def test_a_notification_while_joining_is_not_missed(
    armed_room: ClaimRoom, jobs: Jobs, wakeups: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_room, "SECOND_LOOK_SECONDS", 3600)
    jobs.gate = asyncio.Event()
    task = asyncio.create_task(armed_room.claim(wanted(), wait_seconds=60, until=()))
    await jobs.asked.wait()
    jobs.available = 1
    await wakeups.notify("q")
    jobs.gate.set()
    assert len(await asyncio.wait_for(task, 5)) == 1


async def test_a_queue_nobody_waits_for_is_disarmed(
    armed_room: ClaimRoom, jobs: Jobs, wakeups: Listening, disarmed: Disarmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_watch, "DISARM_SPACING_SECONDS", 0.001)
    tasks = await start(armed_room, wanted())
    await wakeups.notify("q")
    assert disarmed == []
    await finish(tasks)
    await until_disarmed(wakeups, disarmed, 1)
    await wakeups.notify("q")
    assert disarmed == [["q"]]
    await armed_room.claim(wanted(), wait_seconds=0.001, until=())
    await until_disarmed(wakeups, disarmed, 2)
    assert disarmed == [["q"], ["q"]]


async def until_disarmed(wakeups: Listening, disarmed: Disarmed, times: int) -> None:
    """Go on notifying: a line may take a moment to end."""
    async with asyncio.timeout(5):
        while len(disarmed) < times:
            await wakeups.notify("q")


async def test_what_lingers_is_bounded(
    armed_room: ClaimRoom, wakeups: Listening, disarmed: Disarmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_watch, "MAX_LINGERING", 2)
    for n in range(5):
        await armed_room.claim(wanted(queues=(f"q{n}",)), wait_seconds=0.001, until=())
    await settle()
    assert len(wakeups._subscribers) == 2
    assert disarmed[0] == ["q2"]


async def test_many_lines_look_seldom_while_notifications_arrive(jobs: Jobs, wakeups: Listening) -> None:
    watch = QueueWatch(wakeups, Disarmed())
    room = ClaimRoom(jobs.claim, jobs.give_back, watch=watch, fallback_seconds=1)
    pauses: list[float] = []
    for lines, longest in ((1, 1.0), (4, 1.0), (8, 2.0), (100, 5.0)):
        room._lines = dict.fromkeys(range(lines))  # type: ignore[arg-type]
        pauses = [room._pause_seconds() for _ in range(100)]
        assert 0.75 * longest <= min(pauses) < max(pauses) <= longest
    wakeups.on = False
    assert max(room._pause_seconds() for _ in range(100)) <= 1
