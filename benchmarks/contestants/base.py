"""What every contestant tells the harness."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from benchmarks.children import Child, Command
from benchmarks.marks import Marks
from benchmarks.server import Database
from benchmarks.statements import Query

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "benchmarks" / "peers"
WORKSHOP = ROOT / ".bench"  # all that is installed or made here; git ignores it


class Contestant(ABC):
    """A queue and its worker, whose handler calls `marks.begun(n)` with the job's number and does nothing else."""

    name: str
    # One sentence for the report: version apart, what was set and why.
    settings: str
    # Of a drain's 100,000 jobs, for those that would take minutes.
    share: float = 1.0
    # Whether a job is left that has not been recorded as finished.
    unfinished: Query
    # How many are recorded as finished; None when the queue keeps no history.
    finished: Query | None = None
    # Submits job number %s, where the pickup of single jobs is measured.
    insert: Query | None = None

    @abstractmethod
    def prepare(self, database: Database, jobs: int) -> None:
        """Make the schema, and `jobs` queued jobs numbered from 1."""

    @abstractmethod
    def worker(self, database: Database, marks: Marks, *, stamps: bool = False) -> Command:
        """Return the command that runs the worker until SIGTERM."""

    def ready(self, database: Database, child: Child) -> None:  # noqa: B027 - optional
        """Wait until the worker has started, and let it begin. Most begin by themselves."""


def python_module(module: str, *arguments: str, environment: dict[str, str]) -> Command:
    """Return a command that runs a module of this project with this interpreter."""
    return outside([sys.executable, "-m", module, *arguments], environment)


def outside(arguments: list[str], environment: dict[str, str]) -> Command:
    """Return a command that finds this project's modules, but neither its `.env` nor anything else of its folder."""
    WORKSHOP.mkdir(exist_ok=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return Command(arguments, {"PYTHONPATH": path} | environment, WORKSHOP)
