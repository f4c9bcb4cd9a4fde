"""Forks that handlers make (`os.fork`, `multiprocessing`): a child is no worker, whatever it inherits of one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def handle_stop_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Install a handler of SIGTERM and SIGINT for this process alone: they end its forked children, as usual."""
    for number in STOP_SIGNALS:
        signal.signal(number, _InThisProcess(handler))


class ForkGuard:
    """Ends a child that the block has forked where it would leave the block.

    It would go on as a second worker, on the same connections and with the same leases. One guard, made in the process
    that is to go on, serves any number of blocks.
    """

    __slots__ = ("_generation",)

    def __init__(self) -> None:
        self._generation = _generation

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if _generation != self._generation:
            os._exit(_exit_code(error))


# How many forks this process is away from the first one; os.getpid() is a system call, too dear for every job.
_generation = 0


class _InThisProcess:
    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self._handler = handler
        self._pid = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            self._handler(number, frame)
        else:
            # A child that has kept the handler all the same: the leases are not its own to hand back.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _exit_code(error: BaseException | None) -> int:
    if isinstance(error, SystemExit):
        return error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)
    return int(error is not None)


def _ours() -> list[signal.Signals]:
    return [number for number in STOP_SIGNALS if isinstance(signal.getsignal(number), _InThisProcess)]


class _Forking(threading.local):
    mask: set[int | signal.Signals] | None = None


_forking = _Forking()


def _before_fork() -> None:
    # A terminate() right after the fork would reach the child before its reset: Python forgets such signals.
    if numbers := _ours():
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def _after_fork() -> None:
    mask, _forking.mask = _forking.mask, None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    global _generation
    _generation += 1
    try:
        for number in _ours():
            signal.signal(number, signal.SIG_DFL)
    finally:
        _after_fork()


# For the whole process and for good, but without effect where `handle_stop_signals` is not used.
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
