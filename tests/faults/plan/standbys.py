"""Faults of the whole machine that Postgres runs on: a standby takes over (F34, F34b)."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Final

from psycopg.conninfo import make_conninfo

from queue_pg.client_sync import SyncQueue
from queue_pg.errors import DatabaseUnavailable
from tests.faults.arena import Arena
from tests.faults.fleet import STOP_SECONDS, Worker
from tests.faults.ledgers import LineFile, read_lines
from tests.faults.lines import BOTH, Line
from tests.faults.postgres import Postgres
from tests.faults.producers import Producer

STREAMING: Final = "select 1 from pg_stat_replication where state = 'streaming' and sync_state = 'sync'"


def fail_over(arena: Arena) -> None:
    """F34: the primary is killed and its synchronous standby promoted, again and again, where addresses lead then."""
    line = arena.line()
    through = arena.through(line)
    arena.fleet.dsn, arena.fleet.size = through, 3
    arena.fleet.fill()
    arena.produce(keyed=True, dsn=through)
    arena.produce(keyed=False, dsn=through)
    arena.mix(through)
    arena.progress()
    for number in range(arena.size.hits):
        standby = _standby(arena, number)
        time.sleep(arena.random.uniform(0.2, 1.0))
        enough = arena.acked() + 10
        arena.until(partial(_are_acked, arena, enough), "commits reach the standby")
        begin = time.monotonic()
        arena.postgres.kill()
        _take_over(arena, standby, line)
        arena.hits["failovers"] += 1
        arena.progress()
        arena.figures["failover_max_s"] = round(
            max(time.monotonic() - begin, arena.figures.get("failover_max_s", 0.0)), 3
        )


def _are_acked(arena: Arena, jobs: int) -> bool:
    return arena.acked() >= jobs


def fail_over_without_waiting(arena: Arena) -> None:
    """F34b: an asynchronous standby is promoted without the newest; the primary comes back and knows of nothing.

    What it had alone is lost, and counted. All else holds; and what is done there counts nowhere.
    """
    line = arena.line()
    through = arena.through(line)
    arena.fleet.dsn, arena.fleet.size = through, 3
    arena.fleet.fill()
    arena.produce(keyed=True, dsn=through)
    arena.produce(keyed=False, dsn=through)
    arena.progress()
    for number in range(arena.size.hits):
        old, feed = arena.postgres, arena.line()
        standby = _make_standby(arena, number, through=arena.through(feed))
        arena.until(partial(_follows, old), "the standby follows")
        arena.until(partial(_are_acked, arena, arena.acked() + 10), "commits reach the standby")
        [[since]] = old.execute("select clock_timestamp() - interval '5 seconds'")
        feed.hold(*BOTH)
        # These are there where they were made, and nowhere else.
        arena.until(partial(_are_acked, arena, arena.acked() + 20), "commits do not reach the standby")
        arena.progress(20)
        begin = time.monotonic()
        old.kill()
        _take_over(arena, standby, line)
        arena.hits["failovers"] += 1
        arena.progress()
        arena.figures["failover_max_s"] = round(
            max(time.monotonic() - begin, arena.figures.get("failover_max_s", 0.0)), 3
        )
        old.start()
        arena.hits["changes lost with a primary"] += _forsake(arena, old, since)
        _work_on(arena, old, number)
        old.remove()


CHANGES: Final = "select seq, xid::text, at, job::text from faults.edges where at >= %s"


def _forsake(arena: Arena, old: Postgres, since: object) -> int:
    """Note which jobs the primary that came back knows more of than the one there is now; return how much more."""
    there = {tuple(row) for row in arena.postgres.execute(CHANGES, (since,))}
    alone = [row for row in old.execute(CHANGES, (since,)) if tuple(row) not in there]
    arena.forsaken |= {row[3] for row in alone}
    return len(alone)


def _work_on(arena: Arena, old: Postgres, number: int) -> None:
    """Have a worker and an application go on with the primary that came back, until it is made a standby.

    The worker has both addresses. Of two that say that they are the primary it takes the first.
    """
    apart = arena.folder / f"apart-{number}"
    apart.mkdir()
    both = make_conninfo(old.dsn, host="127.0.0.1,127.0.0.1", port=f"{old.port},{arena.postgres.port}")
    straggler = arena.fleet.start(both, FAULTS_FOLDER=str(apart))
    deceived = Producer(old.dsn, apart, arena.numbers, keyed=False, rate=50.0, payload={"seconds": 0.0})
    deceived.start()
    arena.until(lambda: _has_worked(old, straggler) and deceived.acked >= 10, "the old primary is worked with")
    arena.hits["jobs done with the old primary"] += sum(
        path.read_bytes().count(b'["end"') for path in apart.glob("effects-*.jsonl")
    )
    # By its own account it may do anything; here nobody has heard of it.
    if _has_worked(arena.postgres, straggler):
        arena.violate("S4", f"worker {straggler.id} of the old primary counts with the new one")
    old.stop()
    old.demote()
    old.start()
    acked = deceived.acked
    refused = deceived.trouble + 3
    arena.until(lambda: deceived.trouble >= refused, "the old primary refuses what it may not take")
    deceived.stop()
    if deceived.acked != acked:
        arena.violate("S1", "a standby has taken jobs")
    arena.hits["submissions that the old primary took"] += acked
    with SyncQueue(old.dsn, notify=False) as queue:
        try:
            queue.submit("work", {"n": next(arena.numbers)})
        except DatabaseUnavailable:
            arena.hits["refusals of the old primary"] += 1
    arena.until(
        lambda: _has_worked(arena.postgres, straggler), "the worker of the old primary goes over to the new one"
    )
    arena.hits["workers that went over"] += 1
    straggler.process.terminate()
    if (code := straggler.process.wait(STOP_SECONDS)) != 0:
        arena.violate("L2", f"the worker of the old primary ended with {code}")
    _hand_in(arena, straggler, apart)


def _hand_in(arena: Arena, straggler: Worker, apart: Path) -> None:
    """Add to the effects of the run what the straggler has done since it went over."""
    claims = arena.postgres.execute(
        "select job::text, token from faults.edges where worker = %s and what = 'changed' and after = 'running'",
        (straggler.id,),
    )
    own = {tuple(claim) for claim in claims}
    effects = LineFile(arena.folder / f"effects-{straggler.pid}.jsonl", durable=False)
    for path in apart.glob("effects-*.jsonl"):
        effects.write_all(line for line in read_lines(path) if (line[2], line[3]) in own)
    effects.close()


def _has_worked(postgres: Postgres, worker: Worker) -> bool:
    done = "select 1 from faults.edges where what = 'ended' and worker = %s limit 1"
    return postgres.execute(done, (worker.id,)) != []


def _follows(primary: Postgres) -> bool:
    return primary.execute("select 1 from pg_stat_replication where state = 'streaming'") != []


def _make_standby(arena: Arena, number: int, through: str | None = None) -> Postgres:
    standby = Postgres(
        arena.postgres.folder.with_name(f"standby-{number}"), arena.settings, primary=arena.postgres, through=through
    )
    arena.stack.callback(standby.remove)
    standby.start()
    return standby


def _standby(arena: Arena, number: int) -> Postgres:
    """Make a standby of what is the primary now, without which nothing is confirmed from here on."""
    standby = _make_standby(arena, number)
    arena.postgres.execute("alter system set synchronous_standby_names = '*'")
    arena.postgres.execute("select pg_reload_conf()")
    arena.until(lambda: arena.postgres.execute(STREAMING) != [], "the standby follows")
    return standby


def _take_over(arena: Arena, standby: Postgres, line: Line) -> None:
    standby.execute("select pg_promote()")
    # It would wait for a standby of its own, which it has not yet.
    standby.execute("alter system reset synchronous_standby_names")
    standby.execute("select pg_reload_conf()")
    line.target = standby.port
    arena.postgres = standby
