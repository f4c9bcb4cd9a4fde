"""A limit under real worker processes that are killed in the middle of their jobs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import psycopg
from worker_process import Pipe, WorkerProcess, told_pipe, worker_process

from queue_pg import NewJob, Queue

WORKERS = 8
KILLS = 6
KEYED, PLAIN = 200, 100
MOST_OF_KEY, MOST_OF_QUEUE = 5, 7
Start = Callable[[], Awaitable[WorkerProcess]]

ENV = {"LEASE_SECONDS": "1", "WORKER_CONCURRENCY": "4"}


class Observer:
    """Counts what runs from what handlers say, in the order in which they say it.

    A handler says that it has ended before its worker records it, so whoever takes its slot says so later. What a
    killed process ran is over before its leases are.
    """

    def __init__(self, keyed: set[str]) -> None:
        self._keyed = keyed
        self._open: dict[str, set[str]] = defaultdict(set)
        self._dead: set[str] = set()
        self.ended: set[str] = set()
        self.begun = 0
        self.most_of_key = 0
        self.most_of_queue = 0

    def hear(self, what: str, process: str, job: str) -> None:
        if what == "ended":
            # Whether it is recorded or runs again: it has once come to its end.
            self.ended.add(job)
        if process in self._dead:
            return
        if what == "began":
            self.begun += 1
            self._open[process].add(job)
            running = [each for jobs in self._open.values() for each in jobs]
            self.most_of_queue = max(self.most_of_queue, len(running))
            self.most_of_key = max(self.most_of_key, sum(each in self._keyed for each in running))
        else:
            self._open[process].discard(job)

    def busiest(self) -> int:
        return int(max(self._open, key=lambda process: len(self._open[process])))

    def bury(self, process: int) -> None:
        self._dead.add(str(process))
        self._open.pop(str(process), None)


async def test_five_are_never_six_under_eight_workers_with_kills(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, tmp_path: Path
) -> None:
    await conn.execute("select queue_pg.configure(max_lease_losses => 100)")
    await queue.set_limit("key", "five", max_running=MOST_OF_KEY)
    await queue.set_limit("queue", "default", max_running=MOST_OF_QUEUE)
    key_gate, queue_gate = (_gate(tmp_path / name) for name in ("key", "queue"))
    keyed = await queue.submit_many(
        [NewJob(kind="take_turn", payload={"gate": str(key_gate)}, limit_key="five")] * KEYED
    )
    plain = await queue.submit_many([NewJob(kind="take_turn", payload={"gate": str(queue_gate)})] * PLAIN)
    observer = Observer({str(each.id) for each in keyed})
    async with told_pipe(tmp_path) as pipe, AsyncExitStack() as stack:

        async def start() -> WorkerProcess:
            return await stack.enter_async_context(worker_process(dsn, "limited_tasks", pipe=pipe, env=ENV))

        workers = {each.process.pid: each for each in await asyncio.gather(*(start() for _ in range(WORKERS)))}
        # Both limits are reached, however slowly the workers start: the jobs without the key wait for the queue to be
        # full, and those with it, which fair shares keep from filling it alone, for their own number.
        async with asyncio.timeout(30):
            while observer.most_of_queue < MOST_OF_QUEUE:
                observer.hear(*await pipe.lines.get())
            stack.callback(os.close, _opened(queue_gate))
            while observer.most_of_key < MOST_OF_KEY:
                observer.hear(*await pipe.lines.get())
            stack.callback(os.close, _opened(key_gate))
        kills = await _observe(pipe, observer, workers, start)
        for each in [*keyed, *plain]:
            assert (await queue.wait(each.id, 60)).state == "completed"
        for worker in workers.values():
            # One that has just been started cannot obey yet.
            await worker.logged(" serves ")
            worker.signal(signal.SIGTERM)
        assert [await worker.ended() for worker in workers.values()] == [0] * WORKERS
    while not pipe.lines.empty():
        observer.hear(*pipe.lines.get_nowait())
    assert kills == KILLS
    assert observer.ended == {str(each.id) for each in [*keyed, *plain]}
    # Reached, and never passed.
    assert (observer.most_of_key, observer.most_of_queue) == (MOST_OF_KEY, MOST_OF_QUEUE)
    assert await (await conn.execute("select * from queue_pg.recount_limits()")).fetchall() == []
    assert await (await conn.execute("select sum(running) from queue_pg.limits")).fetchall() == [(0,)]


def _gate(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _opened(gate: Path) -> int:
    return os.open(gate, os.O_RDONLY | os.O_NONBLOCK)


async def _observe(pipe: Pipe, observer: Observer, workers: dict[int, WorkerProcess], start: Start) -> int:
    """Watch until each job has ended; meanwhile kill the busiest worker now and then, and start another."""
    kills = 0
    async with asyncio.timeout(100):
        while len(observer.ended) < KEYED + PLAIN:
            observer.hear(*await pipe.lines.get())
            if kills < KILLS and observer.begun >= (kills + 1) * (KEYED + PLAIN) // (KILLS + 2):
                victim = observer.busiest()
                observer.bury(victim)
                worker = workers.pop(victim)
                worker.signal(signal.SIGKILL)
                assert await worker.ended() == -signal.SIGKILL
                kills += 1
                replacement = await start()
                workers[replacement.process.pid] = replacement
    return kills
