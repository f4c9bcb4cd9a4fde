"""One cell of the table: a queue and a fault, on a server of its own; then peace, a deadline, and the account."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg

from tests.faults import ledgers
from tests.faults.checker import Expectation, check
from tests.faults.ledgers import Evidence, Submission
from tests.faults.machine import no_pooler
from tests.faults.peers import faults
from tests.faults.peers.adapters import CONCURRENCY, DEAD_SECONDS, Peer, commit, make_environment
from tests.faults.peers.judge import Judgement, Ledgers, Left, judge, read_submissions, write_hits
from tests.faults.peers.staff import Process, Staff
from tests.faults.pooler import pooled, pooler_version
from tests.faults.postgres import Postgres

# How long a queue may take to start working, and to start again after the last fault.
START_SECONDS: Final = 60.0
PATIENCE_SECONDS: Final = 20.0
# How long it may take for what is left when nothing more is submitted: nine times what it takes to notice a death.
DEADLINE_SECONDS: Final = 45.0
KEPT: Final = 10


@dataclass(frozen=True, slots=True)
class Size:
    """How often a fault hits, at which rate jobs come, and how long each takes. Whoever says nothing for `dead_seconds`
    counts as dead."""

    hits: int
    rate: float = 60.0
    seconds: float = 0.2
    workers: int = 3
    dead_seconds: int = DEAD_SECONDS


@dataclass(slots=True)
class Cell:
    """What a fault is given to work with."""

    folder: Path
    size: Size
    random: random.Random
    postgres: Postgres
    staff: Staff
    hits: Counter[str] = field(default_factory=Counter[str])

    def begun(self) -> dict[int, int]:
        """Return for each process when it began its newest job."""
        newest: dict[int, int] = {}
        for path in self.folder.glob("effects-*.jsonl"):
            with suppress(ValueError, IndexError):
                # The tail is enough, and the files grow.
                with path.open("rb") as file:
                    file.seek(max(0, path.stat().st_size - 4_000))
                    lines = file.read().split(b"\n")[:-1]
                last = [line for line in lines if line.startswith(b'["begin"')][-1]
                *_, pid, nanoseconds = json.loads(last)
                newest[pid] = nanoseconds
        return newest

    def idle(self, since_ns: int) -> list[int]:
        """Return the places whose worker has not begun anything since."""
        newest = self.begun()
        return [place for place, worker in enumerate(self.staff.workers) if newest.get(worker.pid, 0) < since_ns]

    def until_all_work(self, seconds: float) -> list[int]:
        """Wait until every worker has begun a job from now on; return the places that have not in this time."""
        since, deadline = time.monotonic_ns(), time.monotonic() + seconds
        while (idle := self.idle(since)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return idle


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault by its number in the plan. `behind_pooler`: whether all goes through PgBouncer."""

    name: str
    title: str
    disturb: Callable[[Cell], None]
    size: Size
    behind_pooler: bool = False

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be made here; None: it can."""
        return no_pooler() if self.behind_pooler else None


FAULTS: Final = (
    Fault("F1", "workers killed", faults.kill_workers, Size(hits=10)),
    Fault("F3", "workers frozen for 15 s", faults.freeze_workers, Size(hits=4)),
    Fault("F5", "Postgres killed", faults.kill_postgres, Size(hits=5)),
    Fault("F8", "Postgres restarted", faults.restart_postgres, Size(hits=5)),
    Fault("F9", "connections terminated", faults.terminate_backends, Size(hits=60)),
    Fault("F16", "a snapshot held", faults.hold_snapshot, Size(hits=1_500, rate=100)),
    Fault("F21", "workers killed behind PgBouncer", faults.kill_workers, Size(hits=10), behind_pooler=True),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a cell came to. `obstacle`: why the queue did not work at all, before anything was done to it."""

    peer: str
    fault: str
    seed: int
    date: str
    commit: str
    version: str
    server: str
    pooler: str
    cores: int
    seconds: float
    hits: Mapping[str, int]
    figures: Mapping[str, float]
    jobs: Mapping[str, Sequence[str]]
    violations: Sequence[str]
    obstacle: str | None


def run(peer: Peer, fault: Fault, *, seed: int, folder: Path, size: Size | None = None) -> Verdict:
    """Run a cell in `folder`, which keeps the ledgers and the logs."""
    size = size or fault.size
    folder = folder.resolve()
    folder.mkdir(parents=True)
    begin = time.monotonic()
    postgres = Postgres(folder / "postgres")
    postgres.start()
    try:
        with ExitStack() as stack:
            _prepare(peer, folder, postgres.dsn)
            dsn = stack.enter_context(pooled(postgres.dsn)) if fault.behind_pooler else postgres.dsn
            environment = make_environment(
                folder, dsn, seconds=size.seconds, dead_seconds=size.dead_seconds, pooled=fault.behind_pooler
            )
            staff = Staff(peer, environment, folder, size=size.workers, dsn=postgres.dsn)
            stack.callback(staff.stop)
            cell = Cell(folder, size, random.Random(f"{seed} {peer.name} {fault.name}"), postgres, staff)
            # More than all can do, or one of them might be idle because it is not needed.
            rush = 1.3 * size.workers * CONCURRENCY / size.seconds
            staff.submit(rush)
            silent: list[int] = []
            obstacle: str | None = None
            if cell.until_all_work(START_SECONDS):
                obstacle = _complaint(staff)
            else:
                staff.submit(size.rate)
                fault.disturb(cell)
                postgres.start()
                staff.submit(rush)
                silent = cell.until_all_work(PATIENCE_SECONDS)
            staff.stop_application()
            _drain(peer, postgres.dsn, 0 if obstacle else DEADLINE_SECONDS)
            left = _read_left(peer, postgres.dsn)
            staff.stop()
            verdict = _sum_up(peer, fault, seed, cell, left, silent, obstacle, time.monotonic() - begin)
    finally:
        postgres.stop()
        # The ledgers remain; 100 MB of server do not.
        shutil.rmtree((folder / "postgres" / "cluster").resolve(), ignore_errors=True)
    (folder / "verdict.json").write_text(json.dumps(asdict(verdict), indent=1))
    return verdict


def _sum_up(
    peer: Peer,
    fault: Fault,
    seed: int,
    cell: Cell,
    left: Sequence[Left],
    silent: Sequence[int],
    obstacle: str | None,
    seconds: float,
) -> Verdict:
    staff = cell.staff
    write_hits(cell.folder, staff.hits, staff.places)
    submissions = read_submissions(cell.folder)
    runs = ledgers.read_runs(cell.folder)
    judgement: Judgement = judge(Ledgers(submissions, runs, staff.hits, left, staff.places))
    violations: list[str] = []
    if peer.edges:
        with psycopg.connect(cell.postgres.dsn, autocommit=True) as connection:
            edges, stored = ledgers.read_edges(connection), ledgers.read_stored(connection)
        told = [Submission(one.number, one.word, one.id) for one in submissions]
        violations = [str(one) for one in check(Evidence(told, runs, edges, stored), Expectation()).violations]
    figures = {
        **judgement.figures,
        "endings": staff.endings,
        "silent": len(silent),
        "unclean": staff.unclean,
        "application_endings": staff.application_endings,
    }
    return Verdict(
        peer.name,
        fault.name,
        seed,
        datetime.now(UTC).isoformat(timespec="seconds"),
        commit(),
        peer.version(),
        str(cell.postgres.execute("show server_version")[0][0]).split()[0],
        pooler_version(),
        os.cpu_count() or 1,
        round(seconds, 1),
        dict(cell.hits),
        figures,
        {name: list(jobs[:KEPT]) for name, jobs in judgement.jobs.items()},
        violations[:KEPT],
        obstacle,
    )


def _prepare(peer: Peer, folder: Path, dsn: str) -> None:
    environment = make_environment(folder, dsn, seconds=0, dead_seconds=DEAD_SECONDS, pooled=False)
    done = subprocess.run(
        peer.command("prepare"), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{peer.name} cannot be prepared: {done.stdout}{done.stderr}"[-2000:])
    if peer.edges:
        ledgers.install(dsn)


def _read_left(peer: Peer, dsn: str) -> list[Left]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [Left(*row) for row in connection.execute(peer.left.encode())]


def _drain(peer: Peer, dsn: str, seconds: float) -> None:
    """Wait until the queue has nothing more to do."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(left.live for left in _read_left(peer, dsn)):
            return
        time.sleep(0.3)


def _complaint(staff: Staff) -> str:
    """Return what workers or the application say last."""
    processes: list[Process] = [*staff.workers, *([staff.application] if staff.application else [])]
    for one in processes:
        lines = [line.strip() for line in one.log.read_text(errors="replace").splitlines() if line.strip()]
        if errors := [line for line in lines if "error" in line.lower()]:
            return errors[-1][:300]
    return "no worker has begun a job"
