"""Faults of the whole machine that Postgres runs on: a standby takes over (F34)."""

from __future__ import annotations

import shutil
import time
from functools import partial
from typing import Final

from tests.faults.arena import Arena
from tests.faults.lines import Line
from tests.faults.postgres import Postgres

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


def _standby(arena: Arena, number: int) -> Postgres:
    """Make a standby of what is the primary now, without which nothing is confirmed from here on."""
    standby = Postgres(arena.postgres.folder.with_name(f"standby-{number}"), arena.settings, primary=arena.postgres)
    data = (standby.folder / "cluster").resolve()
    arena.stack.callback(shutil.rmtree, data, ignore_errors=True)
    arena.stack.callback(standby.stop)
    standby.start()
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
