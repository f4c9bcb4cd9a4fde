"""The child of `HandlerProcesses`: `python -m queue_pg_workers.process_child <fd> <sys.path as JSON>`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from multiprocessing.connection import Connection
from types import FrameType

from queue_pg_workers.commands.hiding import HIDE_VARIABLE, hide_process
from queue_pg_workers.forks import handle_stop_signals

PARENT_CHECK_SECONDS = 1.0
# How handlers in processes of their own log: as the worker does, FORMAT:LEVEL.
HANDLER_LOG_VARIABLE = "QUEUE_PG_HANDLER_LOG"


def main() -> None:
    """Run one call after the other until the parent closes the connection."""
    # A Ctrl-C in the terminal reaches the whole group; the worker decides what becomes of its handlers. Not by
    # SIG_IGN, which programs that a handler starts would inherit: nobody could terminate them.
    handle_stop_signals(_leave_it_to_the_worker)
    if HIDE_VARIABLE in os.environ:
        hide_process()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sys.path[:] = json.loads(sys.argv[2])
    # Of the module by its own name, not of `__main__`: classes must be those that the parent pickles.
    from queue_pg import logs
    from queue_pg_workers.processes import ProcessCall

    if told := os.environ.get(HANDLER_LOG_VARIABLE):
        log_format, _, level = told.partition(":")
        logs.configure("json" if log_format == "json" else "text", level)
    descriptor = int(sys.argv[1])
    connection = Connection(descriptor)
    # Whoever else held it open would hide our death from the worker.
    os.set_inheritable(descriptor, False)
    os.register_at_fork(after_in_child=connection.close)
    while True:
        try:
            call: ProcessCall = connection.recv()
        except (EOFError, ConnectionError):
            return
        connection.send(call.run())


def _leave_it_to_the_worker(_number: int, _frame: FrameType | None) -> None:
    pass


def _end_with(parent: int) -> None:
    """End this process when the worker has died, which frees the machine of a handler that nobody waits for."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
