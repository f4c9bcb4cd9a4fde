"""Faults of the lines in between: answers lost, silence, slowness, partitions, poolers (F10 to F13, F21)."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import Final

from psycopg.conninfo import make_conninfo
from queue_pg_workers import link

from queue_pg import wakeup
from queue_pg.connections import connect_arguments
from tests.faults.arena import Arena
from tests.faults.fleet import LEASE_SECONDS
from tests.faults.lines import BOTH, DOWN, UP, Line, Weather
from tests.faults.machine import callers, dropping, losing, no_packet_filter
from tests.faults.plan.processes import kill_some
from tests.faults.pooler import pooled
from tests.faults.recovery import MANY
from tests.faults.wire import Wire, no_wire


def lose_replies(arena: Arena) -> None:
    """F12: the server commits and the line breaks before its answer: of submissions, claims, heartbeats and ends."""
    lines = [arena.line(Weather(lose_answer=40)) for _ in range(2)]
    for _ in range(2):
        arena.fleet.add(arena.through(lines[1]))
    arena.produce(keyed=True, dsn=arena.through(lines[0]))
    arena.produce(keyed=False, dsn=arena.through(lines[0]))
    arena.mix(arena.through(lines[0]))

    def enough() -> bool:
        cuts = [line.cuts for line in lines]
        return min(cuts) > 0 and sum(cuts) >= arena.size.hits

    arena.until(enough, "replies are lost", seconds=600)
    arena.hits["lost replies to applications"] = lines[0].cuts
    arena.hits["lost replies to workers"] = lines[1].cuts
    for line in lines:
        line.calm = True
    arena.progress()


WAYS: Final = {"both": BOTH, "to the server": (UP,), "from the server": (DOWN,)}


def silence_lines(arena: Arena) -> None:
    """F10: a worker's line falls silent, in one direction or both, for longer than its leases, or for good."""
    arena.blames = True
    line = arena.line()
    # With few hits there is no time for TCP as the library sets it.
    brisk = arena.size.hits < MANY
    dsn = make_conninfo(arena.through(line), **BRISK) if brisk else arena.through(line)
    # At the end its line may be dead; letting go of that is a part of the grace.
    victim = arena.fleet.add(dsn, GRACE_SECONDS="3")
    arena.fleet.disturbed.add(victim.id)
    arena.cut_off.add(victim.id)
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.until(lambda: victim.serves, "the worker on the line works")
    for number in range(arena.size.hits):
        for name, ways in WAYS.items():
            arena.progress()
            line.hold(*ways)
            time.sleep(1.5 * LEASE_SECONDS)
            # What was said meanwhile arrives late, with leases that are over.
            line.flow()
            arena.hits[f"silent {name}"] += 1
        if no_packet_filter() is None:
            with dropping(line.port):
                time.sleep(1.5 * LEASE_SECONDS)
            arena.hits["packets dropped"] += 1
            if brisk or arena.is_measured(number):
                _drop_for_good(arena, line, dsn)
        arena.progress()
        lost = callers(line.port)
        arena.hits["half-open connections"] += line.lose()
        if arena.is_measured(number):
            seconds = _until_noticed(arena, line, lost)
            _hold_to(arena, "silence_noticed_max_s", seconds, SILENCE_NOTICED_SECONDS)
        elif not brisk:
            _until_it_works(arena, line)


BRISK: Final = {"keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 2, "tcp_user_timeout": 3_000}
# A connection that listens is asked whether it lives, the others are in use all the time.
SILENCE_NOTICED_SECONDS: Final = max(wakeup.PROBE_SECONDS + wakeup.ANSWER_SECONDS, link.STATEMENT_SECONDS + 5)
# For a machine that has other things to do.
SLACK_SECONDS: Final = 5.0


def _drop_for_good(arena: Arena, line: Line, dsn: str) -> None:
    """Drop all that its connections say, and see how soon the worker has left each; new ones work."""
    lost = callers(line.port)
    arguments = connect_arguments(dsn)
    idle, interval = (int(arguments[f"keepalives_{name}"]) for name in ("idle", "interval"))
    unanswered = int(arguments["tcp_user_timeout"]) / 1_000
    # Silence is found out by the first keepalive after so long. While something waits for its acknowledgement the
    # kernel sends none, and what is said just before has as long as if nothing had been (tcp_keepalive_timer of Linux).
    silent = idle + interval * max(1, math.ceil((unanswered - idle) / interval))
    with losing(sorted(lost)):
        seconds = _until_noticed(arena, line, lost)
    arena.hits["connections dropped for good"] += len(lost)
    _hold_to(arena, "drop_noticed_max_s", seconds, silent + unanswered)


def _until_noticed(arena: Arena, line: Line, lost: Collection[int]) -> float:
    """Wait until who called has left these connections, and return after how long the last of them."""
    begin = time.monotonic()
    arena.until(lambda: not callers(line.port) & set(lost), "half-open connections are found out", seconds=180)
    return time.monotonic() - begin


def _hold_to(arena: Arena, name: str, seconds: float, promised: float) -> None:
    """Note how long it took, and against what it is held where there are hits enough."""
    arena.figures[name] = round(max(seconds, arena.figures.get(name, 0.0)), 1)
    arena.figures[name.replace("max", "promised")] = promised
    if arena.size.hits >= MANY and seconds > promised + SLACK_SECONDS:
        arena.violate("L2", f"half-open connections were found out after {seconds:.1f} s instead of {promised:g} s")


def _until_it_works(arena: Arena, line: Line) -> None:
    """Wait until the worker on the line works again."""
    before = line.bytes
    arena.until(lambda: line.bytes > before + 10_000, "a worker finds out that its line is half-open", seconds=90)


def slow_lines(arena: Arena) -> None:
    """F11: one line is slow and loses packets, one is narrow, one is reset again and again, one is a bad wire."""
    slow = arena.line(Weather(seconds=0.02, lose_packet=20))
    narrow = arena.line(Weather(bytes_per_second=8_000))
    torn = arena.line(Weather(seconds=0.002, reset=150))
    for line in (slow, narrow, torn):
        arena.fleet.add(arena.through(line))
    wire = _add_bad_wire(arena)
    arena.produce(keyed=True, dsn=arena.through(torn))
    arena.produce(keyed=True, dsn=arena.through(slow))
    arena.produce(keyed=False)
    arena.progress()

    def enough() -> bool:
        # Nothing but a killed worker may end; and a narrow line has been one when all its pieces took time.
        if min(torn.resets, slow.delays, narrow.bytes // 1_000) < arena.size.hits:
            return False
        # Whoever is behind a bad wire works as well.
        return wire is None or (wire.lost() >= arena.size.hits and arena.done_by(arena.fleet.workers[-1]) > 0)

    arena.until(enough, "lines are slow and torn", seconds=3_600)
    arena.hits["resets"], arena.hits["late packets"] = torn.resets, slow.delays
    arena.hits["narrow kilobytes"] = narrow.bytes // 1_000
    if wire is not None:
        arena.hits["packets lost on a wire"] = wire.lost()
        arena.hits["jobs done behind the wire"] = arena.done_by(arena.fleet.workers[-1])
    torn.calm = slow.calm = narrow.calm = True
    arena.progress()


def _add_bad_wire(arena: Arena) -> Wire | None:
    """Start a worker in a network of its own, from which packets come 200 ms late, or not at all, one in 20."""
    if no_wire() is not None:
        return None
    wire = Wire()
    arena.stack.callback(wire.remove)
    late = None if wire.has_delay else Weather(seconds=0.2)
    line = arena.line(late, host=wire.host)
    arena.fleet.add(arena.through(line), prefix=wire.prefix)
    return wire


def partition(arena: Arena) -> None:
    """F13: each worker, one of which maintains, and the API are cut off one by one, and come back in any order."""
    lines: dict[int, Line] = {}
    for _ in range(3):
        line = arena.line()
        lines[arena.fleet.add(arena.through(line)).pid] = line
    line = arena.line()
    service = arena.serve(arena.through(line))
    assert service.pid is not None
    lines[service.pid] = line
    arena.fleet.size = 3
    arena.produce_over_http(service)
    arena.produce(keyed=False)
    arena.progress()
    for _ in range(arena.size.hits):
        leader = arena.postgres.execute("select leader from queue_pg.maintenance")
        order = arena.random.sample(list(lines), len(lines))
        for pid in order:
            lines[pid].hold(*arena.random.choice(list(WAYS.values())))
            arena.hits["lines cut"] += 1
            # The name of who maintains is host, process and chance.
            if leader and leader[0][0] is not None and leader[0][0].split("-")[-2] == str(pid):
                arena.hits["who maintains cut off"] += 1
            time.sleep(arena.random.uniform(0.1, 0.5))
        time.sleep(arena.random.uniform(0.5, 1.5) * LEASE_SECONDS)
        for pid in arena.random.sample(list(lines), len(lines)):
            lines[pid].flow()
            time.sleep(arena.random.uniform(0.0, 0.3))
        arena.progress()


def kill_behind_a_pooler(arena: Arena) -> None:
    """F21: workers and applications go through PgBouncer in transaction mode, and workers are killed there."""
    arena.blames = True
    through = arena.stack.enter_context(pooled(arena.postgres.dsn))
    arena.fleet.dsn, arena.fleet.size = through, 3
    arena.fleet.environment = {**arena.fleet.environment, "LISTEN_DATABASE_URL": arena.postgres.dsn}
    arena.fleet.fill()
    arena.produce(keyed=True, dsn=through)
    arena.produce(keyed=False, dsn=through)
    arena.progress()
    kill_some(arena)
    log = (arena.postgres.folder / "server.log").read_text()
    if "prepared statement" in log:
        arena.violate("R1", "a statement that was prepared met another server process")
    # Those of transactions come and go; one that has stayed behind is there whenever somebody looks.
    kept = "select 1 from pg_locks where locktype = 'advisory'"
    try:
        arena.until(lambda: arena.postgres.execute(kept) == [], "no advisory lock is held")
    except TimeoutError:
        arena.violate("R1", "advisory locks have stayed behind on connections of the pooler")
