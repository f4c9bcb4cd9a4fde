"""The queues: how each is started, how it is set up, and how one sees what it has left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.contestants.peers import NODE, PYTHON, versions
from queue_pg import __version__
from tests.faults.fleet import ROOT

SCRIPTS: Final = Path(__file__).parent
CONCURRENCY: Final = 8
DEAD_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Peer:
    """A queue. `script` takes `prepare` and `produce`, and `work` unless `worker` is another command.

    `left` selects (id, state, live) of what has not succeeded. `bury` undoes the locks of workers (their names, an
    array) that have ended, where that is somebody else's duty.
    """

    name: str
    title: str
    script: str
    packages: Sequence[str]
    settings: str
    recovery: str
    left: str
    worker: Callable[[], Sequence[str]] | None = None
    pooled: str = ""
    bury: str | None = None
    # Whether the ledger of edges is of its tables.
    edges: bool = False

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be run here; None: it can."""
        if self.script.endswith(".mjs"):
            return None if (NODE / "node_modules").is_dir() else "it could not be installed from npm"
        return None if Path(self.python).exists() else "it could not be installed from PyPI"

    @property
    def python(self) -> str:
        """The interpreter that has it."""
        return str(PYTHON) if self.packages else sys.executable

    def command(self, what: str) -> list[str]:
        """Return what prepares the database, submits or works."""
        if self.script.endswith(".mjs"):
            return ["node", str(NODE / self.script), what]
        if what == "work" and self.worker is not None:
            return [self.python, *self.worker()]
        return [self.python, str(SCRIPTS / self.script), what]

    def version(self) -> str:
        """Return what exactly is run."""
        known = versions()
        if self.packages:
            return ", ".join(f"{name} {known[name]}" for name in self.packages)
        return f"{__version__}, commit {commit()}"


def commit() -> str:
    """Return the commit that is checked out."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def make_environment(folder: Path, dsn: str, *, seconds: float, dead_seconds: int, pooled: bool) -> dict[str, str]:
    """Return what applications and workers of any queue are told."""
    return {
        **os.environ,
        "DATABASE_URL": dsn,
        "FAULTS_FOLDER": str(folder),
        "NODE_ENV": "production",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(SCRIPTS)]),
        "PEER_SECONDS": str(seconds),
        "PEER_CONCURRENCY": str(CONCURRENCY),
        "PEER_DEAD_SECONDS": str(dead_seconds),
        "PEER_POOLED": "1" if pooled else "",
        "WORKER_CONCURRENCY": str(CONCURRENCY),
        "LEASE_SECONDS": str(dead_seconds),
    }


def copy_scripts() -> None:
    """Put scripts for Node beside their packages, where it looks for them."""
    if NODE.is_dir():
        for file in SCRIPTS.glob("*.mjs"):
            shutil.copy(file, NODE / file.name)


PEERS: Final = (
    Peer(
        "queue-pg",
        "queue-pg",
        "queue_pg_peer.py",
        (),
        "`queue-pg worker`, asynchronous client",
        "leases of 5 s (`LEASE_SECONDS`; default 30 s)",
        "select id::text, state::text, true from queue_pg.jobs"
        " union all select id::text, state::text, false from queue_pg.finished_jobs where state <> 'completed'",
        worker=lambda: ["-m", "queue_pg.cli", "worker", "queue_pg_peer"],
        pooled="no `LISTEN_DATABASE_URL`, so it polls",
        edges=True,
    ),
    Peer(
        "procrastinate",
        "Procrastinate",
        "procrastinate_peer.py",
        ("procrastinate", "psycopg[binary]"),
        "`procrastinate worker`, `PsycopgConnector`, asynchronous task",
        "the periodic task of its page on stalled jobs, every 5 s (there: every 10 minutes),"
        " `seconds_since_heartbeat=5` (default 30), `update_heartbeat_interval=1` (10),"
        " `stalled_worker_timeout=5` (30)",
        "select id::text, status::text, status in ('todo', 'doing') from procrastinate_jobs"
        " where task_name = 'work' and status <> 'succeeded'",
        worker=lambda: ["-m", "procrastinate", "--app=procrastinate_peer.app", "worker"],
        pooled="`AsyncNullConnectionPool` as its page on connectors says, `prepare_threshold=None`",
    ),
    Peer(
        "pgqueuer",
        "PgQueuer",
        "pgqueuer_peer.py",
        ("pgqueuer", "asyncpg"),
        "`pgqueuer.run` with `batch_size=4, max_concurrent_tasks=8, dequeue_timeout=1`, asyncpg, uvloop;"
        " `AsyncpgPoolDriver` in the application",
        "`heartbeat_timeout=5` (default 30), `restart_on_failure` with `restart_delay=1` (default off, 5),"
        " `shutdown_on_listener_failure`",
        "select id::text, status::text, status::text in ('queued', 'picked') from pgqueuer"
        " union all select job_id::text, status::text, false from pgqueuer_log"
        " where status::text in ('exception', 'canceled', 'deleted')",
        pooled="`statement_cache_size=0`",
    ),
    Peer(
        "chancy",
        "Chancy",
        "chancy_peer.py",
        ("chancy", "psycopg[binary]"),
        "`AsyncExecutor`, `polling_interval=1`, `eager_polling`, `with_max_attempts(25)` (default 1)",
        "its plugins Leadership (`poll_interval=1, timeout=5`; defaults 60, 120) and Recovery (`poll_interval=1`;"
        " default 60), `heartbeat_poll_interval=1, heartbeat_timeout=5` (defaults 30, 90)",
        "select id::text, state::text, state in ('pending', 'running', 'retrying') from chancy_jobs"
        " where state <> 'succeeded'",
        pooled="`notifications=False`; there is no setting for prepared statements",
    ),
    Peer(
        "awa",
        "awa",
        "awa_peer.py",
        ("awa-pg",),
        "`AsyncClient`, asynchronous handler, `install_queue_storage` before anything is submitted",
        "what its page on configuration gives for detection within 5 s: heartbeats every 1 s, stale after 4 s, looked"
        " for every 1 s (defaults 30, 90, 30), leader elected every 1 s (default 10)",
        "select id::text, state::text, state::text not in ('failed', 'cancelled') from awa.jobs"
        " where state::text <> 'completed'",
        pooled="`statement-cache-capacity=0` in the address; its documentation does not speak of poolers",
    ),
    Peer(
        "graphile-worker",
        "graphile-worker",
        "graphile_peer.mjs",
        ("graphile-worker",),
        "`run` with `concurrentJobs: 8, maxPoolSize: 10`",
        "who starts the workers calls `force_unlock_workers` for one that has ended, as its page on administration says"
        " (else: 4 hours, not to be set); nothing for one that is frozen (heartbeats are in its Pro edition)",
        "select id::text, case when locked_at is null then 'queued' else 'locked' end, attempts < max_attempts"
        " from graphile_worker._private_jobs",
        pooled="`preparedStatements: false`",
        bury="select graphile_worker.force_unlock_workers(%s::text[])",
    ),
)

# Loses jobs on purpose; for the tests of this harness.
FORGETFUL: Final = Peer(
    "forgetful",
    "forgetful",
    "forgetful_peer.py",
    (),
    "",
    "",
    "select id::text, 'new', true from forgetful where not done",
)


def find_peer(name: str) -> Peer:
    """Return the queue of this name."""
    return next(peer for peer in (*PEERS, FORGETFUL) if peer.name == name)
