"""The HTTP API as users start it, which can be killed and started again on the same port."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx

from tests.faults.fleet import ROOT

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0


class Service:
    """One API process; `number` tells those of a run apart."""

    def __init__(self, dsn: str, folder: Path, number: int) -> None:
        self._dsn = dsn
        self._folder, self._number = folder, number
        self._starts = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    @property
    def url(self) -> str:
        """Where it is, and stays."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = {
            **os.environ,
            "DATABASE_URL": self._dsn,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        # One for each process, as their lines are counted.
        log = self._folder / f"api-{self._number}-{next(self._starts)}.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "queue_pg.cli", "serve", "--port", str(self._port)],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(httpx.TransportError):
                httpx.get(f"{self.url}/livez", timeout=5)
                return
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"the API does not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it as it stands."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """Ask it to end and return its exit code; -9 when it had to be killed."""
        if self._process is None:
            return 0
        self._process.terminate()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
