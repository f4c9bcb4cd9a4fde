"""The worker: claims jobs while it has free slots, runs them, and ends in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import psycopg

from queue_pg import schedule_store_sync, store, store_sync
from queue_pg.errors import ConfigError, InvalidJob
from queue_pg.maintenance import MaintenanceLoop
from queue_pg.models import Outcome
from queue_pg.schema import check, package_version
from queue_pg.sqlstates import translate_error
from queue_pg.submission import encode_kinds
from queue_pg.surroundings import REAL, Surroundings
from queue_pg.wakeup import CANCEL, DUE, WAKE, Wakeups
from queue_pg_workers.attempt import CANCEL_PATIENCE_SECONDS, Attempts
from queue_pg_workers.claiming import Claiming, wait
from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.event_buffer import EventBuffer, Key
from queue_pg_workers.finisher import Finisher
from queue_pg_workers.handler_link import WorkerHandlerLink
from queue_pg_workers.heartbeat import Heartbeat, Report
from queue_pg_workers.kinds import Handler, traced_handlers
from queue_pg_workers.leases import Held, Interruption, Leases
from queue_pg_workers.link import Link, primary_dsn
from queue_pg_workers.outage import Outage
from queue_pg_workers.outcomes import released
from queue_pg_workers.signals import Signals
from queue_pg_workers.slots import Slots
from queue_pg_workers.tally import Gauges, MetricsServer, Tally
from queue_pg_workers.threads import HandlerThreads
from queue_pg_workers.unheard import unheard

log = logging.getLogger(__name__)

# When no handler runs any more: for recording what is left, letting go of everything and forgetting the worker's row,
# database or not. Of a short grace half, because it is a part of it; a very short one is for handlers alone.
CLEANUP_SECONDS = 2.0
SHORTEST_GRACE_SECONDS = 3.0
# The same when the grace is over and jobs are handed back.
HANDING_BACK_SECONDS = 4.0
# A handler that was interrupted has so long; a little later its slot is free.
INTERRUPTION_SECONDS = CANCEL_PATIENCE_SECONDS + 0.2
# What was cut off has noticed by then.
CUT_SECONDS = 0.05
# For the process, when the worker has ended.
LEAVING_SECONDS = 0.4
# For answers over lines that may be dead: a part of the grace.
PATIENCE = 1 / 5
SHORTEST_PATIENCE_SECONDS = 0.5


def cleanup_seconds(grace_seconds: float) -> float:
    """Return how long a worker may take to let go of everything when its jobs have ended."""
    if grace_seconds < SHORTEST_GRACE_SECONDS:
        return CLEANUP_SECONDS
    return min(CLEANUP_SECONDS, grace_seconds / 2)


class Worker:
    """One worker process's work. `await run()` once; `stop()` it."""

    def __init__(
        self,
        config: WorkerConfig,
        handlers: Mapping[str, Handler],
        *,
        signals: Signals | None = None,
        surroundings: Surroundings = REAL,
    ) -> None:
        self.config = config
        self.id = config.identity()
        self.signals = signals or Signals()
        self.leases = Leases()
        self._surroundings = surroundings
        self._handlers = traced_handlers(handlers)
        self.tally = None if config.metrics_port is None else Tally()
        if self.tally is not None:
            self.signals.tap("database_error", self.tally.failed)
        self._dsn = primary_dsn(config.dsn)
        self._application = f"queue-pg worker {self.id}"[:63]
        self._claiming = Link(self._dsn, application=self._application, surroundings=surroundings)
        self._finishing = Link(self._dsn, application=self._application, surroundings=surroundings)
        self._for_handlers = Link(self._dsn, application=self._application, surroundings=surroundings)
        self._events = EventBuffer(
            self._for_handlers, signals=self.signals, on_lost=self._has_lost, surroundings=surroundings
        )
        self._slots = Slots(config.concurrency)
        self._attempts = Attempts(
            name=self.id,
            signals=self.signals,
            on_outcome=self._has_outcome,
            on_ended=self._has_ended,
            surroundings=surroundings,
        )
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._metrics: MetricsServer | None = None
        self._finisher = Finisher(
            self._finishing,
            self.leases,
            # A batch on its way and one that gathers meanwhile.
            max_unflushed=2 * config.concurrency,
            signals=self.signals,
            on_room=self._slots.room.set,
            tally=self.tally,
            surroundings=surroundings,
        )
        # Daemon threads, unlike those of asyncio.to_thread: a connect that hangs must not delay the end.
        self._threads = HandlerThreads(name=f"{self.id}-housekeeping", surroundings=surroundings)
        self.wakeups = Wakeups(
            primary_dsn(config.listen_dsn or config.dsn),
            (WAKE, CANCEL, DUE),
            enabled=config.notify,
            application=self._application,
            surroundings=surroundings,
        )
        self._heartbeat = Heartbeat(
            self._dsn,
            application=self._application,
            worker_id=self.id,
            leases=self.leases,
            claim_asked_at=lambda: self._claims.asked_at,
            listening=lambda: self.wakeups.listening,
            report=self._report,
            on_fleet=self._on_fleet,
            register=self._register,
            lease_seconds=config.lease_seconds,
            signals=self.signals,
            surroundings=surroundings,
        )
        self._claims = Claiming(
            config,
            self.id,
            self._handlers,
            link=self._claiming,
            leases=self.leases,
            slots=self._slots,
            attempts=self._attempts,
            finisher=self._finisher,
            cover=self._heartbeat.cover,
            listening=lambda: self.wakeups.listening,
            signals=self.signals,
            handler_link=WorkerHandlerLink(self._for_handlers, self._events),
            tally=self.tally,
            surroundings=surroundings,
        )

    def stop(self, *, now: bool = False) -> None:
        """Claim no more, and end when the running jobs have, or the grace has passed; `now`: hand them back at once."""
        self._stop.set()
        if now:
            self._stop_now.set()
        self._claims.stop()

    @property
    def _links(self) -> tuple[Link, ...]:
        return self._claiming, self._finishing, self._for_handlers

    @property
    def stuck(self) -> int:
        """How many handlers did not end although they were asked to."""
        return len(self._slots)

    async def run(self) -> None:
        """Work until stopped. Raise SchemaError when the database's schema does not fit this code."""
        # While the database is away, too: that is when people look.
        self._metrics = self._serve_metrics()
        try:
            if await self._start():
                await self._work()
        finally:
            if self._metrics is not None:
                await self._blocking(self._metrics.close, timeout_seconds=1.0)
            self._threads.close()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        # The empty payload concerns all queues.
        subscriptions = [
            self.wakeups.subscribe(WAKE, queue, callback=lambda: _call_soon(loop, self._claims.look))
            for queue in ("", *self.config.queues)
        ]
        subscriptions.append(self.wakeups.subscribe(CANCEL, self.id, callback=self._heartbeat.check_soon))
        maintenance_stop = asyncio.Event()
        maintenance = MaintenanceLoop(
            self._dsn, self.wakeups, defaults=self.config.defaults, surroundings=self._surroundings
        )
        self.wakeups.start()
        self._heartbeat.start()
        log.info("worker %s serves %s with %d slots", self.id, ", ".join(self.config.queues), self.config.concurrency)
        self.signals.emit("started")
        # Those that end by themselves when they are told to, and then all.
        ending = [asyncio.create_task(self._finisher.run(), name="finishing")]
        storing = asyncio.create_task(self._events.run(), name="storing events")
        claiming = asyncio.create_task(self._claims.run(), name="claiming")
        claiming.add_done_callback(lambda _: self._slots.room.set())
        if self.config.maintenance:
            ending.append(asyncio.create_task(maintenance.run(maintenance_stop), name="maintenance"))
        background = [
            *ending,
            claiming,
            asyncio.create_task(self._claims.start(), name="starting"),
            storing,
            asyncio.create_task(
                self.leases.fence(on_fenced=_log_fenced, clock=self._surroundings.monotonic), name="fence"
            ),
        ]
        try:
            await self._until_stopped(background)
            log.info("worker %s is stopping, %d jobs are running", self.id, len(self._slots))
            self.signals.emit("stopping")
            self._heartbeat.beat_soon()
            await self._drain(self.config.grace_seconds, claiming, maintenance_stop)
        finally:
            # Also after an error of our own: hand back what we hold.
            maintenance_stop.set()
            await self._clean_up(claiming, storing, ending, background)
            for subscription in subscriptions:
                subscription.close()

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

    def _serve_metrics(self) -> MetricsServer | None:
        if self.tally is None or self.config.metrics_port is None:
            return None
        gauges = Gauges(
            worker_id=self.id,
            version=package_version(),
            capacity=self.config.concurrency,
            busy=lambda: len(self._slots),
            unrecorded=lambda: self._finisher.unflushed,
            listening=lambda: self.wakeups.listening,
        )
        server = MetricsServer(self.tally, gauges, host=self.config.metrics_host, port=self.config.metrics_port)
        log.info("metrics on http://%s:%d/metrics", self.config.metrics_host, server.port)
        return server

    @property
    def metrics_port(self) -> int | None:
        """Where Prometheus is answered, while the worker runs."""
        return None if self._metrics is None else self._metrics.port

    # --- starting -----------------------------------------------------------------------------------------------------

    async def _start(self) -> bool:
        """Wait for the database, check its schema and register; return False when stopped before that."""
        outage = Outage("start-up", log=log, signals=self.signals, surroundings=self._surroundings)
        while not self._stop.is_set():
            try:
                await self._unless_stopped(self._check_and_register)
            except (psycopg.Error, OSError) as error:
                await wait(self._stop, outage.failed(error))
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
        with self._surroundings.connect(self._dsn, application=self._application) as connection:
            check(connection)
            store_sync.register_kinds(connection, encode_kinds([handler.spec for handler in self._handlers.values()]))
            self._register_schedules(connection)
            self._register(connection)

    def _register_schedules(self, connection: psycopg.Connection[Any]) -> None:
        for schedule in (handler.schedule for handler in self._handlers.values()):
            if schedule is None:
                continue
            try:
                registered = schedule_store_sync.register_schedule(connection, schedule.params())
            except (psycopg.Error, InvalidJob) as error:
                fault = error if isinstance(error, InvalidJob) else translate_error(error)
                if isinstance(fault, InvalidJob):
                    raise ConfigError(
                        f"The schedule of the task {schedule.kind!r} cannot be: {fault.message}."
                    ) from error
                raise
            if not registered:
                log.info("the schedule %s is as people have set it, not as the code of its task says", schedule.kind)

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
            active=len(self._slots),
            processed=self._finisher.processed,
            failed=self._finisher.failed,
            stopping=self._stop.is_set(),
        )

    def _on_fleet(self, fleet: int) -> None:
        self._claims.share(fleet)

    # --- a job's way --------------------------------------------------------------------------------------------------

    def _has_outcome(self, held: Held, outcome: Outcome | None) -> None:
        if self.tally is not None:
            self.tally.ended(held)
        if outcome is not None:
            if self._events.silent:
                self._finisher.add(held)
            else:
                # What the handler has said comes before how it ended.
                self._events.when_stored(held.key, lambda: self._finisher.add(held))
            return
        self.leases.remove([held])
        self.signals.emit("finished", (UUID(held.job.id), False, None))

    def _has_ended(self, held: Held) -> None:
        self._slots.give_back(held)
        if not self._events.silent:
            self._events.forget(held.key)
        if self.signals.heard("slot_freed"):
            self.signals.emit("slot_freed", UUID(held.job.id))

    def _has_lost(self, key: Key) -> bool:
        """Stop the handler of a lease that turned out to be lost; return whether we still held it."""
        held = self.leases.get(key)
        if held is not None:
            held.interrupt(Interruption.LEASE_LOST)
        return held is not None

    # --- ending -------------------------------------------------------------------------------------------------------

    def hand_back_from_thread(self) -> None:
        """Release all jobs by a connection of its own, for when the loop is blocked and the process must end."""
        held, claim_asked_at = self.leases.all(), self._claims.asked_at
        try:
            with self._surroundings.connect(self._dsn, application=self._application) as connection:
                outcomes = [released(one.job) for one in held]
                if claim_asked_at is not None:
                    found = unheard(
                        connection, self.id, held, claim_asked_at=claim_asked_at, surroundings=self._surroundings
                    )
                    outcomes += [Outcome(str(id_), token, "release") for id_, token in found]
                store_sync.finish(connection, outcomes)
                store_sync.forget_worker(connection, self.id)
        except (psycopg.Error, OSError) as error:
            log.warning("worker %s could not hand its jobs back: %s", self.id, error)

    async def _drain(self, grace_seconds: float, claiming: asyncio.Task[None], maintenance_stop: asyncio.Event) -> None:
        """Wait for the running jobs to end and to be recorded, and for the claim under way, whose jobs are handed back.

        What a claim brings to a worker that has ended would be nobody's until its leases run out. Handlers have
        the whole grace; without them this ends in time for the rest to be a part of it too.
        """
        deadline = without_handlers = self._surroundings.monotonic() + grace_seconds
        if grace_seconds >= SHORTEST_GRACE_SECONDS:
            without_handlers -= cleanup_seconds(grace_seconds) + LEAVING_SECONDS
        # What a dead line has swallowed is sent over another one while there is time for it.
        patience = max(grace_seconds * PATIENCE, SHORTEST_PATIENCE_SECONDS)
        self._finishing.expect_answers_within(patience)
        while not self._stop_now.is_set():
            if not (self._slots or maintenance_stop.is_set()):
                # Nobody who may fail by it says anything over this line any more.
                self._for_handlers.expect_answers_within(patience)
                # Another process leads better than one that is about to go.
                maintenance_stop.set()
            left = (deadline if self._slots else without_handlers) - self._surroundings.monotonic()
            if left <= 0:
                return
            self._slots.room.clear()
            if not (self._slots or self._events.holding or self._finisher.unflushed) and claiming.done():
                return
            await wait(self._slots.room, left)

    async def _clean_up(
        self,
        claiming: asyncio.Task[None],
        storing: asyncio.Task[None],
        ending: list[asyncio.Task[None]],
        background: list[asyncio.Task[None]],
    ) -> None:
        """Hand running jobs back and let go of everything, in a bounded time even without a database."""
        self._stop.set()
        self._claims.stop()
        seconds = cleanup_seconds(self.config.grace_seconds)
        if self._slots:
            # The grace is over, or was skipped.
            seconds = HANDING_BACK_SECONDS
            for link in self._links:
                link.hurry(INTERRUPTION_SECONDS + seconds)
            for held in self.leases.all():
                held.interrupt(Interruption.SHUTDOWN)
            log.warning("worker %s hands back %d running jobs", self.id, len(self._slots))
            await self._slots.all_free(INTERRUPTION_SECONDS)
        for link in self._links:
            link.hurry(seconds)
        self._events.close()
        # Both bring outcomes. A claim is cancelled within this time, and cut off, too.
        self._claiming.interrupt_in(seconds / 12)
        await asyncio.wait([claiming, storing], timeout=seconds / 4)
        self._events.give_up()
        self._finisher.close()
        # What is recorded in this time needs no heartbeat more.
        closing = [self._heartbeat.stop, self.wakeups.close]
        if self._metrics is not None:
            closing.append(self._metrics.close)
        threads = asyncio.create_task(self._blocking(*closing, timeout_seconds=seconds / 2))
        await asyncio.wait(ending, timeout=seconds / 2)
        for link in self._links:
            link.cut()
        # What was cut off ends by itself; what is cancelled asks the server first.
        await asyncio.wait([claiming, storing, *ending], timeout=CUT_SECONDS)
        for task in background:
            task.cancel()
        await asyncio.wait(background, timeout=seconds / 8)
        # Before the row is forgotten, or a last heartbeat would bring it back.
        await threads
        await self._forget()
        self._attempts.close()
        for link in self._links:
            await link.close()
        log.info("worker %s has ended", self.id)

    async def _forget(self) -> None:
        """Remove the worker's row; should the line for it be dead, over another one."""
        self._claiming.expect_answers_within(SHORTEST_PATIENCE_SECONDS)
        try:
            try:
                await self._claiming.run(self._leave)
            except psycopg.OperationalError:
                await self._claiming.run(self._leave)
        except (psycopg.Error, OSError) as error:
            log.warning("worker %s could not remove its row: %s", self.id, error)

    async def _leave(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if self._claims.owes_arming:
            await store.arm(connection, self.config.queues)
        await store.forget_worker(connection, self.id)

    async def _blocking(self, *functions: Callable[[], None], timeout_seconds: float) -> None:
        """Run functions that block at the same time, and wait for them at most so long."""
        running = {asyncio.wrap_future(self._threads.submit(fn)) for fn in functions}
        await asyncio.wait(running, timeout=timeout_seconds)


def _call_soon(loop: asyncio.AbstractEventLoop, fn: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(fn)


def _log_fenced(held: Held) -> None:
    about = {"job_id": held.job.id, "kind": held.job.kind, "attempt": held.job.attempt}
    log.warning("job %s: its lease may have run out, stopping its handler", held.job.id, extra=about)
