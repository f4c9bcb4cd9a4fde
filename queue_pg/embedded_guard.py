"""Run one Postgres server, and stop it when nobody uses it any more.

Started as a script (`python -I -S embedded_guard.py SPEC`), so it imports the standard library only. It is the
server's parent and belongs to no terminal or process group of its starter: Ctrl-C and `kill -9` of a user of the
server do not reach it. Every user holds a shared `flock` on `users.lock`, which the kernel drops with the process;
when an exclusive one is to be had, nobody is left and the server is shut down.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

SHUTDOWN_SECONDS = 60.0


def main() -> int:
    """Read the spec (JSON: folder, command, log, env, uid, gid), leave the starter, stay until the server has ended."""
    spec = json.loads(sys.argv[1])
    if os.fork():
        # Through os._exit no buffer is flushed twice; the starter reaps this process and never sees the other one.
        os._exit(0)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder = Path(spec["folder"])
    guard_lock = (folder / "guard.lock").open("a")
    fcntl.flock(guard_lock, fcntl.LOCK_EX)
    with Path(spec["log"]).open("ab") as log:
        server = subprocess.Popen(  # noqa: S603 - the command comes from embedded.py, no shell is involved
            spec["command"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=spec["env"],
            user=spec["uid"],
            group=spec["gid"],
            extra_groups=None if spec["uid"] is None else [],
            umask=0o077,
            restore_signals=True,
        )

    def shut_down(_number: int, _frame: FrameType | None) -> None:
        server.send_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, shut_down)
    threading.Thread(target=stop_when_unused, args=(folder, server), daemon=True).start()
    # The starter reads the pipe's end-of-file as "the server has ended", so it is held until then.
    return server.wait()


def stop_when_unused(folder: Path, server: subprocess.Popen[bytes]) -> None:
    """Sleep in the kernel until no user is left, then shut the server down."""
    with (folder / "users.lock").open("a") as users, (folder / "start.lock").open("a") as start:
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
            with suppress(ProcessLookupError):
                server.send_signal(signal.SIGINT)
            try:
                server.wait(SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGQUIT)
                server.wait()
            return


if __name__ == "__main__":
    sys.exit(main())
