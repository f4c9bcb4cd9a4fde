"""The faults, by the numbers of the plan in docs/reliability.md."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.faults.arena import Arena, Fault, Size
from tests.faults.lines import Line

LEASE_SECONDS: Final = 2.0


def kill_workers(arena: Arena) -> None:
    """F1: workers are killed in the middle of whatever they do."""
    arena.blames = True
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.progress()
    for _ in range(arena.size.hits):
        time.sleep(arena.random.uniform(0.05, 0.4))
        victim = arena.random.choice(arena.fleet.workers)
        arena.fleet.kill(victim)
        arena.hits["worker kills"] += 1
        arena.fleet.fill()
    arena.progress()


POINTS: Final = tuple(
    f"{step}:{when}" for step in ("claim", "begin", "end", "finish", "heartbeat") for when in ("before", "after")
)


def kill_workers_at_points(arena: Arena) -> None:
    """F2: workers die at each point of a job's way: around claim, effect, record and heartbeat."""
    arena.blames = True
    arena.produce(keyed=False)
    arena.progress()
    for _ in range(arena.size.hits):
        for point in POINTS:
            victim = arena.fleet.start(FAULTS_POINT=point, FAULTS_PASSES=str(arena.random.randrange(3)))
            arena.fleet.disturbed.add(victim.id)
            victim.process.wait(60)
            if victim.process.returncode != -signal.SIGKILL:
                arena.violate("coverage", f"the worker for {point} ended with {victim.process.returncode}")
            arena.hits[point] += 1
    arena.progress()


def freeze_workers(arena: Arena) -> None:
    """F3: a worker stands still for three leases, its jobs are given to others, and it goes on as if nothing was."""
    arena.blames = True
    arena.produce(keyed=False)
    arena.progress()
    for _ in range(arena.size.hits):
        victim = arena.random.choice(arena.fleet.workers)
        arena.fleet.freeze(victim)
        time.sleep(3 * LEASE_SECONDS)
        _try_stale_writes(arena)
        arena.fleet.thaw(victim)
        arena.hits["freezes"] += 1
        arena.progress()
    arena.hits["stale writes tried"] += int(arena.figures.get("stale_tried", 0))


STALE: Final = {
    "finish": "select accepted from queue_pg.finish(array[%(id)s::uuid], array[%(token)s::bigint], array['complete'])",
    "fail": "select accepted from queue_pg.finish(array[%(id)s::uuid], array[%(token)s::bigint], array['fail'])",
    "snooze": "select accepted from queue_pg.finish(array[%(id)s::uuid], array[%(token)s::bigint], array['snooze'])",
    "heartbeat": "select true from queue_pg.heartbeat(array[%(id)s::uuid], array[%(token)s::bigint])",
}


def _try_stale_writes(arena: Arena) -> None:
    """Say everything that a worker can say with leases that are over."""
    with psycopg.connect(arena.postgres.dsn, autocommit=True) as connection:
        lost = connection.execute(
            "select e.job, e.token from faults.edges e where e.losses > 0 and e.what = 'changed' and e.after = 'queued'"
            " order by e.seq desc limit 200"
        ).fetchall()
        for job, token in lost:
            for name, statement in STALE.items():
                with suppress(psycopg.errors.RaiseException):
                    row = connection.execute(statement.encode(), {"id": job, "token": token}).fetchone()
                    arena.figures["stale_tried"] = arena.figures.get("stale_tried", 0) + 1
                    if row is not None and row[0] is True:
                        arena.figures["stale_accepted"] = arena.figures.get("stale_accepted", 0) + 1
                        arena.violate("S4", f"a stale {name} was accepted", str(job))
        arena.figures.setdefault("stale_accepted", 0)


def kill_postgres(arena: Arena) -> None:
    """F5: the server and all its children are killed at once, and started again."""
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.progress()
    for _ in range(arena.size.hits):
        time.sleep(arena.random.uniform(0.1, 1.0))
        arena.postgres.kill()
        arena.hits["server kills"] += 1
        time.sleep(arena.random.choice([0.0, 0.0, 0.5]))
        arena.postgres.start()
        arena.progress()


def restart_postgres(arena: Arena) -> None:
    """F8: an operator restarts the server, fast or immediately, and takes a while."""
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.progress()
    for index in range(arena.size.hits):
        time.sleep(arena.random.uniform(0.1, 1.0))
        arena.postgres.stop((signal.SIGINT, signal.SIGQUIT)[index % 2])
        arena.hits["restarts"] += 1
        time.sleep(arena.random.uniform(0.0, 2.0))
        arena.postgres.start()
        arena.progress()


def terminate_backends(arena: Arena) -> None:
    """F9: connections are terminated one after the other, those that listen among them."""
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.progress()
    with psycopg.connect(arena.postgres.dsn, autocommit=True, application_name="the fault") as connection:
        while arena.hits["terminations"] < arena.size.hits:
            time.sleep(arena.random.uniform(0.0, 0.1))
            rows = connection.execute(
                "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
            ).fetchall()
            if rows and connection.execute("select pg_terminate_backend(%s)", arena.random.choice(rows)).fetchone() == (
                True,
            ):
                arena.hits["terminations"] += 1
    arena.progress()


def lose_replies(arena: Arena) -> None:
    """F12: the server commits and the line breaks before its answer: of submissions, claims, heartbeats and ends."""
    info = conninfo_to_dict(arena.postgres.dsn)
    lines = [Line(int(str(info["port"])), random.Random(arena.random.random()), one_in=40) for _ in range(2)]
    through = [make_conninfo(arena.postgres.dsn, port=line.port) for line in lines]
    try:
        workers = [arena.fleet.start(through[1]) for _ in range(2)]
        arena.fleet.workers += workers
        arena.produce(keyed=True, dsn=through[0])
        arena.produce(keyed=False, dsn=through[0])
        arena.until(lambda: sum(line.cuts for line in lines) >= arena.size.hits, "replies are lost", seconds=600)
        arena.hits["lost replies to applications"] = lines[0].cuts
        arena.hits["lost replies to workers"] = lines[1].cuts
        for line in lines:
            line.cutting = False
        arena.progress()
        for worker in workers:
            worker.process.terminate()
            worker.process.wait(30)
    finally:
        for producer in arena.producers:
            producer.stop()
        for line in lines:
            line.close()


def block_the_loop(arena: Arena) -> None:
    """F4: handlers hold the event loop for three leases; their worker is alive, so they keep their jobs."""
    arena.blames = True
    arena.fleet.environment = {**arena.fleet.environment, "WORKER_CONCURRENCY": "1"}
    arena.produce(keyed=False)
    blockers = arena.produce(
        keyed=False, kind="block", payload={"seconds": 3 * LEASE_SECONDS}, rate=2.0, jobs=arena.size.hits
    )
    arena.until(lambda: blockers.acked >= arena.size.hits, "all that block are submitted", seconds=600)
    arena.hits["blocked loops"] = blockers.acked


def crash_in_handlers(arena: Arena) -> None:
    """F29: jobs that take their worker along; after three losses they end, and everybody else's work goes on."""
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


def shout(arena: Arena) -> None:
    """F30: error messages that databases do not take; the failure is recorded all the same."""
    arena.produce(keyed=False)
    for what in ("nul", "surrogate", "huge", "bytes"):
        producer = arena.produce(keyed=False, kind="shout", payload={"what": what}, rate=20.0, jobs=arena.size.hits)
        producer.join(60)
        arena.hits[what] = producer.acked
    with psycopg.connect(arena.postgres.dsn, autocommit=True) as connection:
        connection.execute("update queue_pg.jobs set max_attempts = 1 where kind = 'shout' and state <> 'running'")


def hold_snapshot(arena: Arena) -> None:
    """F16: somebody's transaction stays open throughout, and dead rows with it."""
    with psycopg.connect(arena.postgres.dsn) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select count(*) from queue_pg.jobs")
        arena.hits["held snapshots"] = 1
        arena.produce(keyed=True)
        arena.produce(keyed=False)
        begin, before = time.monotonic(), arena.done()
        arena.progress(arena.size.hits)
        arena.figures["jobs_per_second"] = round((arena.done() - before) / (time.monotonic() - begin), 1)


FAULTS: Final = (
    Fault("F1", "workers killed", kill_workers, Size(hits=8), Size(hits=2_000, workers=6)),
    Fault("F2", "workers killed at chosen points", kill_workers_at_points, Size(hits=1), Size(hits=100)),
    Fault("F3", "workers frozen past their leases", freeze_workers, Size(hits=2), Size(hits=60)),
    Fault("F4", "event loops blocked", block_the_loop, Size(hits=3, rate=20), Size(hits=100, rate=20)),
    Fault("F5", "Postgres killed", kill_postgres, Size(hits=3), Size(hits=200)),
    Fault("F8", "Postgres restarted", restart_postgres, Size(hits=2), Size(hits=50)),
    Fault("F9", "connections terminated", terminate_backends, Size(hits=40), Size(hits=2_000)),
    Fault("F12", "replies lost after the commit", lose_replies, Size(hits=20), Size(hits=1_000)),
    Fault("F16", "a snapshot held", hold_snapshot, Size(hits=500), Size(hits=100_000, rate=800)),
    Fault("F29", "handlers that crash their worker", crash_in_handlers, Size(hits=2), Size(hits=50)),
    Fault("F30", "errors that are hard to store", shout, Size(hits=2), Size(hits=20)),
)


def fault(name: str) -> Fault:
    """Return the fault of this name."""
    return next(one for one in FAULTS if one.name == name)
