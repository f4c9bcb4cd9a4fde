"""Wake-ups from Postgres: one LISTEN connection in a thread of its own, shared by everybody in the process.

A notification is a hint, the rows are the truth: after every (re)connect, and when the connection is lost, all
subscribers are told to poll, so what was missed in between does not matter, and without any notification
(`enabled=False`, PgBouncer in transaction mode) subscribers go on by their own time-outs. The thread never raises into
the process and reconnects for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self

from psycopg import Connection

from queue_pg.connections import LibraryConnection
from queue_pg.hearing import Bell, backend_pid, hears
from queue_pg.statements import statement
from queue_pg.surroundings import REAL, Surroundings, Thread

WAKE: Final = "queue_pg_wake"
RESULT: Final = "queue_pg_result"
CANCEL: Final = "queue_pg_cancel"
DUE: Final = "queue_pg_due"
EVENTS: Final = "queue_pg_events"
TRANSITIONS: Final = "queue_pg_transitions"
CHANNELS: Final = (WAKE, RESULT, CANCEL, DUE, EVENTS, TRANSITIONS)
PROBE_SECONDS: Final = 60.0
# What is asked on this connection takes no time.
ANSWER_SECONDS: Final = 10.0
_BACKOFF_SECONDS: Final = (0.1, 10.0)

_log = logging.getLogger(__name__)


class Subscription:
    """One subscriber. Any number of notifications between two waits are one wake-up."""

    def __init__(self, owner: Wakeups, channel: str, payload: str | None, callback: Callable[[], None] | None) -> None:
        self.channel = channel
        self.payload = payload
        self._owner = owner
        self._callback = callback
        self._condition = threading.Condition()
        self._pending = False
        self._futures: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    async def wait(self, timeout: float | None = None) -> bool:
        """Return True when there was a wake-up since the last wait or within `timeout` seconds: time to poll."""
        loop = asyncio.get_running_loop()
        with self._condition:
            if self._pending:
                self._pending = False
                return True
            entry = (loop, loop.create_future())
            self._futures.append(entry)
        try:
            await asyncio.wait([entry[1]], timeout=timeout)
        finally:
            with self._condition:
                self._futures.remove(entry)
        with self._condition:
            # Read after the wait: a wake-up that came with the time-out must not be lost.
            woken, self._pending = self._pending, False
        return woken or entry[1].done()

    def wait_sync(self, timeout: float | None = None) -> bool:
        """Block like `wait`."""
        with self._condition:
            self._condition.wait_for(lambda: self._pending, timeout)
            woken, self._pending = self._pending, False
        return woken

    def close(self) -> None:
        """End the subscription; waiters sleep on until their time-out."""
        self._owner.unsubscribe(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def signal(self) -> None:
        """Wake the waiters; called in the listening thread."""
        with self._condition:
            self._pending = True
            self._condition.notify_all()
            for loop, future in self._futures:
                # A loop that has ended has nobody left to wake.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_resolve, future)
        if self._callback is not None:
            self._callback()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Wakeups:
    """The listening connection of a process. `start()` it, `subscribe()`, `close()` it."""

    def __init__(
        self,
        dsn: str,
        channels: Iterable[str] = CHANNELS,
        *,
        enabled: bool = True,
        application: str = "queue-pg listener",
        surroundings: Surroundings = REAL,
    ) -> None:
        self.channels = tuple(channels)
        unknown = set(self.channels) - set(CHANNELS)
        if unknown:
            raise ValueError(f"unknown channels {sorted(unknown)}; there are {CHANNELS}")
        self.enabled = enabled
        self._dsn = dsn
        self._application = application
        self._surroundings = surroundings
        self._lock = threading.Lock()
        # In the order in which they came.
        self._subscribers: dict[tuple[str, str | None], dict[Subscription, None]] = {}
        self._taps: dict[str, Callable[[str | None], None]] = {}
        self._thread: Thread | None = None
        self._stop = surroundings.event()
        self._listening = surroundings.event()
        self._failing = False
        self._deaf = False
        self._backend_pid: int | None = None
        # Wakes the thread when it is to stop.
        self._bell: Bell | None = None

    @property
    def listening(self) -> bool:
        """Whether notifications arrive at present; when not, poll faster."""
        return self._listening.is_set()

    @property
    def backend_pid(self) -> int | None:
        """The server process of the LISTEN connection, as pg_stat_activity names it."""
        return self._backend_pid if self.listening else None

    def wait_listening(self, timeout: float | None = None) -> bool:
        """Block until the connection listens."""
        return self._listening.wait(timeout)

    def start(self) -> None:
        """Start the thread; nothing happens when it runs already or notifications are off."""
        with self._lock:
            if not self.enabled or (self._thread is not None and self._thread.is_alive()):
                return
            self._stop.clear()
            self._bell = self._surroundings.bell()
            self._thread = self._surroundings.thread(self._run, name=self._application)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread and close its connection; blocks for a moment at most."""
        with self._lock:
            thread, bell, self._thread, self._bell = self._thread, self._bell, None, None
            self._stop.set()
            if bell is not None:
                bell.ring()
        if thread is not None:
            thread.join(timeout=15)
        if bell is not None:
            bell.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def subscribe(
        self, channel: str, payload: str | None = None, *, callback: Callable[[], None] | None = None
    ) -> Subscription:
        """Return a subscription to a channel, or to one payload of it.

        `callback` is called in the listening thread at every wake-up; it must be quick and must not raise.
        """
        if channel not in self.channels:
            raise ValueError(f"not listening to channel {channel!r}; channels are {self.channels}")
        subscription = Subscription(self, channel, payload, callback)
        with self._lock:
            self._subscribers.setdefault((channel, payload), {})[subscription] = None
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; twice is fine."""
        key = (subscription.channel, subscription.payload)
        with self._lock:
            group = self._subscribers.get(key, {})
            group.pop(subscription, None)
            if not group:
                self._subscribers.pop(key, None)

    def tap(self, channel: str, callback: Callable[[str | None], None]) -> None:
        """Call `callback` with the payload of every notification of a channel, in their order; one for each channel.

        It is called in the listening thread, must be quick and must not raise. None tells that notifications may
        have been missed: the connection was lost or made anew.
        """
        if channel not in self.channels:
            raise ValueError(f"not listening to channel {channel!r}; channels are {self.channels}")
        self._taps[channel] = callback

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        bell = self._bell
        assert bell is not None  # noqa: S101 - start() has made it
        pause = _BACKOFF_SECONDS[0]
        while not self._stop.is_set():
            try:
                with self._connect() as conn:
                    conn.answer_seconds = ANSWER_SECONDS
                    if self._listen(conn):
                        pause = _BACKOFF_SECONDS[0]
                        self._serve(conn, bell)
                    else:
                        pause = PROBE_SECONDS
            except Exception as error:
                if not self._failing and not self._stop.is_set():
                    self._failing = True
                    _log.warning("No notifications: %s. Polling goes on; trying to reconnect.", _first_line(error))
            finally:
                if self._listening.is_set():
                    self._listening.clear()
                    self._tell_taps()
                    # Those who rely on notifications poll seldom.
                    self._signal_all()
            self._stop.wait(pause * self._surroundings.uniform(0.5, 1.0))
            pause = min(pause * 2, _BACKOFF_SECONDS[1])

    def _listen(self, conn: Connection[Any]) -> bool:
        """Subscribe at the server, then have everybody poll: in this order, or a job could fall between the two.

        Return False when notifications do not get through.
        """
        for channel in self.channels:
            conn.execute(statement(f"listen_{channel}"))
        if not hears(conn, self._connect):
            if not self._deaf:
                self._deaf = True
                _log.warning(
                    "No notifications: the database is behind a pooler that drops them. Polling goes on; to be woken"
                    " at once, set LISTEN_DATABASE_URL to an address of the database without the pooler."
                )
            return False
        self._backend_pid = backend_pid(conn)
        if self._failing or self._deaf:
            self._failing = self._deaf = False
            _log.info("Notifications are back.")
        self._tell_taps()
        self._listening.set()
        self._signal_all()
        return True

    def _connect(self) -> LibraryConnection:
        return self._surroundings.connect(self._dsn, application=self._application)

    def _serve(self, conn: Connection[Any], bell: Bell) -> None:
        monotonic = self._surroundings.monotonic
        probe_at = monotonic() + PROBE_SECONDS
        while not self._stop.is_set():
            # Notifications that came together with the answer to LISTEN or to a probe are in memory already.
            self._deliver(bell.heard(conn))
            bell.wait(conn, probe_at - monotonic())
            if self._stop.is_set():
                return
            if monotonic() >= probe_at:
                # A connection that a firewall has dropped looks idle for ever.
                conn.execute("select 1")
                probe_at = monotonic() + PROBE_SECONDS

    def _deliver(self, heard: Iterable[tuple[str, str]]) -> None:
        """Wake whoever waits for what has come; a burst of equal notifications is one wake-up."""
        seen: set[tuple[str, str]] = set()
        for channel, payload in heard:
            if channel in self._taps:
                self._taps[channel](payload)
            else:
                seen.add((channel, payload))
        if not seen:
            return
        keys: set[tuple[str, str | None]] = {*seen, *((channel, None) for channel, _ in seen)}
        with self._lock:
            woken = [subscription for key in keys for subscription in self._subscribers.get(key, ())]
        _signal(woken)

    def _signal_all(self) -> None:
        with self._lock:
            woken = [subscription for group in self._subscribers.values() for subscription in group]
        _signal(woken)

    def _tell_taps(self) -> None:
        for callback in list(self._taps.values()):
            callback(None)


def _signal(subscriptions: Iterable[Subscription]) -> None:
    for subscription in subscriptions:
        try:
            subscription.signal()
        except Exception:
            _log.exception("A subscriber of %s failed.", subscription.channel)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
