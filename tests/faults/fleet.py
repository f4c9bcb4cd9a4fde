"""Worker processes as users start them, which come and go."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults import releases
from tests.faults.releases import Release

ROOT: Final = releases.ROOT
LEASE_SECONDS: Final = 2.0
# What a worker has by default, and after how long it is killed (docs/workers.md).
GRACE_SECONDS: Final = 30.0
STOP_SECONDS: Final = GRACE_SECONDS + 10.0


@dataclass(slots=True)
class Worker:
    """A process and the id that its leases bear."""

    id: str
    process: subprocess.Popen[bytes]
    log: Path
    grace_seconds: float
    release: Release | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def serves(self) -> bool:
        """Whether it has come to work, or to an end."""
        return self.process.poll() is not None or b" serves " in self.log.read_bytes()

    @property
    def stopping(self) -> bool:
        """Whether it has heard that it is to end, or has ended."""
        return self.process.poll() is not None or b" is stopping" in self.log.read_bytes()


def _environment(release: Release | None) -> dict[str, str]:
    if release is not None:
        return release.environment()
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }


@dataclass(slots=True)
class Fleet:
    """Keeps `size` workers running; whoever was disturbed is remembered."""

    dsn: str
    folder: Path
    size: int
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    target: str = "tests.faults.fault_tasks"
    # Whose code those that start from now on run; None: this one's.
    release: Release | None = None
    workers: list[Worker] = field(default_factory=list[Worker])
    disturbed: set[str] = field(default_factory=set[str])
    dead_at_ns: dict[int, int] = field(default_factory=dict[int, int])
    # By the clock that the server has too.
    dead_at: dict[str, float] = field(default_factory=dict[str, float])
    # Who was asked to end, and how long that took.
    ends: list[tuple[Worker, float]] = field(default_factory=list[tuple[Worker, float]])
    # Workers that ended although nobody had told them to, and how.
    strays: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def fill(self) -> None:
        """Start what is missing."""
        for worker in self.workers:
            if worker.process.poll() is not None and worker.pid not in self.dead_at_ns:
                self.strays.append((worker.id, worker.process.returncode))
        self.workers = [worker for worker in self.workers if worker.process.poll() is None]
        while len(self.workers) < self.size:
            self.workers.append(self.start())

    def add(self, dsn: str | None = None, *, prefix: Sequence[str] = (), **environment: str) -> Worker:
        """Start one more for the rest of the run."""
        self.workers.append(self.start(dsn, prefix=prefix, **environment))
        return self.workers[-1]

    def start(self, dsn: str | None = None, *, prefix: Sequence[str] = (), **environment: str) -> Worker:
        """Start one more, which is not counted among the fleet's. `prefix`: a command that runs it in its own place."""
        name = f"w{next(self._numbers)}"
        log = self.folder / f"worker-{name}.log"
        everything = {
            **_environment(self.release),
            "DATABASE_URL": dsn or self.dsn,
            "WORKER_ID": name,
            "FAULTS_FOLDER": str(self.folder),
            "LOG_LEVEL": "INFO",
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "GRACE_SECONDS": str(GRACE_SECONDS),
            "QUEUE_PG_COMMANDS": "any",
            **self.environment,
            **environment,
        }
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "queue_pg.cli", "worker", self.target],
                cwd=self.release.folder if self.release else ROOT, env=everything,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        return Worker(name, process, log, float(everything["GRACE_SECONDS"]), self.release)

    def kill(self, worker: Worker) -> None:
        """Kill one with all it has started."""
        self.disturbed.add(worker.id)
        worker.process.kill()
        self.dead_at[worker.id] = time.time()
        worker.process.wait()
        self.dead_at_ns[worker.pid] = time.monotonic_ns()

    def freeze(self, worker: Worker) -> None:
        """Stop one as it stands, as a machine does that runs out of memory or a hypervisor that moves it."""
        self.disturbed.add(worker.id)
        worker.process.send_signal(signal.SIGSTOP)

    def thaw(self, worker: Worker) -> None:
        """Let it go on where it was."""
        worker.process.send_signal(signal.SIGCONT)

    def retire(self, worker: Worker, *, twice: bool = False) -> int:
        """Ask one to end, `twice`: and then to end at once; return its exit code, -9 when it had to be killed."""
        self.workers.remove(worker)
        worker.process.terminate()
        begin = time.monotonic()
        while twice and not worker.stopping and time.monotonic() < begin + STOP_SECONDS:
            time.sleep(0.002)
        if twice:
            worker.process.terminate()
        try:
            code = worker.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        self.ends.append((worker, time.monotonic() - begin))
        return code

    def stop(self) -> list[int]:
        """Ask all to end and return their exit codes; whoever does not is killed and counts as -9."""
        # One that is still being loaded knows of no orderly end.
        deadline = time.monotonic() + STOP_SECONDS
        while not all(worker.serves for worker in self.workers) and time.monotonic() < deadline:
            time.sleep(0.02)
        for worker in self.workers:
            worker.process.send_signal(signal.SIGCONT)
            worker.process.terminate()
        begin = time.monotonic()
        ending = list(self.workers)
        while ending and time.monotonic() - begin < STOP_SECONDS:
            for worker in [one for one in ending if one.process.poll() is not None]:
                self.ends.append((worker, time.monotonic() - begin))
                ending.remove(worker)
            time.sleep(0.01)
        for worker in ending:
            worker.process.kill()
            self.ends.append((worker, time.monotonic() - begin))
        codes = [worker.process.wait() for worker in self.workers]
        self.workers = []
        return codes

    def __enter__(self) -> Fleet:
        self.fill()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()
