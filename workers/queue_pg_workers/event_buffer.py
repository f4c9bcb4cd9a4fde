"""What handlers say on its way to the database: gathered for a moment, stored in batches, kept through an outage.

While somebody reads along they are gathered while the batch before is stored and hardly longer, else for a while.
A batch is stored whole or not at all. When the connection is lost before the answer, the job's row tells which, so that
nothing is stored twice. An attempt's outcome waits here until what its handler has said is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import psycopg

from queue_pg import store
from queue_pg.errors import LeaseLost
from queue_pg.handler_events import RunningJob
from queue_pg.models import NewEvent
from queue_pg.payloads import encode_json, sanitise_text
from queue_pg.surroundings import REAL, Surroundings
from queue_pg_workers.link import Link
from queue_pg_workers.outage import Outage
from queue_pg_workers.signals import Signals

log = logging.getLogger(__name__)

Key = tuple[str, int]

GATHER_SECONDS: Final = 0.05
# Between two batches while somebody reads along. Not in proportion to what the last one took: a flush of the WAL that
# took long would be waited for twice.
REST_SECONDS: Final = 0.001
MAX_BATCH_EVENTS: Final = 2_000
MAX_BATCH_BYTES: Final = 2 * 1024 * 1024
# Of all handlers together; above it they wait.
MAX_EVENTS: Final = 20_000
MAX_BYTES: Final = 16 * 1024 * 1024
# How often a handler in a thread that waits for room looks whether its job was cancelled.
LOOK_SECONDS: Final = 0.2


@dataclass(slots=True)
class _Saying:
    """One attempt that has said something. `appended` is the count of its job after its last batch, None before one.

    `ended`: its code has ended, so that nobody adds to it any more. `followed`: somebody reads along, as long as the
    database has not said otherwise.
    """

    unstored: int = 0
    ended: bool = False
    followed: bool = True
    appended: int | None = None
    lost: bool = False
    then: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])


class EventBuffer:
    """The EventSink of a worker.

    `on_lost` is called on the loop with a lease that turned out to be lost; it tells whether the worker still held it.
    """

    def __init__(
        self,
        link: Link,
        *,
        signals: Signals,
        on_lost: Callable[[Key], bool],
        surroundings: Surroundings = REAL,
    ) -> None:
        self._link = link
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._outage = Outage("storing events", log=log, signals=signals, surroundings=surroundings)
        # Handlers in threads add too.
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._waiting: deque[NewEvent] = deque()
        self._bytes = 0
        self._sayings: dict[Key, _Saying] = {}
        self._changed = asyncio.Event()
        # Somebody reads what waits here; an outcome waits for it.
        self._awaited = asyncio.Event()
        self._hurry = asyncio.Event()
        self._has_room = asyncio.Event()
        self._eager = False
        self._rests_until = 0.0
        self._closing = False

    # --- the handlers' side -------------------------------------------------------------------------------------------

    async def add(self, job: RunningJob, events: list[tuple[str, str]]) -> None:
        """Take events in; waits while there is no room. Raises LeaseLost."""
        while not self._added(job, events):
            self._has_room.clear()
            await self._has_room.wait()
        self._stir()

    def add_blocking(self, job: RunningJob, events: list[tuple[str, str]]) -> None:
        """Take events in, for a handler in a thread. Raises LeaseLost."""
        while not self._added(job, events):
            if job.cancelled.is_set():
                raise LeaseLost(job.job_id)
            with self._room:
                self._room.wait(LOOK_SECONDS)
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the worker with it
            self._loop.call_soon_threadsafe(self._stir)

    def _added(self, job: RunningJob, events: list[tuple[str, str]]) -> bool:
        key = (str(job.job_id), job.lease_token)
        with self._lock:
            saying = self._sayings.get(key)
            if saying is not None and saying.lost:
                raise LeaseLost(job.job_id)
            if self._waiting and (len(self._waiting) >= MAX_EVENTS or self._bytes >= MAX_BYTES):
                return False
            if saying is None:
                saying = self._sayings[key] = _Saying()
            saying.unstored += len(events)
            self._eager = self._eager or saying.followed
            for name, data in events:
                self._waiting.append(NewEvent(*key, name, data))
                self._bytes += len(data)
        return True

    def _stir(self) -> None:
        self._changed.set()
        if self._eager:
            self._awaited.set()

    # --- the worker's side --------------------------------------------------------------------------------------------

    @property
    def silent(self) -> bool:
        """Whether no attempt that is running has said anything; mostly so, and cheap to ask."""
        return not self._sayings

    @property
    def holding(self) -> bool:
        """Whether outcomes wait here for what was said before them."""
        return any(saying.then for saying in self._sayings.values())

    def when_stored(self, key: Key, then: Callable[[], None]) -> None:
        """Call `then` when all that the attempt has said is stored: at once, for one that has said nothing."""
        with self._lock:
            saying = self._sayings.get(key)
            if saying is not None and saying.unstored and not saying.lost and not self._closing:
                saying.then.append(then)
                self._hurry_up()
                return
        then()

    def forget(self, key: Key) -> None:
        """Take in that the code of an attempt has ended; what it said last may still be on its way."""
        with self._lock:
            saying = self._sayings.get(key)
            if saying is not None:
                saying.ended = True
                if saying.lost or saying.unstored <= 0:
                    del self._sayings[key]

    async def run(self) -> None:
        """Store what is said until closed and empty."""
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._changed.clear()
                if not self._waiting:
                    await self._changed.wait()
                    continue
            await self._gather()
            self._hurry.clear()
            self._awaited.clear()
            while batch := self._next_batch():
                await self._store(batch)
                self._rests_until = self._loop.time() + REST_SECONDS
                if not self._closing and len(self._waiting) < MAX_BATCH_EVENTS and not self._hurry.is_set():
                    break

    async def _gather(self) -> None:
        """Let more come, as long as nobody waits for what is here and it fills no batch."""
        if len(self._waiting) >= MAX_BATCH_EVENTS:
            return
        until = self._loop.time() + GATHER_SECONDS
        await _until(self._hurry, self._rests_until - self._loop.time())
        if not self._hurry.is_set() and not self._eager:
            await _until(self._awaited, until - self._loop.time())

    def close(self) -> None:
        """End `run` when all is stored."""
        self._closing = True
        self._changed.set()
        self._hurry_up()

    def _hurry_up(self) -> None:
        self._hurry.set()
        self._awaited.set()

    def give_up(self) -> None:
        """Store no more, and let the outcomes go that wait for it."""
        with self._lock:
            self._closing = True
            left, self._bytes = len(self._waiting), 0
            self._waiting.clear()
            sayings = list(self._sayings.items())
            self._room.notify_all()
        self._has_room.set()
        if left:
            log.warning("%d events of handlers could not be stored", left)
        for key, saying in sayings:
            self._stored(key, saying.unstored)

    # --- storing ------------------------------------------------------------------------------------------------------

    def _next_batch(self) -> list[NewEvent]:
        batch: list[NewEvent] = []
        size = 0
        with self._lock:
            while self._waiting and len(batch) < MAX_BATCH_EVENTS and (not batch or size < MAX_BATCH_BYTES):
                event = self._waiting.popleft()
                size += len(event.data)
                saying = self._sayings.get(_key(event))
                if saying is not None and not saying.lost:
                    batch.append(event)
            self._bytes -= size
            if not self._waiting:
                self._eager = False
            self._room.notify_all()
        self._has_room.set()
        return batch

    async def _store(self, batch: Sequence[NewEvent]) -> None:
        unknown = False
        while True:
            try:
                if unknown and await self._was_stored(batch):
                    break
                unknown = False
                answers = await self._link.run(lambda conn: store.append_events(conn, batch))
            except (psycopg.Error, OSError) as error:
                if _is_about_data(error):
                    self._outage.over()
                    await self._store_apart(batch, error)
                    return
                pause = self._outage.failed(error)
                if self._closing:
                    log.warning("%d events of handlers may not have been stored", len(batch))
                    break
                unknown = True
                await asyncio.sleep(pause)
                continue
            self._outage.over()
            by_id = {answer.id: answer for answer in answers}
            for key in {_key(event) for event in batch}:
                answer = by_id.get(key[0])
                if answer is None or not answer.accepted:
                    self._lose(key)
                else:
                    saying = self._saying(key)
                    saying.appended, saying.followed = answer.appended, bool(answer.followed)
            break
        self._done(batch)

    async def _was_stored(self, batch: Sequence[NewEvent]) -> bool:
        """Tell whether a batch was stored whose answer was lost; it was as a whole, so any job in it tells."""
        keys = list({_key(event) for event in batch})
        found = await self._link.run(
            lambda conn: store.appended(conn, [key[0] for key in keys], [key[1] for key in keys])
        )
        stored = False
        for key in keys:
            saying = self._saying(key)
            if key[0] not in found:
                self._lose(key)
                continue
            logged, appended = found[key[0]]
            if logged and (saying.appended is None or appended > saying.appended):
                stored = True
                saying.appended = appended
        return stored or not any(key[0] in found for key in keys)

    async def _store_apart(self, batch: Sequence[NewEvent], error: Exception) -> None:
        """Store a refused batch event by event; what is refused by itself leaves the reason in its place."""
        said = " ".join(str(error).splitlines()[:1])
        if len(batch) > 1:
            log.warning("a batch of %d events was refused (%s), storing them one by one", len(batch), said)
            for event in batch:
                await self._store([event])
            return
        [event] = batch
        refused = {"refused": sanitise_text(said, 500), "type": sanitise_text(event.type, 100)}
        refusal = encode_json(refused, field="data")
        log.warning("job %s: an event of type %.100r was refused: %s", event.id, event.type, said)
        if event.type == "refused":
            self._done(batch)
            return
        await self._store([event._replace(type="refused", data=refusal)])

    def _done(self, batch: Sequence[NewEvent]) -> None:
        counts: dict[Key, int] = {}
        for event in batch:
            counts[_key(event)] = counts.get(_key(event), 0) + 1
        for key, count in counts.items():
            self._stored(key, count)

    def _stored(self, key: Key, count: int) -> None:
        then: list[Callable[[], None]] = []
        with self._lock:
            saying = self._saying(key)
            saying.unstored -= count
            if saying.unstored <= 0 or saying.lost:
                then, saying.then = saying.then, then
                if saying.ended:
                    self._sayings.pop(key, None)
        for each in then:
            each()

    def _lose(self, key: Key) -> None:
        saying = self._saying(key)
        if not saying.lost:
            saying.lost = True
            log.warning("job %s: the lease was lost, what its handler says is dropped", key[0])
            # Code that goes on saying things after its attempt has ended is not waited for.
            saying.ended = not self._on_lost(key) or saying.ended

    def _saying(self, key: Key) -> _Saying:
        """Return what is known of an attempt; one that was forgotten meanwhile has lost its lease."""
        return self._sayings.get(key) or _Saying(lost=True, ended=True)


def _key(event: NewEvent) -> Key:
    return str(event.id), event.lease_token


def _is_about_data(error: Exception) -> bool:
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate.startswith(("22", "23", "54", "QP"))
    return isinstance(error, psycopg.DataError | psycopg.ProgrammingError | psycopg.NotSupportedError)


async def _until(event: asyncio.Event, seconds: float) -> None:
    if seconds <= 0 or event.is_set():
        return
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
