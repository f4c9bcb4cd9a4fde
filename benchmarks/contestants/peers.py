"""The other queues, each in a process of its own environment: `peers/<script> prepare N` and `peers/<script> work`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from benchmarks.children import Command, run
from benchmarks.contestants.base import PEERS, ROOT, WORKSHOP, Contestant, outside
from benchmarks.marks import Marks
from benchmarks.model import Record
from benchmarks.server import Database
from benchmarks.statements import Query

PYTHON = WORKSHOP / "venv" / "bin" / "python"
NODE = WORKSHOP / "node"


class Peer(Contestant):
    """A queue of others. `insert`: submits job number %s in plain SQL, where pickup is measured."""

    def __init__(
        self,
        name: str,
        script: str,
        settings: str,
        *,
        unfinished: Query,
        finished: Query | None = None,
        share: float = 1.0,
        insert: Query | None = None,
    ) -> None:
        self.name = name
        self.script = script
        self.settings = settings
        self.unfinished = unfinished
        self.finished = finished
        self.share = share
        self.insert = insert

    @property
    def available(self) -> bool:
        """Whether it could be installed."""
        return (NODE / "node_modules").is_dir() if self.script.endswith(".mjs") else PYTHON.exists()

    def prepare(self, database: Database, jobs: int) -> None:
        run(self._command(database, "prepare", str(jobs), environment={}))

    def worker(self, database: Database, marks: Marks, *, stamps: bool = False) -> Command:
        return self._command(database, "work", environment=marks.environment(stamps=stamps))

    def _command(self, database: Database, *arguments: str, environment: dict[str, str]) -> Command:
        environment = {"DATABASE_URL": database.dsn, "NODE_ENV": "production"} | environment
        if self.script.endswith(".mjs"):
            # Node looks for packages beside the script.
            for file in PEERS.glob("*.mjs"):
                shutil.copy(file, NODE / file.name)
            return outside(["node", str(NODE / self.script), *arguments], environment)
        return Command([str(PYTHON), str(PEERS / self.script), *arguments], environment, WORKSHOP)


def all_peers() -> list[Peer]:
    """Return every peer, installed or not."""
    return [
        Peer(
            "PgQueuer",
            "pgqueuer_peer.py",
            "asyncpg, uvloop, batches of 500 jobs (the best of 1, 2 and 5 dequeuers with 50, 200 or 500)",
            unfinished="select exists (select from pgqueuer)",
            insert="insert into pgqueuer (priority, entrypoint, payload, status)"
            " values (0, 'noop', convert_to(%s::text, 'utf8'), 'queued')",
            share=1.0,
        ),
        Peer(
            "graphile-worker",
            "graphile_peer.mjs",
            "the preset of its page on performance: concurrentJobs 24, maxPoolSize 25, localQueue.size 500, "
            "completeJobBatchDelay 0; it keeps no history",
            unfinished="select exists (select from graphile_worker._private_jobs)",
            insert="select graphile_worker.add_job('noop', json_build_object('n', %s::int))",
        ),
        Peer(
            "pg-boss",
            "pgboss_peer.mjs",
            "2 workers in one process, batchSize 1,000, burstWhenBatchFull, pollingIntervalSeconds 0.5",
            unfinished="select exists (select from pgboss.job where name = 'noop' and state < 'completed')",
            finished="select count(*) from pgboss.job where name = 'noop' and state = 'completed'",
            share=0.4,
        ),
        Peer(
            "awa",
            "awa_peer.py",
            "AsyncClient with 200 workers, poll_interval_ms 50, the queue-storage engine of a fresh installation",
            unfinished="select exists (select from awa.jobs where state in ('available', 'running'))",
            share=0.1,
        ),
        Peer(
            "Chancy",
            "chancy_peer.py",
            "uvloop, AsyncExecutor, concurrency 500, eager polling",
            unfinished="select exists (select from chancy_jobs where state <> 'succeeded')",
            finished="select count(*) from chancy_jobs where state = 'succeeded'",
            share=0.03,
        ),
        Peer(
            "Procrastinate",
            "procrastinate_peer.py",
            "uvloop, asynchronous task, concurrency 50, a pool of 20 connections, listen_notify",
            unfinished="select exists (select from procrastinate_jobs where status in ('todo', 'doing'))",
            finished="select count(*) from procrastinate_jobs where status = 'succeeded'",
            share=0.01,
        ),
    ]


def peers(record: Record) -> list[Peer]:
    """Return the peers that are installed, installing them first; the record gets a note about the others."""
    install(record)
    found = all_peers()
    for peer in found:
        if not peer.available:
            record.note(f"{peer.name} was not measured: it could not be installed.")
    return [peer for peer in found if peer.available]


def install(record: Record) -> None:
    """Install the peers where they are not; what went wrong becomes a note."""
    done = subprocess.run(
        [str(ROOT / "tools" / "bench_setup.sh")],
        env={**os.environ, "PYTHON": sys.executable},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        record.note(f"Installing peers failed: {done.stderr.strip().splitlines()[-1]}.")


def versions() -> dict[str, str]:
    """Return the pinned versions of the peers and of the drivers below them."""
    pinned = (line.partition("==") for line in (PEERS / "requirements.txt").read_text().split())
    packages: dict[str, str] = json.loads((PEERS / "package.json").read_text())["dependencies"]
    return {name: version for name, _, version in pinned} | packages
