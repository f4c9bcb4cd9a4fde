"""What all requests of one process share: the queue's client, the claims that wait, and the end of the process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Self

from queue_pg import schema, store
from queue_pg.client import Pool, Queue
from queue_pg.connections import make_async_pool
from queue_pg.errors import ConfigError, DatabaseUnavailable, QueuePgError
from queue_pg.gathering import Gathering
from queue_pg.maintenance import MaintenanceLoop
from queue_pg.models import ClaimedJob, InstanceDefaults, Outcome
from queue_pg.payloads import UnreadableJson, decode_json, error_object
from queue_pg.settings import Settings
from queue_pg.submission import JobChecker
from queue_pg.wakeup import DUE, EVENTS, RESULT, TRANSITIONS, WAKE, Wakeups
from queue_pg_api.claim_room import ClaimRoom, Wanted
from queue_pg_api.kinds import Kinds
from queue_pg_api.metrics import DatabaseMetrics, HttpMetrics
from queue_pg_api.observing import Observing
from queue_pg_api.pages.figures import Figures
from queue_pg_api.queue_watch import QueueWatch

logger = logging.getLogger(__name__)

# Answers of probes are reused for this long, so that probing often costs the database little.
PROBE_SECONDS = 1.0
PROBE_TIMEOUT_SECONDS = 2.0
RESTART_SECONDS = 5.0
STOP_SECONDS = 3.0
# Only how often the task looks whether it is still wanted; claims that wait have a fallback of their own.
WAKE_WAIT_SECONDS = 60.0

MAX_TRANSFERS = 32

# A request waits this long for a connection before it is answered 503.
POOL_TIMEOUT_SECONDS = 3.0
# psycopg's pool doubles its pause between attempts to connect until it gives up after this long; the next request
# then starts anew. So the service is back within this time after the database is, however long that was away.
RECONNECT_SECONDS = 2.0


class Service:
    """Opened by the app's lifespan, or by whoever mounts the app into another: `async with app.state.service`."""

    def __init__(self, settings: Settings, queue: Queue | None = None) -> None:
        self.settings = settings
        self.org = settings.org
        self.openapi: dict[str, Any] = {}
        self.stopping = asyncio.Event()
        self._pool = _make_pool(settings) if queue is None else None
        self.queue = queue or Queue(
            settings.database_url,
            pool=self._pool,
            org=settings.org,
            notify=settings.notify,
            max_payload_bytes=settings.max_payload_bytes,
        )
        self.check = JobChecker(org=self.queue.org or self.org, max_payload_bytes=self.queue.max_payload_bytes)
        self.gathering = Gathering(partial(self.queue.connection, unsafe_to_repeat=True))
        listen_dsn = settings.listen_database_url or self.queue.dsn
        self._wakeups = self.queue.wakeups
        self._owns_wakeups = queue is None or not {WAKE, DUE, TRANSITIONS} <= set(self._wakeups.channels)
        if self._owns_wakeups:
            own = (WAKE, DUE, TRANSITIONS)
            channels = (*own, RESULT, EVENTS) if queue is None else own
            self._wakeups = Wakeups(listen_dsn, channels, enabled=settings.notify)
        if queue is None:
            # One listening connection serves all; the library alone listens for results and events only.
            self.queue.wakeups = self._wakeups
        self._watch = QueueWatch(self._wakeups, self._disarm)
        self.claims = ClaimRoom(self._claim, self._release, watch=self._watch)
        self.observing = Observing(self._wakeups, observe=self._observe, unobserve=self._unobserve)
        self.kinds = Kinds(self.queue, settings.unknown_kinds)
        # Slow bulk submissions hold a connection each; they must not take all that others need.
        self.bulk_slots = asyncio.Semaphore(max(1, settings.pool_size // 3))
        # Each holds a chunk or two of an artifact in memory; further ones wait.
        self.transfers = asyncio.Semaphore(MAX_TRANSFERS)
        self.figures = Figures(self.queue, self.stopping)
        self.http_metrics = HttpMetrics()
        self.database_metrics = DatabaseMetrics(self.queue)
        self._probe: asyncio.Task[bool] | None = None
        self._storing: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._maintaining: asyncio.Task[None] | None = None
        self._schema_fault: QueuePgError | None = None
        self._schema_checked_at = float("-inf")

    async def __aenter__(self) -> Self:
        if self._pool is not None:
            # Not waited for: the service starts while the database is away.
            await self._pool.open(wait=False)
            await self.queue.open()
        # What the settings say is to hold for the first job already. A database that is away does not hold up the
        # start: maintenance stores them when it is back.
        if self.settings.instance_defaults != InstanceDefaults():
            self._storing = asyncio.create_task(self._store_defaults())
            await asyncio.wait([self._storing], timeout=PROBE_TIMEOUT_SECONDS)
        self.observing.start()
        self._wakeups.start()
        self._waking = asyncio.create_task(self._for_ever("wake-up", self._pass_on_wakes))
        self._maintaining = asyncio.create_task(self._for_ever("maintenance", self._maintain))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await self._end_tasks()
        await self.figures.close()
        await self.claims.close()
        await self.observing.close()
        await self._watch.close()
        await self.gathering.close()
        if self._owns_wakeups:
            await asyncio.to_thread(self._wakeups.close)
        if self._pool is not None:
            await self.queue.close()
            await self._pool.close()

    async def _end_tasks(self) -> None:
        if self._waking is None or self._maintaining is None:
            return
        self._waking.cancel()
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])
        # Maintenance ends by itself: cancelled while it connects, it would leave a half-open connection behind, and
        # for the server that is a client which still has to log in.
        ending = [task for task in (self._maintaining, self._storing) if task is not None]
        await asyncio.wait(ending, timeout=STOP_SECONDS)
        for task in ending:
            task.cancel()
        await asyncio.gather(self._waking, *ending, return_exceptions=True)

    def stop(self) -> None:
        """End every wait; called as soon as the process is asked to stop, before requests are waited for."""
        self.stopping.set()

    def queue_of(self, org: str) -> Queue:
        """Return the client for one organisation; there is one until there are keys (access.py)."""
        del org
        return self.queue

    async def claim(self, wanted: Wanted, *, wait_seconds: float, gone: asyncio.Event) -> list[ClaimedJob]:
        """Claim jobs for a pull worker, waiting for the first; empty when its client has gone."""
        if wanted.kinds is not None:
            await self.kinds.learn(wanted.kinds)
        until = time.monotonic() + wait_seconds
        while True:
            left = max(0.0, until - time.monotonic())
            jobs = await self.claims.claim(wanted, wait_seconds=left, until=(gone, self.stopping))
            if jobs and gone.is_set():
                # Nobody would run them before their leases expire.
                await self.claims.give_back(jobs)
                return []
            readable = [job for job in jobs if await self._readable(job)]
            if readable or not jobs:
                return readable

    async def database_connected(self) -> bool:
        """Tell whether the database answers, within PROBE_TIMEOUT_SECONDS."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask_database())
        # Not cancelled when it takes too long: on a network that swallows everything that alone takes seconds. Later
        # probes wait for the same answer.
        await asyncio.wait([self._probe], timeout=PROBE_TIMEOUT_SECONDS)
        return self._probe.done() and self._probe.result()

    async def _ask_database(self) -> bool:
        try:
            async with self.queue.connection() as connection:
                await store.held(connection, [], [])
        except DatabaseUnavailable:
            return False
        except QueuePgError:  # it answers; what is wrong with the schema is /readyz' business
            return True
        return True

    async def check_ready(self) -> None:
        """Raise unless requests can be served now: DatabaseUnavailable, SchemaError."""
        if not await self.database_connected():
            raise DatabaseUnavailable("The database does not answer.")
        if time.monotonic() - self._schema_checked_at >= PROBE_SECONDS:
            self._schema_fault = await asyncio.to_thread(self._find_schema_fault)
            self._schema_checked_at = time.monotonic()
        if self._schema_fault is not None:
            raise self._schema_fault

    def _find_schema_fault(self) -> QueuePgError | None:
        try:
            with schema.connect(self.queue.dsn) as connection:
                schema.check(connection)
        except QueuePgError as fault:
            return fault
        return None

    async def _claim(self, wanted: Wanted, arm: bool) -> list[ClaimedJob]:
        return await self.queue_of(wanted.org).claim(
            wanted.worker,
            list(wanted.queues),
            kinds=None if wanted.kinds is None else list(wanted.kinds),
            max_jobs=wanted.max_jobs,
            lease_seconds=wanted.lease_seconds,
            arm=arm or None,
        )

    async def _disarm(self, queues: Sequence[str]) -> None:
        async with self.queue.connection() as connection:
            await store.disarm(connection, queues)

    async def _observe(self, observer: str) -> bool:
        async with self.queue.connection() as connection:
            return await store.observe(connection, observer)

    async def _unobserve(self, observer: str) -> None:
        async with self.queue.connection() as connection:
            await store.unobserve(connection, observer)

    async def _release(self, jobs: Sequence[ClaimedJob]) -> None:
        outcomes = [Outcome(id=job.id, lease_token=job.lease_token, outcome="release") for job in jobs]
        async with self.queue.connection() as connection:
            await store.finish(connection, outcomes)

    async def _readable(self, job: ClaimedJob) -> bool:
        """Tell whether a worker can decode the job; one that nobody can fails here, alone, and not in a batch."""
        try:
            decode_json(job.payload)
            decode_json(job.metadata)
        except UnreadableJson as error:
            fault: dict[str, Any] = error_object("unreadable_payload", f"The payload cannot be decoded: {error}")
            try:
                await self.queue.fail(job.id, job.lease_token, fault, retry=False)
            except QueuePgError as failure:
                logger.warning("Job %s is unreadable and could not be failed: %s", job.id, failure.code)
            return False
        return True

    async def _pass_on_wakes(self) -> None:
        # Without a queue's name: something has happened to any of them. With a name: queue_watch.py.
        with self._wakeups.subscribe(WAKE, "") as subscription:
            while True:
                if await subscription.wait(WAKE_WAIT_SECONDS):
                    self.claims.wake()

    async def _store_defaults(self) -> None:
        try:
            async with self.queue.connection() as connection:
                await store.configure(connection, self.settings.instance_defaults)
        except Exception as error:
            logger.info("The settings are not stored yet, maintenance goes on trying: %s", error)

    async def _maintain(self) -> None:
        # On a connection of its own: requests that use up the pool must not keep the reaper from its work.
        await MaintenanceLoop(self.queue.dsn, self._wakeups, defaults=self.settings.instance_defaults).run(
            self.stopping
        )

    async def _for_ever(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # Both are made to survive the database being away; should one end by a fault of ours, the API goes on.
        while not self.stopping.is_set():
            try:
                await work()
            except Exception:
                logger.exception("The %s task of the API failed; it starts again in %g s", name, RESTART_SECONDS)
                await asyncio.sleep(RESTART_SECONDS)


def _make_pool(settings: Settings) -> Pool:
    if settings.database_url is None:
        raise ConfigError("DATABASE_URL is not set.", setting="DATABASE_URL", hint="Set it, or run: queue-pg dev")
    pool = make_async_pool(
        settings.database_url,
        max_size=settings.pool_size,
        timeout_seconds=POOL_TIMEOUT_SECONDS,
        application="queue-pg api",
    )
    pool.reconnect_timeout = RECONNECT_SECONDS
    return pool
