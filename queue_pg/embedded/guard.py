"""Run one Postgres server, start it again when it crashes, and stop it when nobody uses it any more.

Started as a script (`python -I -S guard.py SPEC`), so it imports the standard library only. It is the server's parent
and belongs to no terminal or process group of its starter: Ctrl-C and `kill -9` of a user of the server do not reach
it. Every user holds a shared `flock` on `users.lock`, which the kernel drops with the process; when an exclusive one is
to be had, nobody is left and the server is shut down.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

SHUTDOWN_SECONDS = 60.0
RESTART_SECONDS = 30.0


class Guard:
    """The parent of one server. `spec`: folder, command, log, env, and uid and gid to run it as (or null)."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.folder = Path(spec["folder"])
        self.stopping = False
        self.changing = threading.RLock()  # re-entrant: the signal handler runs inside the main thread's frames
        self.server = self.launch()

    def launch(self) -> subprocess.Popen[bytes]:
        uid: int | None = self.spec["uid"]
        with Path(self.spec["log"]).open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - the command comes from server.py, no shell is involved
                self.spec["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self.spec["env"],
                user=uid,
                group=self.spec["gid"],
                extra_groups=None if uid is None else [],
                umask=0o077,
            )

    def run(self) -> int:
        """Stay until the server has ended for good: stopped, or not able to start."""
        restart_until = 0.0
        while True:
            status = self.server.wait()
            if status < 0:  # killed by a signal, for instance for want of memory: not its own wish
                restart_until = time.monotonic() + RESTART_SECONDS
            # Its orphaned children need a moment to let go of the shared memory, so the first tries may fail.
            if self.stopping or status == 0 or time.monotonic() > restart_until:
                return status
            time.sleep(0.1)
            with self.changing:
                if self.stopping:
                    return status
                self.server = self.launch()
                if self.stopping:  # the handler ran during the launch and told the dead one
                    self.stop()

    def stop_when_unused(self) -> None:
        """Sleep in the kernel until no user is left, then shut the server down."""
        with (self.folder / "users.lock").open("a") as users, (self.folder / "start.lock").open("a") as start:
            while True:
                fcntl.flock(users, fcntl.LOCK_EX)
                fcntl.flock(users, fcntl.LOCK_UN)
                # A newcomer holds start.lock while it becomes a user. Looking again under that lock prevents the race
                # "it saw the server running, and then the server was stopped".
                fcntl.flock(start, fcntl.LOCK_EX)
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    fcntl.flock(start, fcntl.LOCK_UN)
                    continue
                self.stop()
                # With start.lock held, nobody can find the server on its way down.
                with suppress(subprocess.TimeoutExpired):
                    self.server.wait(SHUTDOWN_SECONDS)
                    return
                self.server.send_signal(signal.SIGQUIT)
                self.server.wait()
                return

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask the server for a fast shutdown: open transactions are rolled back."""
        with self.changing:
            self.stopping = True
            with suppress(ProcessLookupError):
                self.server.send_signal(signal.SIGINT)


def main() -> int:
    """Leave the starter, then run the server that the first argument (JSON) describes."""
    spec = json.loads(sys.argv[1])
    if os.fork():
        # The starter reaps this process and never has the other one as its child.
        os._exit(0)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The starter also holds the reading end of a pipe: its end-of-file means that guard and server are gone.
    with (Path(spec["folder"]) / "guard.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        guard = Guard(spec)
        signal.signal(signal.SIGTERM, guard.stop)
        threading.Thread(target=guard.stop_when_unused, daemon=True).start()
        return guard.run()


if __name__ == "__main__":
    sys.exit(main())
