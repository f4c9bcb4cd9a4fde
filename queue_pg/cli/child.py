"""`python -m queue_pg.cli.child serve ...`: a command that ends when the process that started it is gone.

The starter holds the writing end of a pipe and never writes. However it ends, even by `kill -9`, the kernel closes
that end, and the reading end here reports it. So nothing is left behind, on every POSIX system.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

LIFELINE_VARIABLE = "QUEUE_PG_LIFELINE_FD"
ORPHAN_GRACE_SECONDS = 10.0


def end_with_starter() -> None:
    """Watch the pipe named by the environment, if there is one; when the starter has gone, end this process group."""
    # Popped, because a program started from here must not watch a descriptor that it does not have.
    number = os.environ.pop(LIFELINE_VARIABLE, None)
    if number is not None:
        threading.Thread(target=_watch, args=(int(number),), name="lifeline", daemon=True).start()


def _watch(descriptor: int) -> None:
    while os.read(descriptor, 64):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # The main thread ends the process within the grace; this daemon thread then goes with it.
    threading.Event().wait(ORPHAN_GRACE_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> int:
    from queue_pg.cli import main as command_line

    end_with_starter()
    return command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
