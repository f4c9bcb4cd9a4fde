"""Faults of what else is done to the tables: scans that overlap, writers in numbers, a backlog that is kept clean
meanwhile (F17, F18, F38)."""

from __future__ import annotations

import itertools
import os
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.faults import leftovers
from tests.faults.arena import Arena
from tests.faults.ledgers import ACKED, UNKNOWN, LineFile

MEGABYTE: Final = 1 << 20


class Repeated(threading.Thread):
    """Does something again and again beside a fault, until it is stopped. `rounds` counts."""

    def __init__(self, step: Callable[[], object], pause_seconds: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.rounds = 0
        self._step = step
        self._pause_seconds = pause_seconds
        self._halt = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._halt.is_set():
                self._step()
                self.rounds += 1
                self._halt.wait(self._pause_seconds)
        except BaseException as error:
            self._failure = error

    def stop(self) -> None:
        """Let the round under way come to its end; raises what went wrong here."""
        self._halt.set()
        self.join(120)
        if self._failure is not None:
            raise self._failure
        if self.is_alive():
            raise RuntimeError("what is done beside the fault does not end")


@contextmanager
def beside(*threads: Repeated) -> Generator[None]:
    """Do these things while the block lasts."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.stop()


# -- what the tables are like ------------------------------------------------------------------------------------------

_TABLES: Final = """
select (select sum(n_dead_tup) from pg_stat_user_tables where schemaname = 'queue_pg' and relname = 'jobs')::bigint,
  (select pg_total_relation_size('queue_pg.jobs')),
  coalesce(sum(f.calls), 0)::bigint, coalesce(sum(f.total_time), 0)::float8, array(select name from queue_pg.partitions)
from pg_stat_user_functions f where f.schemaname = 'queue_pg' and f.funcname = 'claim'
"""


@dataclass(slots=True)
class Gauge:
    """Looks at the live table now and then."""

    dsn: str
    dead: list[int] = field(default_factory=list[int])
    bytes: list[int] = field(default_factory=list[int])
    claim_ms: list[float] = field(default_factory=list[float])
    partitions: set[str] = field(default_factory=set[str])
    gone: set[str] = field(default_factory=set[str])
    _claims: tuple[int, float] = (0, 0.0)

    def look(self) -> None:
        """Add a sample."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            [dead, size, calls, milliseconds, partitions] = connection.execute(_TABLES).fetchone() or []
        self.dead.append(dead or 0)
        self.bytes.append(size)
        before, spent = self._claims
        if calls > before:
            self.claim_ms.append((milliseconds - spent) / (calls - before))
        self._claims = (calls, milliseconds)
        self.gone |= self.partitions - set(partitions)
        self.partitions |= set(partitions)

    def tell(self, arena: Arena) -> None:
        """Add the figures."""
        arena.figures["dead_rows_max"] = max(self.dead)
        arena.figures["megabytes_max"] = round(max(self.bytes) / MEGABYTE, 1)
        third = max(1, len(self.claim_ms) // 3)
        if self.claim_ms:
            arena.figures["claim_ms_first"] = round(statistics.median(self.claim_ms[:third]), 2)
            arena.figures["claim_ms_last"] = round(statistics.median(self.claim_ms[-third:]), 2)


def _rate(arena: Arena, jobs: int) -> float:
    begin, before = time.monotonic(), arena.done()
    arena.progress(jobs)
    return round((arena.done() - before) / (time.monotonic() - begin), 1)


# -- F17 ---------------------------------------------------------------------------------------------------------------

_SCANS: Final = (
    "select count(*), sum(octet_length(payload::text)) from queue_pg.jobs",
    "select state, count(*), max(finished_at - created_at) from queue_pg.finished_jobs group by state",
    "select job, count(*) from faults.edges group by job order by 2 desc limit 10",
)
# One statement that reads for as long as all of them take otherwise.
_LONG_SCAN: Final = (
    "select count(*), sum(octet_length(j.payload::text)) from pg_sleep(%s), (select payload from queue_pg.jobs"
    " union all select payload from queue_pg.finished_jobs) j"
)
_HELD: Final = """
select extract(epoch from clock_timestamp() - min(coalesce(xact_start, query_start)))::float8 from pg_stat_activity
where application_name = 'analytics' and backend_xmin is not null
"""


@dataclass(slots=True)
class _Baton:
    """Whoever ends a scan knows that another one has begun after it, so that some snapshot is always held."""

    condition: threading.Condition = field(default_factory=threading.Condition)
    holding: int = 0
    ending: bool = False

    def begin(self) -> None:
        with self.condition:
            self.holding += 1
            self.condition.notify_all()

    def end(self) -> None:
        with self.condition:
            self.condition.wait_for(lambda: self.holding > 1 or self.ending)
            self.holding -= 1


@dataclass(slots=True)
class _Analyst:
    dsn: str
    seconds: float
    long: bool
    baton: _Baton

    def scan(self) -> None:
        """Read everything in one snapshot, for so many seconds."""
        with psycopg.connect(self.dsn, application_name="analytics") as connection:
            connection.execute("set transaction isolation level repeatable read")
            connection.execute("select count(*) from queue_pg.jobs")
            self.baton.begin()
            if self.long:
                connection.execute(_LONG_SCAN.encode(), (self.seconds,))
            until = time.monotonic() + self.seconds
            while not self.long and time.monotonic() < until:
                for scan in _SCANS:
                    connection.execute(scan.encode())
                time.sleep(0.05)
            self.baton.end()


def overlap_scans(arena: Arena) -> None:
    """F17: three scans of everything overlap such that dead rows are always held in place."""
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.progress()
    arena.figures["jobs_per_second_before"] = _rate(arena, arena.size.hits // 4)
    seconds = 1.0 if arena.size.hits < 10_000 else 60.0
    baton = _Baton()
    scans = [
        Repeated(_Analyst(arena.postgres.dsn, seconds * share, share == 1.0, baton).scan) for share in (0.7, 0.85, 1.0)
    ]
    gauge = Gauge(arena.postgres.dsn)
    ages: list[float | None] = []

    def look() -> None:
        gauge.look()
        ages.extend(age for [age] in arena.postgres.execute(_HELD))

    with beside(*scans):
        try:
            arena.until(lambda: baton.holding == len(scans), "three scans overlap")
            with beside(Repeated(look, 0.1)):
                arena.figures["jobs_per_second"] = _rate(arena, arena.size.hits)
                arena.until(lambda: min(scan.rounds for scan in scans) > 1, "scans follow each other")
        finally:
            with baton.condition:
                baton.ending = True
                baton.condition.notify_all()
    arena.hits["scans"] = sum(scan.rounds for scan in scans)
    arena.hits["looks at held snapshots"] = sum(age is not None for age in ages)
    if None in ages:
        arena.violate("coverage", f"{ages.count(None)} of {len(ages)} times no snapshot was held")
    gauge.tell(arena)
    arena.progress()


# -- F18 ---------------------------------------------------------------------------------------------------------------

# The i-th job of each client has a number that nobody else gives.
_SCRIPT: Final = """
\\set i :i + 1
insert into queue_pg.jobs (kind, payload)
values ('work', jsonb_build_object('n', :base::bigint + :client_id * 1000000 + :i, 'seconds', 0));
"""
_LONGEST_RUN_SECONDS: Final = 900.0
_STALL_SECONDS: Final = 20.0
_TPS: Final = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


def write_at_once(arena: Arena) -> None:
    """F18: up to 64 clients insert as fast as they can: with notifications, without, and while workers only poll."""
    script = arena.folder / "insert.sql"
    script.write_text(_SCRIPT)
    writers = (1, 2, 4, 8, 16, 32, 64) if arena.size.hits >= 10_000 else (1, 64)
    bases = itertools.count(1)
    for mode in ("on", "off", "polling"):
        arena.postgres.execute("select queue_pg.configure(notify => %s)", (mode != "off",))
        if mode == "polling":
            if set(codes := arena.fleet.stop()) != {0}:
                arena.violate("L2", f"workers ended with {codes}")
            arena.fleet.environment = {**arena.fleet.environment, "QUEUE_PG_NOTIFY": "off"}
        arena.fleet.fill()
        arena.until(lambda: all(worker.serves for worker in arena.fleet.workers), "workers work")
        for clients in writers:
            before = arena.done()
            each = max(1, arena.size.hits // clients)
            made = _write(arena, script, next(bases) * 1_000_000_000, clients, each, f"{mode}_{clients}")
            arena.until(partial(_are_done, arena, before + made), "all that was written is done", seconds=600)
            arena.hits[f"jobs by {clients} writers, {mode}"] = made


def _are_done(arena: Arena, jobs: int) -> bool:
    return arena.done() >= jobs


def _write(arena: Arena, script: Path, base: int, clients: int, each: int, name: str) -> int:
    numbers = [base + client * 1_000_000 + i for client in range(clients) for i in range(1, each + 1)]
    ledger = LineFile(arena.folder / f"submissions-{base}.jsonl", durable=True)
    # Who is cut off has left all of them unknown.
    ledger.write_all((number, UNKNOWN, None) for number in numbers)
    log = arena.folder / f"pgbench-{name}"
    command = [
        arena.postgres.program("pgbench"), "--no-vacuum", "--client", str(clients), "--transactions", str(each),
        "--file", str(script), "--define", "i=0", "--define", f"base={base}", "--protocol", "prepared",
        "--log", "--log-prefix", str(log), arena.postgres.dsn,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_LONGEST_RUN_SECONDS, check=False, env=_environment()
    )
    if done.returncode != 0:
        arena.violate("S2", f"{name}: pgbench ended with {done.returncode}: {done.stderr[-500:]}")
        return 0
    ledger.write_all((number, ACKED, None) for number in numbers)
    if (tps := _TPS.search(done.stdout)) is not None:
        arena.figures[f"commits_per_second_{name}"] = round(float(tps[1]))
    longest = _longest_commit(log)
    arena.figures[f"longest_commit_ms_{name}"] = round(longest * 1_000)
    if longest > _STALL_SECONDS:
        arena.violate("L3", f"{name}: a commit took {longest:.1f} s")
    return len(numbers)


def _environment() -> dict[str, str]:
    # None of the caller's PG* variables.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **leftovers.handed_on()}


def _longest_commit(prefix: Path) -> float:
    """Return how many seconds the longest transaction took. A line: client, number, microseconds, ..."""
    longest = 0
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        for line in path.read_text().splitlines():
            longest = max(longest, int(line.split()[2]))
    return longest / 1e6


# -- F38 ---------------------------------------------------------------------------------------------------------------

_CHUNK: Final = 10_000
_LOAD: Final = """
insert into queue_pg.jobs (kind, payload)
select 'work', jsonb_build_object('n', n, 'seconds', 0) from unnest(%s::bigint[]) n
returning (payload ->> 'n')::bigint, id::text
"""
# Forgotten after seconds, in partitions that are made and dropped all the time.
_BRIEF: Final = (
    "insert into queue_pg.jobs (kind, queue, payload) select 'tick', 'brief', '{}' from generate_series(1, 20)"
)
_SOAK_RATE: Final = 20.0
_SOAK_LOOK_SECONDS: Final = 10.0


def drain_backlog(arena: Arena) -> None:
    """F38: a backlog is worked off while history is forgotten and the tables are vacuumed; then, for hours, a soak."""
    dsn = arena.postgres.dsn
    arena.forgets = True
    arena.postgres.execute("insert into queue_pg.queues (queue, retention) values ('brief', '2 seconds')")
    _load(arena)
    gauge = Gauge(dsn)
    gauge.look()
    loaded = gauge.bytes[0]
    with psycopg.connect(dsn, autocommit=True) as hand, psycopg.connect(dsn, autocommit=True) as broom:

        def clean() -> None:
            broom.execute("vacuum queue_pg.jobs")
            broom.execute("vacuum (analyze) queue_pg.finished_jobs")

        vacuum, sower = Repeated(clean, 0.5), Repeated(lambda: hand.execute(_BRIEF), 0.2)
        with beside(vacuum, sower, Repeated(gauge.look, 0.5)):
            arena.fleet.environment = {**arena.fleet.environment, "QUEUES": "default,brief"}
            arena.fleet.size = 3
            arena.fleet.fill()
            begin = time.monotonic()
            arena.until(lambda: arena.done() >= arena.size.hits, "the backlog is worked off", seconds=4 * 3_600)
            arena.figures["jobs_per_second"] = round(arena.done() / (time.monotonic() - begin), 1)
            arena.until(lambda: len(gauge.gone) > 1, "partitions are dropped")
            if arena.size.hours:
                _soak(arena, gauge)
    arena.hits["vacuums"], arena.hits["partitions dropped"] = vacuum.rounds, len(gauge.gone)
    gauge.tell(arena)
    # R1: what autovacuum and ours leave at most (queue_pg/vacuum.py), and no more room than thrice the backlog's.
    if max(gauge.dead) > 200_000 + arena.size.hits:
        arena.violate("R1", f"there were {max(gauge.dead)} dead rows")
    if max(gauge.bytes) > 3 * loaded + 64 * MEGABYTE:
        arena.violate("R1", f"the live table had {max(gauge.bytes)} bytes, {loaded} with the whole backlog")


def _load(arena: Arena) -> None:
    ledger = LineFile(arena.folder / "submissions-backlog.jsonl", durable=True)
    with psycopg.connect(arena.postgres.dsn, autocommit=True) as connection:
        for start in range(0, arena.size.hits, _CHUNK):
            numbers = list(itertools.islice(arena.numbers, min(_CHUNK, arena.size.hits - start)))
            rows: Sequence[tuple[Any, ...]] = connection.execute(_LOAD.encode(), (numbers,)).fetchall()
            ledger.write_all((number, ACKED, job) for number, job in rows)
        connection.execute("analyze queue_pg.jobs")
    arena.hits["jobs of the backlog"] = arena.size.hits


def _soak(arena: Arena, gauge: Gauge) -> None:
    """Go on at leisure for hours. In their second half nothing may need much more than in the first."""
    arena.produce(keyed=True, rate=_SOAK_RATE)
    until = time.monotonic() + arena.size.hours * 3_600
    memory: list[int] = []
    begin = len(gauge.bytes)
    while time.monotonic() < until:
        memory.append(sum(_resident(worker.pid) for worker in arena.fleet.workers))
        time.sleep(_SOAK_LOOK_SECONDS)
    arena.hits["looks of the soak"] = len(memory)
    for name, samples, room in (
        ("bytes of memory of the workers", memory, 50 * MEGABYTE),
        ("bytes of the live table", gauge.bytes[begin:], 20 * MEGABYTE),
        ("dead rows", gauge.dead[begin:], 50_000),
    ):
        half = len(samples) // 2
        arena.figures[f"soak: {name}, most"] = max(samples)
        first, second = max(samples[:half], default=0), max(samples[half:])
        if second > 1.5 * first + room:
            arena.violate("R1", f"{name}: {first} at most in the first half, {second} in the second")


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
