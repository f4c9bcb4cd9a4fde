"""Who goes on next, and what time it is: both as a seed says.

A `Scheduler` runs strands: the event loops of simulated processes and their threads, each a greenlet that runs until it
has nothing to do or waits. Of those that could go on one is drawn by lot; when there is none, time goes to the next
timer. Nothing sleeps, so an hour takes as long as what happens in it.
"""

# An event loop is made of what asyncio keeps for its own loops, and a greenlet's context has no other door.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import heapq
import random
from asyncio import events
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

from greenlet import getcurrent, greenlet

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Threads and timers wake up a little late, never exactly.
LATENESS_SECONDS: Final = 0.0005
# What a step of a strand takes: whoever goes round and round without a rest moves the clock too.
STEP_SECONDS: Final = 0.00001


class Stuck(Exception):
    """Nobody can go on, and nothing is due."""


class Crashed(BaseException):
    """Unwinds the threads of a process that was killed; no code of ours catches it."""


class Scheduler:
    """Virtual time and all strands. `trace` gets a line for each thing that is worth telling."""

    def __init__(self, seed: int) -> None:
        self.random: Final = random.Random(seed)
        self.now = 1_000.0
        self.steps = 0
        self.trace: list[str] = []
        self._ready: list[Strand] = []
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._timer_count = 0
        self.main: Final[Any] = getcurrent()
        # What went wrong in a strand: an error of the simulation's own.
        self.failure: BaseException | None = None

    def tell(self, *words: object) -> None:
        self.trace.append(f"{self.now:.6f} {' '.join(map(str, words))}")

    def call_at(self, when: float, function: Callable[[], object]) -> None:
        """Call `function` at a time, in no strand."""
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, function))

    def call_in(self, seconds: float, function: Callable[[], object]) -> None:
        self.call_at(self.now + seconds, function)

    def late(self) -> float:
        return self.random.random() * LATENESS_SECONDS

    def make_ready(self, strand: Strand) -> None:
        if not strand.queued:
            strand.queued = True
            self._ready.append(strand)

    def run(self, *, until: Callable[[], bool], most_steps: int = 5_000_000) -> None:
        """Let the strands go on until a condition holds. Raises Stuck, and what went wrong in a strand."""
        ready, timers, chance = self._ready, self._timers, self.random
        while not until():
            if not ready:
                if not timers:
                    raise Stuck
                self.now = max(self.now, timers[0][0])
            while timers and timers[0][0] <= self.now:
                heapq.heappop(timers)[2]()
            if not ready:
                continue
            index = chance.randrange(len(ready)) if len(ready) > 1 else 0
            strand, ready[index] = ready[index], ready[-1]
            ready.pop()
            strand.queued = False
            if strand.process.parks(strand):
                continue
            self.steps += 1
            self.now += STEP_SECONDS
            self._enter(strand)
            if self.steps > most_steps:
                raise Stuck(f"{most_steps} steps")

    def _enter(self, strand: Strand) -> None:
        events._set_running_loop(strand.running_loop)
        try:
            strand.greenlet.switch()
        finally:
            events._set_running_loop(None)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def leave(self) -> None:
        """Give the turn back; called in a strand, which goes on here once it is ready and drawn."""
        strand = self.current()
        strand.running_loop = events._get_running_loop()
        self.main.switch()
        if strand.process.crashed:
            raise Crashed

    def current(self) -> Strand:
        strand: Strand | None = getattr(getcurrent(), "strand", None)
        assert strand is not None, "only simulated threads and loops may wait"
        return strand

    def unwind(self, strand: Strand) -> None:
        """Have a strand of a crashed process come to its end."""
        for _ in range(100):
            if strand.greenlet.dead or not strand.greenlet:
                return
            strand.greenlet.throw(Crashed)


class Strand:
    """Something that runs by itself: a thread, or an event loop in the main one."""

    def __init__(self, process: Process, function: Callable[[], object], name: str) -> None:
        self.process = process
        self.name = name
        self.queued = False
        self.running_loop: asyncio.AbstractEventLoop | None = None
        self.greenlet: Any = greenlet(function, parent=process.scheduler.main)
        self.greenlet.strand = self
        # A thread starts with an empty context.
        self.greenlet.gr_context = Context()


class Process:
    """A simulated process: an event loop and threads, which crash, freeze and end together."""

    def __init__(self, scheduler: Scheduler, name: str, number: int) -> None:
        self.scheduler = scheduler
        self.name = name
        self.number = number
        self.crashed = False
        self.frozen = False
        self.loop_blocked = False
        self.strands: list[Strand] = []
        self._parked: list[Strand] = []
        self.loop = SimulatedLoop(self)
        self.on_crash: list[Callable[[], object]] = []

    def parks(self, strand: Strand) -> bool:
        """Return whether a strand cannot run now; it is kept until it can."""
        if self.crashed:
            return True
        if self.frozen or (self.loop_blocked and strand is self.loop.strand):
            self._parked.append(strand)
            return True
        return False

    def thaw(self) -> None:
        """Go on after `frozen` or `loop_blocked`."""
        self.frozen = self.loop_blocked = False
        parked, self._parked = self._parked, []
        for strand in parked:
            self.scheduler.make_ready(strand)

    def crash(self) -> None:
        """Nothing of it runs any more."""
        self.crashed = True
        self._parked.clear()
        for function in self.on_crash:
            function()

    def bury(self) -> None:
        """Let go of what a process still holds; when nothing matters any more, for `finally` blocks run now."""
        self.crashed = True
        for strand in self.strands:
            if strand is not self.loop.strand:
                self.scheduler.unwind(strand)
        self.loop.bury()

    def start(self, coroutine: Any, name: str) -> asyncio.Task[Any]:
        """Run a coroutine in the event loop of the process."""
        return self.loop.create_task(coroutine, name=name)

    def thread(self, target: Callable[[], object], name: str) -> SimulatedThread:
        return SimulatedThread(self, target, name)


class SimulatedThread:
    """What threading.Thread is."""

    def __init__(self, process: Process, target: Callable[[], object], name: str) -> None:
        self._process = process
        self._target = target
        self._alive = False
        self._joining: list[_Wait] = []
        self._strand = Strand(process, self._run, name)

    def start(self) -> None:
        self._alive = True
        self._process.strands.append(self._strand)
        self._process.scheduler.make_ready(self._strand)

    def is_alive(self) -> bool:
        return self._alive

    def join(self, timeout: float | None = None) -> None:
        if self._alive:
            wait_in(self._process.scheduler, self._joining, timeout)

    def _run(self) -> None:
        try:
            self._target()
        except Crashed:
            return
        except BaseException as error:
            self._process.scheduler.failure = error
        self._alive = False
        wake_all(self._joining)


class _Wait:
    """One strand that waits for something or for its time."""

    __slots__ = ("over", "scheduler", "strand", "woken")

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.strand = scheduler.current()
        self.over = self.woken = False

    def end(self, *, woken: bool) -> None:
        if not self.over:
            self.over, self.woken = True, woken
            self.scheduler.make_ready(self.strand)


def wait_in(scheduler: Scheduler, waiting: list[_Wait], timeout: float | None) -> bool:
    """Have the current strand wait in a list until `wake_all`, or for so long; return whether it was woken."""
    wait = _Wait(scheduler)
    waiting.append(wait)
    if timeout is not None:
        scheduler.call_in(max(timeout, 0.0) + scheduler.late(), lambda: wait.end(woken=False))
    scheduler.leave()
    if wait in waiting:
        waiting.remove(wait)
    return wait.woken


def wake_all(waiting: list[_Wait]) -> None:
    woken = list(waiting)
    waiting.clear()
    for wait in woken:
        wait.end(woken=True)


class SimulatedEvent:
    """What threading.Event is."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self._waiting: list[_Wait] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        wake_all(self._waiting)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            wait_in(self._scheduler, self._waiting, timeout)
        return self._set


class SimulatedInbox(Generic[T]):
    """What queue.SimpleQueue is."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._items: deque[T] = deque()
        self._waiting: list[_Wait] = []

    def put(self, item: T) -> None:
        self._items.append(item)
        if self._waiting:
            self._waiting.pop(0).end(woken=True)

    def get(self) -> T:
        while not self._items:
            wait_in(self._scheduler, self._waiting, None)
        return self._items.popleft()


class SimulatedTimer:
    """What threading.Timer is."""

    def __init__(self, process: Process, seconds: float, function: Callable[[], object]) -> None:
        self._process = process
        self._seconds = seconds
        self._function = function
        self._cancelled = False

    def start(self) -> None:
        scheduler = self._process.scheduler
        scheduler.call_in(self._seconds + scheduler.late(), self._ring)

    def cancel(self) -> None:
        self._cancelled = True

    def _ring(self) -> None:
        if not self._cancelled and not self._process.crashed:
            self._process.thread(self._go, "timer").start()

    def _go(self) -> None:
        # Frozen or slow, it may have been cancelled since.
        if not self._cancelled:
            self._function()


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop whose callbacks run one after the other in its strand, each when it is drawn."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process
        self._scheduler = process.scheduler
        self._callbacks: deque[events.Handle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []
        self.errors: list[str] = []
        self.strand = Strand(process, self._go, f"{process.name} loop")
        self.strand.running_loop = self
        process.strands.append(self.strand)
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note_error)

    # --- what asyncio asks of a loop ----------------------------------------------------------------------------------

    def time(self) -> float:
        return self._scheduler.now

    def is_running(self) -> bool:
        # Of itself it never runs, the scheduler runs it.
        return False

    def set_debug(self, enabled: bool) -> None:
        self._debug = False

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None) -> events.Handle:
        handle = events.Handle(callback, args, self, context)
        self._add(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> events.Handle:
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> events.TimerHandle:
        handle = events.TimerHandle(when, callback, args, self, context)
        self._scheduler.call_at(when + self._scheduler.late(), lambda: None if handle._cancelled else self._add(handle))
        return handle

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        pass

    # --- running ------------------------------------------------------------------------------------------------------

    def _add(self, handle: events.Handle) -> None:
        self._callbacks.append(handle)
        self._scheduler.make_ready(self.strand)

    def _go(self) -> None:
        try:
            while True:
                while self._callbacks:
                    handle = self._callbacks.popleft()
                    if not handle._cancelled:
                        # Handlers that block wait in here.
                        handle._run()
                        if self._callbacks:
                            self._scheduler.make_ready(self.strand)
                        break
                self._scheduler.leave()
        except Crashed:
            return
        except BaseException as error:
            self._scheduler.failure = error

    def _make_task(self, loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        self._tasks.append(task)
        if len(self._tasks) > 1_000:
            self._tasks = [one for one in self._tasks if not one.done()]
        return task

    def _note_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    def bury(self) -> None:
        """Close what was suspended, without a word."""
        events._set_running_loop(self)
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with suppress(BaseException):
                    task.get_coro().close()
        events._set_running_loop(None)
        self._callbacks.clear()
        self._tasks.clear()
        self.close()
