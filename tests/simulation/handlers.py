"""What simulated workers run, and the ledgers in memory that their handlers and the applications write."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from queue_pg_workers.kinds import Handler, task_handler

from queue_pg import Snooze
from queue_pg.tasks import Tasks, current_job
from tests.faults.ledgers import ACKED, UNKNOWN, Run, Submission
from tests.faults.parts import StepRun
from tests.simulation.scheduler import Process
from tests.simulation.surroundings import Simulated


@dataclass(slots=True)
class Ledgers:
    """What those who submit and those who run know, which no crash takes from us."""

    submissions: dict[int, Submission] = field(default_factory=dict[int, Submission])
    runs: list[Run] = field(default_factory=list[Run])
    # When a handler's code was over that did not come to its end: it was stopped, or failed.
    stopped: dict[int, int] = field(default_factory=dict[int, int])
    steps: list[StepRun] = field(default_factory=list[StepRun])
    families: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    # By batch, the numbers of its jobs.
    members: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    limited: set[int] = field(default_factory=set[int])
    # Process number, from when to when it stood still, or its event loop did.
    stuck: list[tuple[int, float, float]] = field(default_factory=list[tuple[int, float, float]])
    napped: set[str] = field(default_factory=set[str])
    # By process: how many handlers run now, and did at most.
    running: Counter[str] = field(default_factory=Counter[str])
    most: Counter[str] = field(default_factory=Counter[str])

    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _groups: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def new_number(self) -> int:
        return next(self._numbers)

    def new_group(self) -> int:
        return next(self._groups)

    def will_submit(self, number: int, group: int | None = None) -> None:
        """Note a submission before it is made, for whoever makes it may not live to tell."""
        self.submissions[number] = Submission(number, UNKNOWN, None, group)

    def acked(self, number: int, job: object) -> None:
        self.submissions[number] = replace(self.submissions[number], word=ACKED, id=str(job))


class _Running:
    """The time in which a handler runs."""

    def __init__(self, ledgers: Ledgers, process: Process, number: int) -> None:
        self._ledgers = ledgers
        self._process = process
        self._number = number
        self._index = -1

    def __enter__(self) -> None:
        job = current_job()
        ledgers, name = self._ledgers, self._process.name
        self._index = len(ledgers.runs)
        ledgers.runs.append(
            Run(self._number, str(job.job_id), job.lease_token, self._process.number, self._now(), None)
        )
        ledgers.running[name] += 1
        ledgers.most[name] = max(ledgers.most[name], ledgers.running[name])
        self._process.scheduler.tell(name, "begins", self._number, job.lease_token)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._process.crashed:
            return  # it was dead long ago
        ledgers = self._ledgers
        ledgers.running[self._process.name] -= 1
        if kind is None:
            ledgers.runs[self._index] = replace(ledgers.runs[self._index], end_ns=self._now())
        else:
            ledgers.stopped[self._index] = self._now()
        word = "ends" if kind is None else "leaves"
        self._process.scheduler.tell(self._process.name, word, self._number, current_job().lease_token)

    def _now(self) -> int:
        return round(self._process.scheduler.now * 1e9)


def make_handlers(ledgers: Ledgers, process: Process, surroundings: Simulated) -> dict[str, Handler]:
    """Return the handlers of one worker process."""
    tasks = Tasks()

    def running(n: int) -> _Running:
        return _Running(ledgers, process, n)

    @tasks.task
    async def work(n: int, seconds: float = 0.0) -> dict[str, Any]:
        with running(n):
            if n % 3 == 0:
                await current_job().log(f"said with {current_job().lease_token}")
            await asyncio.sleep(seconds)
        return {"token": current_job().lease_token}

    @tasks.task
    async def block(n: int, seconds: float) -> dict[str, Any]:
        with running(n):
            # The event loop is held all the time, as careless code does.
            now = process.scheduler.now
            ledgers.stuck.append((process.number, now, now + seconds))
            surroundings.sleep(seconds)
        return {"token": current_job().lease_token}

    @tasks.task(max_attempts=9, retry_base_seconds=0.5, retry_cap_seconds=2.0)
    async def flaky(n: int) -> dict[str, Any]:
        with running(n):
            await asyncio.sleep(0.01)
            if current_job().attempt < 3:
                raise RuntimeError("not yet")
        return {"token": current_job().lease_token}

    @tasks.task
    def nap(n: int) -> Any:
        job = current_job()
        with running(n):
            surroundings.sleep(0.05)
        if str(job.job_id) in ledgers.napped:
            return {"token": job.lease_token}
        ledgers.napped.add(str(job.job_id))
        return Snooze(timedelta(seconds=1))

    @tasks.task
    async def stepped(n: int) -> dict[str, Any]:
        job = current_job()

        def step(name: str) -> int:
            ledgers.steps.append(StepRun(str(job.job_id), name, job.lease_token))
            return job.lease_token

        with running(n):
            first = await job.step("first", step, "first")
            await job.sleep(0.5)
            second = await job.step("second", step, "second")
        return {"token": job.lease_token, "steps": {"first": first, "second": second}}

    @tasks.task
    async def maker(n: int) -> dict[str, Any]:
        job = current_job()
        with running(n):
            await job.log(f"said with {job.lease_token}")
            await job.artifact("out.txt", b"done\n")
            await job.progress(1.0)
        return {"token": job.lease_token}

    @tasks.task
    async def told(batch: dict[str, Any]) -> dict[str, Any]:
        # What a batch submits when it has ended.
        del batch
        with running(0):
            await asyncio.sleep(0)
        return {"token": current_job().lease_token}

    return {one.kind: task_handler(one) for one in tasks}
