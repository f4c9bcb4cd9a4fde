"""The program `queue-pg`. Outside the package, whose import takes a moment in which Ctrl-C would show a traceback."""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130


def main() -> int:
    """Import and run the command line; end at once with 130 when Ctrl-C comes during the import."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a shell has it ignored for what runs in the background
        # Not an exception: the import system and C code swallow or wrap one. There is nothing to put in order yet.
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from queue_pg.cli import main as command_line

    signal.signal(signal.SIGINT, before)
    return command_line()
