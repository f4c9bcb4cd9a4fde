"""One run: a server, workers and applications of its own; faults, then peace, then the account."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from benchmarks.results import commit
from queue_pg.schema import migrate
from tests.faults import ledgers, leftovers, logs, mixture
from tests.faults.checker import Expectation, Violation
from tests.faults.client import ClientProcess
from tests.faults.fleet import LEASE_SECONDS, Fleet, Worker
from tests.faults.ledgers import Evidence
from tests.faults.lines import Line, Weather
from tests.faults.mixture import Mixer
from tests.faults.parts import read_parts
from tests.faults.postgres import Postgres
from tests.faults.producers import HttpProducer, Producer
from tests.faults.record import Record
from tests.faults.recovery import (
    AFTER_SECONDS,
    CALM_SECONDS,
    MANY,
    MOST_MEASURED,
    Outage,
    back_after,
    broken_back,
    broken_reclaims,
    percentile,
    reclaims,
)
from tests.faults.releases import Release
from tests.faults.service import Service

HEAL_SECONDS: Final = 60.0
# For what has been killed to be gone.
GONE_SECONDS: Final = 10.0
# Of each job that shows whether all workers work.
RUSH_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Size:
    """How much of a fault: `hits` disturbances, and jobs for as long as it lasts at `rate` a second and producer."""

    hits: int
    rate: float = 80.0
    workers: int = 3
    concurrency: int = 8
    job_seconds: float = 0.02
    # Of a soak after the fault, where there is one.
    hours: float = 0.0


@dataclass(slots=True)
class Arena:
    """What a fault is given to work with."""

    folder: Path
    size: Size
    random: random.Random
    postgres: Postgres
    # Those of the server, for one that follows it.
    settings: Mapping[str, str]
    fleet: Fleet
    numbers: itertools.count[int]
    hits: Counter[str] = field(default_factory=Counter[str])
    figures: dict[str, float] = field(default_factory=dict[str, float])
    violations: list[Violation] = field(default_factory=list[Violation])
    producers: list[Producer | ClientProcess] = field(default_factory=list[Producer | ClientProcess])
    services: list[Service] = field(default_factory=list[Service])
    recoveries: list[float] = field(default_factory=list[float])
    # None: any worker may lose leases. Else only those that the fleet has disturbed.
    blames: bool = False
    # Workers whose line stays dead.
    cut_off: set[str] = field(default_factory=set[str])
    may_remain: Sequence[str] = ()
    # The kinds of jobs that may fail or be cancelled, and those that others do than our handlers. None: all.
    may_fail: Sequence[str] | None = ()
    unwitnessed: Sequence[str] | None = ()
    # Whether jobs that have ended may be gone, when no application has an acknowledgement of them.
    forgets: bool = False
    forsaken: set[str] = field(default_factory=set[str])
    # Those with calm before and after them, and the workers that were killed in calm.
    outages: list[Outage] = field(default_factory=list[Outage])
    calmly_killed: set[str] = field(default_factory=set[str])
    # Whether workers may end without being told to.
    may_die: bool = False
    # What has to outlive the fault, until the run has been taken stock of: lines, poolers, services.
    stack: ExitStack = field(default_factory=ExitStack)
    caps: dict[str, tuple[Collection[int], int]] = field(default_factory=dict[str, tuple[Collection[int], int]])

    # How far each file of effects has been read, and how many ends were in it.
    _ended: dict[Path, tuple[int, int]] = field(default_factory=dict[Path, tuple[int, int]])

    def produce(self, *, keyed: bool, dsn: str | None = None, **options: Any) -> Producer:
        """Start an application that submits until peace comes."""
        options.setdefault("payload", {"seconds": self.size.job_seconds})
        options.setdefault("rate", self.size.rate)
        producer = Producer(dsn or self.postgres.dsn, self.folder, self.numbers, keyed=keyed, **options)
        producer.start()
        self.producers.append(producer)
        return producer

    def line(self, weather: Weather | None = None, *, host: str = "127.0.0.1") -> Line:
        """Make a line to the server that lasts until the end."""
        line = Line(self.postgres.port, random.Random(self.random.random()), weather, host=host)
        self.stack.callback(line.close)
        return line

    def through(self, line: Line) -> str:
        """Return the server's address by way of a line."""
        return make_conninfo(self.postgres.dsn, host=line.host, port=line.port)

    def mix(self, dsn: str | None = None) -> Mixer:
        """Start an application that uses every part of the queue, until peace comes."""
        self.postgres.execute("select queue_pg.set_limit('key', %s, max_running => %s)", (mixture.LIMIT, mixture.MOST))
        # What commands write themselves is held against P7.
        if self.unwitnessed is not None:
            self.unwitnessed = [*self.unwitnessed, "command"]
        mixer = Mixer(dsn or self.postgres.dsn, self.folder, self.numbers, rate=self.size.rate / 2)
        self.caps[mixture.LIMIT] = (mixer.limited, mixture.MOST)
        mixer.start()
        self.producers.append(mixer)
        return mixer

    def serve(self, dsn: str | None = None) -> Service:
        """Start an API process that lasts until the end."""
        service = Service(dsn or self.postgres.dsn, self.folder, len(self.services))
        self.services.append(service)
        self.stack.callback(service.close)
        service.start()
        return service

    def produce_over_http(self, service: Service, *, rate: float | None = None, **payload: Any) -> HttpProducer:
        """Start a client of the API that submits until peace comes, with this in the payloads besides."""
        producer = HttpProducer(
            service.url, self.folder, self.numbers, keyed=True, rate=rate or self.size.rate,
            payload={"seconds": self.size.job_seconds, **payload},
        )  # fmt: skip
        producer.start()
        self.producers.append(producer)
        return producer

    def produce_on(self, release: Release, form: str) -> ClientProcess:
        """Start an application on the code of another release, that submits until peace comes; see client.py."""
        client = ClientProcess(
            release, self.postgres.dsn, self.folder, form=form, rate=self.size.rate, seconds=self.size.job_seconds,
            # Numbers that nobody else gets to.
            first=1_000_000_000 * (1 + len(self.producers)),
        )  # fmt: skip
        self.producers.append(client)
        self.stack.callback(client.close)
        return client

    def acked(self) -> int:
        """Return how many submissions have been acknowledged so far."""
        return sum(producer.acked for producer in self.producers)

    def until(self, condition: Callable[[], Any], what: str, *, seconds: float = 60.0) -> None:
        """Wait for something that other processes do. Raises TimeoutError, which fails the run."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"never happened: {what}")
            for producer in self.producers:
                if producer.failure is not None:
                    raise producer.failure
            time.sleep(0.01)

    def progress(self, jobs: int = 10) -> None:
        """Wait until so many more jobs have been done. Until the first ten are it is a recovery; a hundred take a
        minute at most."""
        begin, start = time.monotonic(), self.done()
        self._until_done(start + min(jobs, 10))
        self.recoveries.append(time.monotonic() - begin)
        for more in range(10, jobs, 100):
            self._until_done(start + min(more + 100, jobs))

    def _until_done(self, jobs: int) -> None:
        self.until(lambda: self.done() >= jobs, f"{jobs} jobs are done")

    def is_measured(self, hit: int) -> bool:
        """Whether there is time for calm around this hit, the first of which is 0; around 20 at most."""
        return self.size.hits >= MANY and hit % max(MANY, self.size.hits // MOST_MEASURED) == 0

    @contextmanager
    def outage(self, *, measured: bool) -> Generator[None]:
        """Note how long the server is away in the block, with calm around it if it is measured."""
        if measured:
            # What has gathered is done faster than it is submitted.
            queued = "select 1 from queue_pg.jobs where state = 'queued' limit 10"
            self.until(lambda: len(self.postgres.execute(queued)) < 10, "all that had gathered has begun")
        calm_ns = time.monotonic_ns()
        if measured:
            time.sleep(CALM_SECONDS)
        down_ns = time.monotonic_ns()
        yield
        up_ns = time.monotonic_ns()
        if measured:
            time.sleep(AFTER_SECONDS)
            self.outages.append(Outage(calm_ns, down_ns, up_ns, time.monotonic_ns()))

    def done(self) -> int:
        """Return how many jobs have ended, as the ledger of the handlers knows; the server may be away."""
        for path in self.folder.glob("effects-*.jsonl"):
            read, found = self._ended.get(path, (0, 0))
            with path.open("rb") as file:
                file.seek(read)
                new = file.read()
            # Whole lines only.
            new = new[: new.rfind(b"\n") + 1]
            self._ended[path] = (read + len(new), found + new.count(b'["end"'))
        return sum(found for _, found in self._ended.values())

    def done_by(self, worker: Worker) -> int:
        """Return how many jobs this worker has ended."""
        path = self.folder / f"effects-{worker.pid}.jsonl"
        return path.read_bytes().count(b'["end"') if path.exists() else 0

    def violate(self, invariant: str, text: str, job: str = "-") -> None:
        """Note a broken promise that the ledgers do not show."""
        self.violations.append(Violation(invariant, job, text))


def _make_schema(folder: Path, dsn: str) -> None:
    del folder
    migrate(dsn)


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of the plan. `disturb` does its worst with an arena and returns when it has had its hits."""

    name: str
    title: str
    disturb: Callable[[Arena], None]
    short: Size
    full: Size
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    # Why it cannot be made on this machine; None: it can.
    obstacle: Callable[[], str | None] = lambda: None
    # Makes the schema in an empty database; it may leave things in the folder of the run.
    prepare: Callable[[Path, str], None] = _make_schema
    # Figures that a whole run has more than none of, or it has missed what it is about.
    shows: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run came to. `seconds` is how long it took."""

    fault: str
    seed: int
    seconds: float
    hits: Mapping[str, int]
    figures: Mapping[str, float]
    violations: Sequence[str]
    # Of the project, and the version of PostgreSQL.
    commit: str
    server: str

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def run(fault: Fault, *, seed: int, folder: Path, size: Size) -> Verdict:
    """Run one fault in `folder`, which keeps the ledgers and the logs."""
    folder.mkdir(parents=True)
    mark = leftovers.mark()
    begin = time.monotonic()
    postgres = Postgres(folder / "postgres", fault.settings)
    postgres.start()
    violations: list[Violation] = []
    try:
        fault.prepare(folder, postgres.dsn)
        ledgers.install(postgres.dsn)
        fleet = Fleet(postgres.dsn, folder, size.workers, {"WORKER_CONCURRENCY": str(size.concurrency)})
        arena = Arena(folder, size, random.Random(seed), postgres, fault.settings, fleet, itertools.count(1))
        with arena.stack:
            arena.stack.enter_context(fleet)
            try:
                fault.disturb(arena)
            finally:
                for producer in arena.producers:
                    producer.stop()
            if not leftovers.processes(mark, postgres.data):
                arena.violate("coverage", "the processes of the run are not seen")
            _heal(arena)
            evidence = ledgers.read_evidence(folder, arena.postgres.dsn)
            with psycopg.connect(arena.postgres.dsn, autocommit=True) as connection:
                parts = read_parts(folder, connection)
        postgres.stop()
        left = _left_behind(mark, postgres.data)
        if left:
            arena.violate("L1", f"processes are left behind: {left}")
        expectation = Expectation(
            excused=fleet.disturbed if arena.blames else None,
            may_remain=arena.may_remain,
            caps=arena.caps,
            dead_at_ns=fleet.dead_at_ns,
            may_fail=arena.may_fail,
            unwitnessed=arena.unwitnessed,
            forgets=arena.forgets,
            forsaken=arena.forsaken,
        )
        Record(evidence, expectation, parts).keep(folder)
        # What is judged is what everybody can read.
        record = Record.load(folder)
        account = record.account()
        busiest = logs.busiest(folder)
        if busiest.lines > logs.MOST_LINES:
            arena.violate(
                "R1", f"{busiest.process} wrote {busiest.lines} lines about no job in the second {busiest.second}"
            )
        times = _times(arena, record.evidence)
        violations = [*arena.violations, *account.violations, *_coverage(arena)]
        if size.hits >= fault.full.hits:
            missed = [name for name in fault.shows if not account.figures.get(name)]
            violations += [Violation("coverage", "-", f"never happened: {name}") for name in missed]
        if deadlocks := logs.deadlocks(folder):
            violations.append(Violation("R1", "-", f"{deadlocks} deadlocks; the server's log tells of whom"))
        recoveries = arena.recoveries or [0.0]
        figures: dict[str, float] = {
            **account.figures,
            **arena.figures,
            **times,
            "recovery_p50_s": round(statistics.median(recoveries), 3),
            "recovery_p99_s": round(percentile(recoveries, 0.99), 3),
            "recovery_max_s": round(max(recoveries), 3),
            "shutdown_max_s": round(max((seconds for _, seconds in fleet.ends), default=0.0), 3),
            "log_lines_per_s_max": busiest.lines,
            "processes_left": len(left),
        }
        verdict = Verdict(
            fault.name,
            seed,
            round(time.monotonic() - begin, 1),
            dict(arena.hits),
            figures,
            [str(one) for one in violations],
            commit(),
            postgres.version,
        )
    finally:
        postgres.stop()
        # The ledgers remain; 100 MB of server do not.
        shutil.rmtree(postgres.data, ignore_errors=True)
    (folder / "verdict.json").write_text(verdict.as_json())
    return verdict


def _heal(arena: Arena) -> None:
    """Peace: the server is there, as many workers as there should be, and time for every job to end."""
    arena.postgres.start()
    arena.fleet.fill()
    if arena.fleet.strays and not arena.may_die:
        arena.violate("L2", f"workers ended by themselves: {arena.fleet.strays}")
    try:
        arena.until(lambda: _live(arena) == 0, "every job has ended", seconds=HEAL_SECONDS)
        _rush(arena)
    except TimeoutError as error:
        arena.violate("L1", str(error))
    codes = [*arena.fleet.stop(), *(service.stop() for service in arena.services)]
    if set(codes) != {0}:
        arena.violate("L2", f"workers and services ended with {codes}")


def _rush(arena: Arena) -> None:
    """See that every worker works again: each has some of the jobs, when there are more than the others can do."""
    workers = [worker for worker in arena.fleet.workers if worker.id not in arena.cut_off]
    arena.until(lambda: all(worker.serves for worker in workers), "all workers serve")
    before = {worker.id: arena.done_by(worker) for worker in workers}
    rush = arena.produce(keyed=True, rate=1_000.0, payload={"seconds": RUSH_SECONDS})
    try:
        arena.until(
            lambda: all(arena.done_by(worker) > before[worker.id] for worker in workers),
            "every worker works",
            seconds=HEAL_SECONDS,
        )
    finally:
        rush.stop()
    arena.until(lambda: _live(arena) == 0, "every job of the rush has ended", seconds=HEAL_SECONDS)


def _times(arena: Arena, evidence: Evidence) -> dict[str, float]:
    """How soon work went on, and whether that is as promised where there was time to see it."""
    figures: dict[str, float] = {}
    found = reclaims(evidence.edges, arena.fleet.dead_at)
    if everything := [seconds for own in found.values() for seconds in own]:
        figures["reclaimed"] = len(everything)
        figures["reclaim_p50_s"] = round(statistics.median(everything), 3)
        figures["reclaim_p99_s"] = round(percentile(everything, 0.99), 3)
        if arena.size.hits >= MANY and (text := broken_reclaims(everything, LEASE_SECONDS)) is not None:
            arena.violate("L2", text)
    if calm := [seconds for worker in arena.calmly_killed for seconds in found.get(worker, ())]:
        figures["reclaim_in_calm_max_s"] = round(max(calm), 3)
        if (text := broken_reclaims(calm, LEASE_SECONDS)) is not None:
            arena.violate("L2", f"in calm, {text}")
    if back := list(back_after(evidence.runs, arena.outages)):
        # Never is as long as there was to see it: JSON knows no infinity.
        seen = [min(seconds, AFTER_SECONDS) for seconds in back]
        figures["back_p50_s"], figures["back_max_s"] = round(statistics.median(seen), 1), round(max(seen), 1)
        if (text := broken_back(back)) is not None:
            arena.violate("L2", text)
    for worker, seconds in arena.fleet.ends:
        if seconds > worker.grace_seconds:
            arena.violate("L1", f"{worker.id}, with a grace of {worker.grace_seconds:g} s, took {seconds:.1f} s to end")
    return figures


def _left_behind(mark: str, cluster: Path) -> list[int]:
    """Return the processes that have outlived their run."""
    deadline = time.monotonic() + GONE_SECONDS
    while (left := leftovers.processes(mark, cluster)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _live(arena: Arena) -> int | None:
    with suppress(psycopg.OperationalError), psycopg.connect(arena.postgres.dsn, autocommit=True) as connection:
        [count] = connection.execute(
            "select (select count(*) from queue_pg.jobs where state::text <> all (%s))"
            " + (select count(*) from queue_pg.batches where state = 'closed')",
            (list(arena.may_remain),),
        ).fetchone() or [None]
        return count
    return None


def _coverage(arena: Arena) -> list[Violation]:
    """A run that has hit nothing proves nothing."""
    if not arena.hits:
        return [Violation("coverage", "-", "nothing was disturbed")]
    missed = [name for name, count in arena.hits.items() if count == 0]
    return [Violation("coverage", "-", f"never happened: {name}") for name in missed]
