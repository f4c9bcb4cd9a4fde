"""Keeping the worker's own environment, with its passwords and keys, from the commands that it runs.

A process can read the environment and the memory of others of its user. One that is not dumpable is exempt from that,
as long as the other is not root.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Set for the processes that a worker starts for handlers, which have its environment too.
HIDE_VARIABLE = "QUEUE_PG_HIDE_PROCESS"
_PR_SET_DUMPABLE = 4


def hide_process() -> None:
    """Keep other processes of this user from reading this one, and those it starts for handlers; Linux only."""
    os.environ[HIDE_VARIABLE] = "1"
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
