"""The worker: claims jobs while it has free slots, runs them, and ends in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from queue_pg import store, store_sync
from queue_pg.connections import connect
from queue_pg.maintenance import MaintenanceLoop
from queue_pg.models import ClaimedJob, Outcome
from queue_pg.schema import check, package_version
from queue_pg.submission import encode_kinds
from queue_pg.wakeup import CANCEL, WAKE, Wakeups
from queue_pg_workers.attempt import CANCEL_PATIENCE_SECONDS, Attempts
from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.finisher import Finisher
from queue_pg_workers.heartbeat import Heartbeat, Report
from queue_pg_workers.kinds import Handler
from queue_pg_workers.leases import Held, Interruption, Leases
from queue_pg_workers.link import Link, primary_dsn
from queue_pg_workers.outage import Outage
from queue_pg_workers.outcomes import released, worker_error
from queue_pg_workers.signals import Signals
from queue_pg_workers.threads import HandlerThreads

log = logging.getLogger(__name__)

# After the grace: for handing jobs back and forgetting the worker's row, database or not.
CLEANUP_SECONDS = 2.0
LAST_CLAIM_SECONDS = 1.0


class Worker:
    """One worker process's work. `await run()` once; `stop()` it."""

    def __init__(
        self, config: WorkerConfig, handlers: Mapping[str, Handler], *, signals: Signals | None = None
    ) -> None:
        self.config = config
        self.id = config.identity()
        self.signals = signals or Signals()
        self.leases = Leases()
        self._handlers = dict(handlers)
        self._dsn = primary_dsn(config.dsn)
        self._application = f"queue-pg worker {self.id}"[:63]
        self._claiming = Link(self._dsn, application=self._application)
        self._finishing = Link(self._dsn, application=self._application)
        self._attempts = Attempts(name=self.id, signals=self.signals)
        self._running: set[asyncio.Task[None]] = set()
        # Jobs may be there; and, apart from it because an empty queue stays empty when a slot gets free: slots may be.
        self._hint = asyncio.Event()
        self._room = asyncio.Event()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._finisher = Finisher(
            self._finishing,
            self.leases,
            # A batch on its way and one that gathers meanwhile.
            max_unflushed=2 * config.concurrency,
            signals=self.signals,
            on_room=self._room.set,
        )
        # Daemon threads, unlike those of asyncio.to_thread: a connect that hangs must not delay the end.
        self._threads = HandlerThreads(name=f"{self.id}-housekeeping")
        self.wakeups = Wakeups(self._dsn, (WAKE, CANCEL), enabled=config.notify, application=self._application)
        self._heartbeat = Heartbeat(
            self._dsn,
            application=self._application,
            worker_id=self.id,
            leases=self.leases,
            listening=lambda: self.wakeups.listening,
            report=self._report,
            register=self._register,
            lease_seconds=config.lease_seconds,
            signals=self.signals,
        )

    def stop(self, *, now: bool = False) -> None:
        """Claim no more, and end when the running jobs have, or the grace has passed; `now`: hand them back at once."""
        if not self._stop.is_set():
            self._stop.set()
            self._claiming.interrupt_in(LAST_CLAIM_SECONDS)
        if now:
            self._stop_now.set()
        self._hint.set()
        self._room.set()

    @property
    def stuck(self) -> int:
        """How many handlers did not end although they were asked to."""
        return len(self._running)

    async def run(self) -> None:
        """Work until stopped. Raise SchemaError when the database's schema does not fit this code."""
        if not await self._start():
            return
        loop = asyncio.get_running_loop()
        wake = self.wakeups.subscribe(WAKE, callback=lambda: _call_soon(loop, self._hint.set))
        cancel = self.wakeups.subscribe(CANCEL, self.id, callback=self._heartbeat.check_soon)
        maintenance_stop = asyncio.Event()
        maintenance = MaintenanceLoop(self._dsn, self.wakeups, defaults=self.config.defaults)
        self.wakeups.start()
        self._heartbeat.start()
        log.info("worker %s serves %s with %d slots", self.id, ", ".join(self.config.queues), self.config.concurrency)
        self.signals.emit("started")
        finishing = asyncio.create_task(self._finisher.run(), name="finishing")
        background = [
            finishing,
            asyncio.create_task(self._claim_until_stopped(), name="claiming"),
            asyncio.create_task(self.leases.fence(on_fenced=_log_fenced), name="fence"),
        ]
        if self.config.maintenance:
            background.append(asyncio.create_task(maintenance.run(maintenance_stop), name="maintenance"))
        try:
            await self._until_stopped(background)
            log.info("worker %s is stopping, %d jobs are running", self.id, len(self._running))
            self.signals.emit("stopping")
            self._heartbeat.beat_soon()
            await self._drain(self.config.grace_seconds)
        finally:
            # Also after an error of our own: hand back what we hold.
            maintenance_stop.set()
            await self._clean_up(finishing, background)
            wake.close()
            cancel.close()

    async def _until_stopped(self, background: list[asyncio.Task[None]]) -> None:
        """Wait for the order to stop. An error in a background task is ours: it ends the worker instead of hiding."""
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({stopped, *background}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        for task in background:
            if task.done() and not self._stop.is_set():
                task.result()
                raise RuntimeError(f"the task {task.get_name()!r} has ended before the worker")

    # --- starting -----------------------------------------------------------------------------------------------------

    async def _start(self) -> bool:
        """Wait for the database, check its schema and register; return False when stopped before that."""
        outage = Outage("start-up", log=log, signals=self.signals)
        while not self._stop.is_set():
            try:
                await self._unless_stopped(self._check_and_register)
            except (psycopg.Error, OSError) as error:
                await _wait(self._stop, outage.failed(error))
            else:
                outage.over()
                return not self._stop.is_set()
        return False

    async def _unless_stopped(self, fn: Callable[[], None]) -> None:
        """Run something that blocks; when told to stop, leave it to its thread."""
        blocking = asyncio.wrap_future(self._threads.submit(fn))
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({blocking, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if blocking.done():
            blocking.result()

    def _check_and_register(self) -> None:
        with connect(self._dsn, application=self._application) as connection:
            check(connection)
            store_sync.register_kinds(connection, encode_kinds([handler.spec for handler in self._handlers.values()]))
            self._register(connection)

    def _register(self, connection: psycopg.Connection[Any]) -> None:
        store_sync.register_worker(
            connection,
            self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=package_version(),
            queues=self.config.queues,
            kinds=sorted(self._handlers),
            capacity=self.config.concurrency,
        )

    def _report(self) -> Report:
        return Report(
            active=len(self._running),
            processed=self._finisher.processed,
            failed=self._finisher.failed,
            stopping=self._stop.is_set(),
        )

    # --- claiming -----------------------------------------------------------------------------------------------------

    async def _claim_until_stopped(self) -> None:
        outage = Outage("claiming", log=log, signals=self.signals)
        while not self._stop.is_set():
            # Cleared before the look: what comes during it ends the wait after it.
            self._hint.clear()
            self._room.clear()
            free = self.config.concurrency - len(self._running)
            if free <= 0 or self._finisher.lagging:
                await self._room.wait()
                continue
            asked_at = time.monotonic()
            try:
                jobs = await self._claim(free)
            except (psycopg.Error, OSError) as error:
                await _wait(self._stop, outage.failed(error))
                continue
            outage.over()
            if jobs:
                self.signals.emit("claimed", len(jobs))
            for job in jobs:
                self._take(job, asked_at)
            if len(jobs) < free:
                self.signals.emit("idle")
                # A little early and never the same, so that a fleet does not poll in step.
                await _wait(self._hint, self.config.poll_seconds * random.uniform(0.7, 1.0))

    async def _claim(self, free: int) -> list[ClaimedJob]:
        return await self._claiming.run(
            lambda connection: store.claim(
                connection,
                self.id,
                self.config.queues,
                kinds=sorted(self._handlers),
                max_jobs=free,
                lease_seconds=self.config.lease_seconds,
            )
        )

    def _take(self, job: ClaimedJob, asked_at: float) -> None:
        held = Held(job, asked_at=asked_at)
        self.leases.add(held)
        if self._stop.is_set():
            self._finisher.add(held, released(job))
            return
        self._heartbeat.cover(job.lease_seconds)
        task = asyncio.create_task(self._run_job(held), name=f"job {job.id}")
        self._running.add(task)
        task.add_done_callback(self._freed)

    async def _run_job(self, held: Held) -> None:
        job = held.job
        recorded = False
        log.info("job %s (%s): attempt %d of %d begins", job.id, job.kind, job.attempt, job.max_attempts)

        def record(outcome: Outcome | None) -> None:
            nonlocal recorded
            recorded = True
            if outcome is None:
                self.leases.remove(held)
                self.signals.emit("finished", (held.job.id, False, None))
            else:
                self._finisher.add(held, outcome)

        try:
            await self._attempts.run(held, self._handlers[job.kind], record)
        except Exception as error:
            # Ours, not the handler's. The lease must not stay, or the heartbeat would renew it for ever.
            log.exception("job %s (%s): the worker failed to run it", job.id, job.kind)
            if not recorded:
                record(worker_error(job, error))

    def _freed(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self.signals.emit("slot_freed", task.get_name())
        self._room.set()

    # --- ending -------------------------------------------------------------------------------------------------------

    def hand_back_from_thread(self) -> None:
        """Release all jobs by a connection of its own, for when the loop is blocked and the process must end."""
        held = self.leases.all()
        try:
            with connect(self._dsn, application=self._application) as connection:
                store_sync.finish(connection, [released(one.job) for one in held])
                store_sync.forget_worker(connection, self.id)
        except (psycopg.Error, OSError) as error:
            log.warning("worker %s could not hand its jobs back: %s", self.id, error)

    async def _drain(self, grace_seconds: float) -> None:
        """Wait for the running jobs to end and to be recorded."""
        deadline = time.monotonic() + grace_seconds
        while (self._running or self._finisher.unflushed) and not self._stop_now.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._room.clear()
            await _wait(self._room, left)

    async def _clean_up(self, finishing: asyncio.Task[None], background: list[asyncio.Task[None]]) -> None:
        """Hand running jobs back and let go of everything, in a bounded time even without a database."""
        self._stop.set()
        for link in (self._claiming, self._finishing):
            link.hurry(CANCEL_PATIENCE_SECONDS + CLEANUP_SECONDS)
        for held in self.leases.all():
            held.interrupt(Interruption.SHUTDOWN)
        if self._running:
            log.warning("worker %s hands back %d running jobs", self.id, len(self._running))
            await asyncio.wait(self._running, timeout=CANCEL_PATIENCE_SECONDS + 0.2)
        self._finisher.close()
        await asyncio.wait({finishing}, timeout=CLEANUP_SECONDS)
        for link in (self._claiming, self._finishing):
            link.cut()
        for task in background:
            task.cancel()
        await asyncio.wait(background, timeout=0.5)
        # Before the row is forgotten, or a last heartbeat would bring it back.
        await self._blocking(self._heartbeat.stop, self.wakeups.close, timeout_seconds=1.0)
        try:
            await self._claiming.run(lambda connection: store.forget_worker(connection, self.id))
        except (psycopg.Error, OSError) as error:
            log.warning("worker %s could not remove its row: %s", self.id, error)
        self._attempts.close()
        self._threads.close()
        await self._claiming.close()
        await self._finishing.close()
        log.info("worker %s has ended", self.id)

    async def _blocking(self, *functions: Callable[[], None], timeout_seconds: float) -> None:
        """Run functions that block at the same time, and wait for them at most so long."""
        running = {asyncio.wrap_future(self._threads.submit(fn)) for fn in functions}
        await asyncio.wait(running, timeout=timeout_seconds)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most so long."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()


def _call_soon(loop: asyncio.AbstractEventLoop, fn: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(fn)


def _log_fenced(held: Held) -> None:
    log.warning("job %s: its lease may have run out, stopping its handler", held.job.id)
