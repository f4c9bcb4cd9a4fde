"""Processes of a queue: workers that are started again when they end, as any supervisor does, and an application."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg

from tests.faults.ledgers import read_lines
from tests.faults.peers.adapters import Peer
from tests.faults.peers.judge import JOBS, Hit

RESTART_SECONDS: Final = 1.0
STOP_SECONDS: Final = 20.0
LOOK_SECONDS: Final = 0.02


class Process:
    """One process with a log, known to the server by its name."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, name: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        dsn = environment["DATABASE_URL"]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**environment, "WORKER_ID": name, "DATABASE_URL": f"{dsn}?application_name={name}"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def signal(self, what: signal.Signals) -> None:
        """Send it a signal unless it has ended."""
        if not self.ended:
            self.process.send_signal(what)

    def wait(self, seconds: float) -> bool:
        """Give it so long to end; return whether it had to be killed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return True
        return False

    def kill(self) -> None:
        """Kill it with all it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


class Staff:
    """Workers in `size` places and an application, each replaced when it ends. `hits` notes what happened to them."""

    def __init__(self, peer: Peer, environment: Mapping[str, str], folder: Path, *, size: int, dsn: str) -> None:
        self.hits: list[Hit] = []
        # Process to place, of all workers there ever were.
        self.places: dict[int, int] = {}
        self.names: dict[str, int] = {}
        self.endings = 0
        self.application_endings = 0
        self.unclean = 0
        self._peer = peer
        self._environment = environment
        self._folder = folder
        self._dsn = dsn
        self._numbers = itertools.count()
        self._unburied: list[int] = []
        self._lock = threading.Lock()
        self._halt = threading.Event()
        self.workers = [self._hire(place) for place in range(size)]
        # When the place of one that has ended by itself is filled again.
        self._due: dict[int, float] = {}
        self.application: Process | None = None
        self._former: list[Process] = []
        self._first = 1
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, rate: float) -> None:
        """Have an application submit, another one than so far."""
        with self._lock:
            if self.application is not None:
                # It may wait for something that never comes. Whoever looks at workers needs submissions.
                self.application.signal(signal.SIGTERM)
                self._former.append(self.application)
            self._rate = rate
            self.application = self._apply()

    def kill(self, place: int) -> None:
        """Kill a worker; another is there at once."""
        with self._lock:
            victim = self.workers[place]
            now = time.monotonic_ns()
            victim.kill()
            self.hits.append(Hit("killed", now, time.monotonic_ns(), victim.pid, JOBS))
            self._unburied.append(victim.pid)
            self._due.pop(place, None)
            self.workers[place] = self._hire(place)

    def freeze(self, places: Sequence[int], seconds: float) -> None:
        """Let workers stand still for so long, and go on as if nothing was."""
        with self._lock:
            victims = [self.workers[place] for place in places]
        begin = time.monotonic_ns()
        for victim in victims:
            victim.signal(signal.SIGSTOP)
        time.sleep(seconds)
        for victim in victims:
            victim.signal(signal.SIGCONT)
        self.hits += [Hit("frozen", begin, time.monotonic_ns(), victim.pid, JOBS) for victim in victims]

    def stop_application(self) -> None:
        """Have it submit no more."""
        with self._lock:
            application, self.application = self.application, None
        if application is not None:
            application.signal(signal.SIGTERM)
            self._former.append(application)
        for former in self._former:
            former.wait(STOP_SECONDS)
        self._former.clear()

    def stop(self) -> None:
        """Have all workers end; `unclean` are those that had to be killed."""
        self.stop_application()
        self._halt.set()
        self._watcher.join()
        for worker in self.workers:
            # Once: to some a second one says that they are to end at once.
            worker.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        self.unclean = sum(worker.wait(max(0.1, deadline - time.monotonic())) for worker in self.workers)
        self.workers = []

    def _hire(self, place: int) -> Process:
        name = f"worker-{place}-{next(self._numbers)}"
        worker = Process(self._peer.command("work"), self._environment, self._folder, name)
        self.places[worker.pid] = place
        self.names[name] = worker.pid
        return worker

    def _apply(self) -> Process:
        name = f"application-{self._first}"
        environment = {**self._environment, "PEER_RATE": str(self._rate), "PEER_FIRST": str(self._first)}
        self._first += 1_000_000
        application = Process(self._peer.command("produce"), environment, self._folder, name)
        self.names[name] = application.pid
        return application

    def _watch(self) -> None:
        """Be the supervisor."""
        seen = time.monotonic_ns()
        while not self._halt.wait(LOOK_SECONDS):
            with self._lock:
                for place, worker in enumerate(self.workers):
                    if not worker.ended:
                        continue
                    if place not in self._due:
                        self.endings += 1
                        self.hits.append(Hit("ended by itself", seen, time.monotonic_ns(), worker.pid))
                        self._unburied.append(worker.pid)
                        self._due[place] = time.monotonic() + RESTART_SECONDS
                    elif time.monotonic() >= self._due[place]:
                        del self._due[place]
                        self.workers[place] = self._hire(place)
                if self.application is not None and self.application.ended:
                    self.application_endings += 1
                    self.application = self._apply()
            seen = time.monotonic_ns()
            self._bury()

    def _bury(self) -> None:
        """Undo the locks of who has ended, where the queue's documentation leaves that to the supervisor."""
        while self._unburied and self._peer.bury is not None:
            names = [name for [name] in read_lines(self._folder / f"locks-{self._unburied[0]}.jsonl")]
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=2) as connection:
                    connection.execute(self._peer.bury.encode(), [names])
            except psycopg.OperationalError:
                return  # the server is away; next time
            self._unburied.pop(0)
