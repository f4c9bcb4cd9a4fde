"""Faults of workers: killed, frozen, blocked, crashed by the work itself (F1 to F4, F29, F30)."""

from __future__ import annotations

import signal
import time
from functools import partial
from typing import Final

import psycopg

from tests.faults.arena import Arena
from tests.faults.fleet import LEASE_SECONDS, Worker
from tests.faults.recovery import MANY
from tests.faults.stale_writes import StaleWriter


def kill_workers(arena: Arena) -> None:
    """F1: workers are killed in the middle of whatever they do."""
    arena.blames = True
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.mix()
    arena.progress()
    kill_some(arena)


def kill_some(arena: Arena) -> None:
    """Kill as many workers as the size says, one after the other; some in calm, to see who has their jobs when."""
    enough = max(2, arena.fleet.size // 2)
    for hit in range(arena.size.hits):
        if measured := arena.is_measured(hit):
            arena.until(lambda: all(worker.serves for worker in arena.fleet.workers), "all workers serve")
            arena.progress()
        time.sleep(arena.random.uniform(0.05, 0.4))
        # One that is still being loaded has nothing to lose, and takes nothing over.
        arena.until(lambda: len(_serving(arena)) >= enough, "half of the workers serve")
        victim = arena.random.choice(_serving(arena))
        arena.fleet.kill(victim)
        arena.hits["worker kills"] += 1
        if measured:
            arena.calmly_killed.add(victim.id)
            arena.until(partial(_are_taken_over, arena, victim), "others have the jobs of a killed worker")
        arena.fleet.fill()
    arena.progress()


def _serving(arena: Arena) -> list[Worker]:
    return [worker for worker in arena.fleet.workers if worker.process.poll() is None and worker.serves]


def _are_taken_over(arena: Arena, victim: Worker) -> bool:
    # Another has been given its name when a job is claimed again; one that waits for that is queued with a loss.
    left = "select 1 from queue_pg.jobs where worker_id = %s or (state = 'queued' and lease_losses > 0) limit 1"
    return arena.postgres.execute(left, (victim.id,)) == []


POINTS: Final = tuple(
    f"{step}:{when}" for step in ("claim", "begin", "end", "finish", "heartbeat") for when in ("before", "after")
)


def kill_workers_at_points(arena: Arena) -> None:
    """F2: workers die at each point of a job's way: around claim, effect, record and heartbeat."""
    arena.blames = True
    arena.produce(keyed=False)
    arena.progress()
    for _ in range(arena.size.hits):
        victims = {
            point: arena.fleet.start(FAULTS_POINT=point, FAULTS_PASSES=str(arena.random.randrange(3)))
            for point in POINTS
        }
        arena.fleet.disturbed.update(victim.id for victim in victims.values())
        for point, victim in victims.items():
            victim.process.wait(120)
            if victim.process.returncode != -signal.SIGKILL:
                arena.violate("coverage", f"the worker for {point} ended with {victim.process.returncode}")
            arena.hits[point] += 1
            arena.hits["worker kills"] += 1
    arena.progress()


def freeze_workers(arena: Arena) -> None:
    """F3: a worker stands still for three leases, its jobs are given to others, and it goes on as if nothing was."""
    arena.blames = True
    arena.produce(keyed=False)
    arena.progress()
    stale = StaleWriter(arena.postgres.dsn)
    for _ in range(arena.size.hits):
        victim = _freeze_one(arena)
        thaw_at = time.monotonic() + 3 * LEASE_SECONDS
        while time.monotonic() < thaw_at:
            stale.write()
            time.sleep(0.1)
        arena.fleet.thaw(victim)
        arena.hits["freezes"] += 1
        arena.progress()
    arena.hits["stale writes tried"] = stale.tried
    arena.figures["stale_accepted"] = len(stale.accepted)
    for name, job in stale.accepted:
        arena.violate("S4", f"a stale {name} was accepted", job)


def _freeze_one(arena: Arena) -> Worker:
    """Freeze a worker that has leases."""
    while True:
        victim = arena.random.choice(arena.fleet.workers)
        arena.fleet.freeze(victim)
        held = "select 1 from queue_pg.jobs where state = 'running' and worker_id = %s limit 1"
        if arena.postgres.execute(held, (victim.id,)):
            return victim
        arena.fleet.thaw(victim)
        time.sleep(0.05)


def block_the_loop(arena: Arena) -> None:
    """F4: handlers hold the event loop for three leases; their worker is alive, so they keep their jobs."""
    arena.blames = True
    arena.produce(keyed=False)
    # Many are no more than the workers can do: the last ones have to end in time.
    seconds = 3 * LEASE_SECONDS
    rate = 2.0 if arena.size.hits < MANY else 0.8 * arena.size.workers / seconds
    blockers = arena.produce(keyed=False, kind="block", payload={"seconds": seconds}, rate=rate, jobs=arena.size.hits)
    arena.until(lambda: blockers.acked >= arena.size.hits, "all that block are submitted", seconds=600)
    arena.hits["blocked loops"] = blockers.acked


def crash_in_handlers(arena: Arena) -> None:
    """F29: jobs that take their worker along; after three losses they end, and everybody else's work goes on."""
    arena.may_die = True
    arena.produce(keyed=False)
    killers = arena.produce(keyed=False, kind="die", payload={}, rate=5.0, jobs=arena.size.hits)
    arena.until(lambda: killers.acked >= arena.size.hits, "all that crash are submitted", seconds=600)
    arena.hits["crashing jobs"] = killers.acked
    with psycopg.connect(arena.postgres.dsn, autocommit=True) as connection:
        ended = "select count(*) from queue_pg.finished_jobs where kind = 'die' and state = 'failed'"

        def over() -> bool:
            arena.fleet.fill()
            return connection.execute(ended.encode()).fetchone() == (killers.acked,)

        arena.until(over, "the crashing jobs are given up", seconds=600)


_TOLD: Final = """
select count(*) from queue_pg.finished_jobs where kind = 'shout' and state = 'failed' and error ->> 'message' <> ''
"""


def shout(arena: Arena) -> None:
    """F30: error messages that databases do not take; the failure is recorded all the same."""
    arena.may_fail = ["shout"]
    arena.produce(keyed=False)
    for what in ("nul", "surrogate", "huge", "bytes"):
        producer = arena.produce(keyed=False, kind="shout", payload={"what": what}, rate=20.0, jobs=arena.size.hits)
        producer.join(60)
        arena.hits[what] = producer.acked
    with psycopg.connect(arena.postgres.dsn, autocommit=True) as connection:
        connection.execute("update queue_pg.jobs set max_attempts = 1 where kind = 'shout' and state <> 'running'")
    shouted = sum(arena.hits.values())
    arena.until(lambda: arena.postgres.execute(_TOLD) == [(shouted,)], "each has failed and its error can be read")
