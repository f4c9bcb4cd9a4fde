"""One run: workers and applications in one thread, faults by a seed, then peace, then the account."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.worker import Worker

from queue_pg.client import Queue
from tests.faults.checker import Expectation, Violation, check
from tests.faults.ledgers import Evidence
from tests.faults.parts import find_broken
from tests.simulation.applications import LIMIT, MOST, Application
from tests.simulation.backends import EPOCH_SECONDS
from tests.simulation.database import Database
from tests.simulation.handlers import Ledgers, make_handlers
from tests.simulation.network import Network, Weather
from tests.simulation.promises import Facts, Probe, find_broken_promises
from tests.simulation.scheduler import Process, Scheduler, Stuck
from tests.simulation.surroundings import Simulated

DSN: Final = "postgresql://simulated/simulated"
# How soon a job begins in peace, with free slots: by a notification, and by looking now and then.
NOTICED_SECONDS: Final = 0.2
POLLED_SECONDS: Final = 1.5
GRACE_SECONDS: Final = 5.0
# After the faults: until every job has ended, and then for workers to end.
HEAL_SECONDS: Final = 120.0
STOP_SECONDS: Final = GRACE_SECONDS + 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. `trace` is the same for the same seed."""

    seed: int
    violations: Sequence[str]
    trace: Sequence[str]
    hits: Mapping[str, int]
    figures: Mapping[str, float]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


class _NeverError(Exception):
    """What had to happen has not."""


@dataclass(slots=True)
class _Fellow:
    """A worker process."""

    process: Process
    worker: Worker | None = None
    told_to_stop: bool = False
    ended: bool = False
    failure: BaseException | None = None

    @property
    def lives(self) -> bool:
        return not self.process.crashed and not self.ended


@dataclass(slots=True)
class _Node:
    """A place for a worker process, and who is there; None while the next one is on its way."""

    name: str
    fellow: _Fellow | None = None
    generations: itertools.count[int] = field(default_factory=itertools.count)


class Simulation:
    """All that a seed makes up."""

    def __init__(self, database: Database, seed: int) -> None:
        self.database = database
        self.seed = seed
        self.scheduler = Scheduler(seed)
        self.chance = self.scheduler.random
        self.ledgers = Ledgers()
        chance = self.chance
        # Some runs are mostly quiet, some are a storm.
        odds = chance.choice((0, 200, 60, 20))
        self.weather = Weather(
            slow=chance.choice((0, 50, 10)),
            **{
                name: odds and round(odds * chance.uniform(1, 4))
                for name in ("swallowed", "unanswered", "terminated", "refused", "unheard")
            },
            silent=odds and round(odds * chance.uniform(3, 12)),
        )
        self.network = Network(self.scheduler, database.backends, self.weather)
        self.lease_seconds = chance.choice((1.5, 3.0, 6.0))
        self.concurrency = chance.randint(1, 5)
        self.notify = chance.random() < 0.8
        self.nodes = [_Node(f"w{index}") for index in range(chance.randint(1, 4))]
        self.processes: list[Process] = []
        self.fellows: list[_Fellow] = []
        self.dead_at_ns: dict[int, int] = {}
        self.beats_in_peace: defaultdict[str, set[float]] = defaultdict(set)
        self.apps = 0
        self.peace_at = self.scheduler.now + chance.uniform(5.0, 20.0)
        self.violations: list[Violation] = []
        # The applications that are not done yet.
        self.busy: set[str] = set()
        self.probes: list[Probe] = []
        # Between two harms.
        self.pause_seconds = chance.choice((0.7, 2.0, 5.0, 1e9))

    # --- processes ----------------------------------------------------------------------------------------------------

    def _process(self, name: str) -> Process:
        process = Process(self.scheduler, name, len(self.processes))
        self.processes.append(process)
        return process

    def start_worker(self, node: _Node) -> None:
        """Start a worker process, the next one of its node."""
        name = f"{node.name}.{next(node.generations)}"
        process = self._process(name)
        surroundings = Simulated(process, self.network)
        fellow = node.fellow = _Fellow(process)
        self.fellows.append(fellow)
        config = WorkerConfig(
            dsn=DSN,
            worker_id=name,
            concurrency=self.concurrency,
            grace_seconds=GRACE_SECONDS,
            lease_seconds=self.lease_seconds,
            notify=self.notify,
        )

        async def work() -> None:
            worker = Worker(config, make_handlers(self.ledgers, process, surroundings), surroundings=surroundings)
            fellow.worker = worker
            try:
                await worker.run()
            except Exception as error:
                fellow.failure = error
            fellow.ended = True
            self.scheduler.tell(name, "has ended")

        process.start(work(), "worker")
        self.scheduler.tell(name, "starts")

    def crash(self, process: Process) -> None:
        """Kill a process: nothing of it goes on, and what it had sent may still arrive."""
        self.scheduler.tell(process.name, "is killed")
        self.network.hits["killed"] += 1
        self.dead_at_ns[process.number] = round(self.scheduler.now * 1e9)
        process.crash()
        for line in self.network.lines_of(process):
            line.close()

    # --- applications -------------------------------------------------------------------------------------------------

    def start_application(self, jobs: int) -> None:
        """Start an application that submits so many jobs in all ways there are."""
        process = self._process(f"app{self.apps}")
        self.apps += 1
        surroundings = Simulated(process, self.network)

        async def submit() -> None:
            queue = Queue(
                DSN,
                notify=self.notify,
                max_connections=3,
                surroundings=surroundings,
            )
            await queue.open()
            await self._application(queue).submit(jobs)
            self.scheduler.tell(process.name, "is done")

        self._begin(process, submit())

    def _application(self, queue: Queue) -> Application:
        return Application(queue, chance=self.chance, ledgers=self.ledgers, lease_seconds=self.lease_seconds)

    def _begin(self, process: Process, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start an application, whose errors are ours."""
        self.busy.add(process.name)

        def over(task: asyncio.Task[Any]) -> None:
            self.busy.discard(process.name)
            if not task.cancelled() and task.exception() is not None:
                self.scheduler.failure = task.exception()

        process.start(coroutine, "application").add_done_callback(over)

    # --- faults -------------------------------------------------------------------------------------------------------

    def disturb(self) -> None:
        """Do one harm, and come back for the next until peace."""
        scheduler, chance = self.scheduler, self.chance
        if scheduler.now >= self.peace_at:
            return
        harm = chance.choice((self._kill, self._freeze, self._cut, self._outage, self._stop, self._terminate))
        harm()
        scheduler.call_in(chance.expovariate(1 / self.pause_seconds), self.disturb)

    def _any(self) -> _Node:
        return self.chance.choice(self.nodes)

    def _kill(self) -> None:
        node = self._any()
        if node.fellow is not None and node.fellow.lives:
            self.crash(node.fellow.process)
            node.fellow = None
            self.scheduler.call_in(self.chance.uniform(0.0, 4.0), lambda: self.start_worker(node))

    def _freeze(self) -> None:
        fellow = self._any().fellow
        if fellow is not None and not (process := fellow.process).frozen:
            self.scheduler.tell(process.name, "is frozen")
            self.network.hits["frozen"] += 1
            process.frozen = True
            seconds = self.chance.uniform(0.1, 3.0) * self.lease_seconds
            self.ledgers.stuck.append((process.number, self.scheduler.now, self.scheduler.now + seconds))
            self.scheduler.call_in(seconds, process.thaw)

    def _cut(self) -> None:
        if (fellow := self._any().fellow) is not None:
            process = fellow.process
            self.scheduler.tell(process.name, "is cut off")
            self.network.hits["cut off"] += 1
            self.network.cut_off.add(process.name)
            self.scheduler.call_in(
                self.chance.uniform(0.1, 3.0) * self.lease_seconds, lambda: self.network.mend(process.name)
            )

    def _outage(self) -> None:
        if self.network.down:
            return
        self.scheduler.tell("server is down")
        self.network.hits["server down"] += 1
        self.network.down = True
        self.network.terminate_all()

        def up() -> None:
            self.network.down = False

        self.scheduler.call_in(self.chance.uniform(0.05, 3.0), up)

    def _terminate(self) -> None:
        self.network.hits["all terminated"] += 1
        self.scheduler.tell("all connections are terminated")
        self.network.terminate_all()

    def _stop(self) -> None:
        node = self._any()
        if (fellow := node.fellow) is not None and (worker := fellow.worker) is not None:
            self.scheduler.tell(fellow.process.name, "is told to stop")
            self.network.hits["told to stop"] += 1
            node.fellow = None
            fellow.told_to_stop = True
            fellow.process.loop.call_soon(lambda: worker.stop(now=self.chance.random() < 0.3))
            self.scheduler.call_in(self.chance.uniform(0.0, 3.0), lambda: self.start_worker(node))

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        scheduler, chance = self.scheduler, self.chance
        self.database.empty()
        self.database.run("select queue_pg.set_limit('key', %s, max_running => %s)", LIMIT, MOST)
        for node in self.nodes:
            scheduler.call_in(chance.uniform(0.0, 1.0), partial(self.start_worker, node))
        for _ in range(chance.randint(1, 2)):
            self.start_application(chance.randint(5, 25))
        scheduler.call_in(chance.expovariate(1 / self.pause_seconds), self.disturb)
        scheduler.run(until=lambda: scheduler.now >= self.peace_at)
        self._make_peace()
        self._await("all applications are done", HEAL_SECONDS, lambda: not self.busy)
        self._await("every job has ended", HEAL_SECONDS, lambda: not self.busy and self.database.live() == 0)
        self._await("all workers are well", HEAL_SECONDS, lambda: not self._unwell())
        self._probe()
        self._end()

    def _unwell(self) -> list[str]:
        """Return what is amiss: every worker works, is heard of, hears, and has all its slots free."""
        beats = dict(self.database.run("select id, extract(epoch from heartbeat_at)::float8 from queue_pg.workers"))
        for worker_id, beat in beats.items():
            if beat > EPOCH_SECONDS + self.peace_at:
                self.beats_in_peace[worker_id].add(beat)
        amiss: list[str] = []
        for node in self.nodes:
            worker = None if node.fellow is None else node.fellow.worker
            if worker is None:
                amiss.append(f"{node.name} does not run")
            elif len(self.beats_in_peace[worker.id]) < 2:
                # The first one may have gone out on a line that had fallen silent before, and wait for its answer.
                amiss.append(f"{worker.id} was last heard of at {beats.get(worker.id)}")
            elif self.notify and not worker.wakeups.listening:
                amiss.append(f"{worker.id} does not listen")
            elif worker.stuck:
                amiss.append(f"{worker.id} has {worker.stuck} slots taken, and nothing to do")
        return amiss

    def _probe(self) -> None:
        """See that idle workers are there for the next job."""
        process = self._process("probe")

        async def submit() -> None:
            queue = Queue(DSN, notify=False, surroundings=Simulated(process, self.network))
            await queue.open()
            await asyncio.sleep(3.0)
            application = self._application(queue)
            for seconds in (0.0, 2.0 * self.lease_seconds + 1.0):
                n = self.ledgers.new_number()
                await application.insist(n, "work", {"n": n, "seconds": seconds})
                self.probes.append(Probe(n, self.scheduler.now, NOTICED_SECONDS if self.notify else POLLED_SECONDS))
                await asyncio.sleep(1.0)

        self.weather.slow = 0
        self._begin(process, submit())
        self._await("the probes have ended", 60.0, lambda: not self.busy and self.database.live() == 0)

    def _make_peace(self) -> None:
        self.scheduler.tell("peace")
        self.weather.clear()
        self.network.down = False
        for process in self.processes:
            if not process.crashed:
                self.network.mend(process.name)
                process.thaw()

    def _await(self, what: str, seconds: float, condition: Callable[[], bool]) -> None:
        """Go on until something is so; looked at each second."""
        scheduler = self.scheduler
        deadline = scheduler.now + seconds
        while not condition():
            if scheduler.now >= deadline:
                raise _NeverError(f"{what}: not within {seconds:g} s{''.join(f', {text}' for text in self._unwell())}")
            look_at = scheduler.now + 0.5
            scheduler.call_at(look_at, lambda: None)
            scheduler.run(until=partial(self._is_over, look_at))

    def _is_over(self, moment: float) -> bool:
        return self.scheduler.now >= moment

    def _end(self) -> None:
        """Have all workers end, as they are asked to."""
        for fellow in self.fellows:
            if fellow.worker is not None and fellow.lives:
                if not fellow.told_to_stop:
                    fellow.told_to_stop = True
                    fellow.process.loop.call_soon(fellow.worker.stop)
            elif fellow.ended and not fellow.told_to_stop:
                self._violate(f"{fellow.process.name} has ended by itself")
        self._await("all workers end", STOP_SECONDS, lambda: not any(fellow.lives for fellow in self.fellows))
        for fellow in self.fellows:
            if fellow.failure is not None:
                self._violate(f"{fellow.process.name} has ended with {fellow.failure!r}")
        for process in self.processes:
            for error in process.loop.errors:
                self._violate(f"{process.name}: {error}")

    def _violate(self, text: str) -> None:
        self.violations.append(Violation("L2", "-", text))


def simulate(database: Database, seed: int) -> Outcome:
    """Run a seed."""
    # What is garbage is collected when nothing matters any more.
    gc.disable()
    simulation = Simulation(database, seed)
    try:
        try:
            simulation.run()
        except _NeverError as error:
            simulation.violations.append(Violation("L1", "-", str(error)))
        except Stuck as error:
            simulation.violations.append(Violation("L1", "-", f"everybody waits for ever: {error}"))
        return _account(simulation)
    finally:
        for process in simulation.processes:
            process.bury()
        simulation.network.close()
        simulation.processes.clear()
        simulation.fellows.clear()
        gc.enable()


def _stood_still(ledgers: Ledgers) -> set[int]:
    """Return the numbers of jobs whose process stood still while it ran them: others may have had their leases."""
    return {
        run.number
        for run in ledgers.runs
        for process, begin, end in ledgers.stuck
        if process == run.pid and run.begin_ns / 1e9 <= end and begin <= (run.end_ns or float("inf")) / 1e9
    }


def _account(simulation: Simulation) -> Outcome:
    ledgers, database = simulation.ledgers, simulation.database
    # A handler that was stopped counts against no limit any more, however long its process lives on.
    runs = [replace(run, left_ns=ledgers.stopped.get(index)) for index, run in enumerate(ledgers.runs)]
    evidence = Evidence(list(ledgers.submissions.values()), runs, database.edges(), database.stored())
    expectation = Expectation(
        caps={LIMIT: (ledgers.limited - _stood_still(ledgers), MOST)},
        dead_at_ns=simulation.dead_at_ns,
        # Applications cancel some, and an outage may be longer than all attempts.
        may_fail=None,
    )
    account = check(evidence, expectation)
    parts = replace(database.parts(), families=ledgers.families, steps=ledgers.steps, members=ledgers.members)
    broken = [Violation(*one) for one in find_broken(parts, evidence.runs, evidence.stored, evidence.edges)]
    facts = Facts(
        runs=ledgers.runs,
        stopped=ledgers.stopped,
        dead_at_ns=simulation.dead_at_ns,
        stuck=ledgers.stuck,
        most=ledgers.most,
        concurrency=simulation.concurrency,
        probes=simulation.probes,
        said=database.said(),
    )
    promised = [Violation(*one) for one in find_broken_promises(facts)]
    # Transactions are numbered on from one run to the next.
    trace = [*simulation.scheduler.trace, *(str(replace(edge, xid=0)) for edge in evidence.edges)]
    return Outcome(
        simulation.seed,
        [str(one) for one in (*simulation.violations, *account.violations, *broken, *promised)],
        trace,
        dict(simulation.network.hits),
        {**account.figures, "statements": simulation.network.statements, "steps": simulation.scheduler.steps},
    )
