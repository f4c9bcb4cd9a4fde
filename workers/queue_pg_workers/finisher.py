"""Outcomes on their way to the database: in batches, kept through an outage, one bad one apart."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from uuid import UUID

import psycopg

from queue_pg import store
from queue_pg.models import Finished, Outcome
from queue_pg_workers.leases import Held, Leases
from queue_pg_workers.link import Link
from queue_pg_workers.outage import Outage
from queue_pg_workers.outcomes import result_refused
from queue_pg_workers.signals import Signals

log = logging.getLogger(__name__)

MAX_BATCH_JOBS = 500
MAX_BATCH_BYTES = 8 * 1024 * 1024
# Above it no new jobs are claimed until the database has caught up.
MAX_UNFLUSHED_BYTES = 64 * 1024 * 1024

# What the server says about the data of a batch: data exceptions, broken constraints, limits, our own "invalid
# argument". All else (disk full, failing over, a deadlock, a function that a migration replaces) passes, so we wait.
_DATA_ERROR_CLASSES = ("22", "23", "54", "QP")

_END_STATES = {"complete": "completed", "discard": "failed", "cancel": "cancelled"}


class _Entry:
    __slots__ = ("held", "outcome", "size", "unknown")

    def __init__(self, held: Held, outcome: Outcome) -> None:
        # Sent before without an answer: it may have been recorded then.
        self.unknown = False
        self.held = held
        self.outcome = outcome
        self.size = len(outcome.result or "") + len(outcome.error or "") + 200


class Finisher:
    """Flushes what has gathered as soon as the flush before is done, so batches grow with the load by themselves."""

    def __init__(
        self, link: Link, leases: Leases, *, max_unflushed: int, signals: Signals, on_room: Callable[[], None]
    ) -> None:
        self._max_unflushed = max_unflushed
        self._link = link
        self._leases = leases
        self._signals = signals
        self._on_room = on_room
        self._outage = Outage("recording outcomes", log=log, signals=signals)
        self._waiting: deque[_Entry] = deque()
        self._bytes = 0
        self._in_flight = 0
        self._changed = asyncio.Event()
        self._closing = False
        self.processed = 0
        self.failed = 0

    @property
    def unflushed(self) -> int:
        return len(self._waiting) + self._in_flight

    @property
    def lagging(self) -> bool:
        """Tell whether claiming must pause: outcomes gather, which a crash would lose and memory cannot hold."""
        # With nothing left to send, no flush would find out that the outage is over.
        cut_off = self._outage.lasting and self.unflushed > 0
        return cut_off or self.unflushed > self._max_unflushed or self._bytes > MAX_UNFLUSHED_BYTES

    def add(self, held: Held, outcome: Outcome) -> None:
        entry = _Entry(held, outcome)
        self._waiting.append(entry)
        self._bytes += entry.size
        self._changed.set()

    async def run(self) -> None:
        """Flush until closed and empty."""
        while not (self._closing and not self._waiting):
            if not self._waiting:
                self._changed.clear()
                await self._changed.wait()
                continue
            batch = self._next_batch()
            if batch:
                await self._flush(batch)
            else:
                # All their leases were lost meanwhile, as in an outage that the heartbeat saw the end of first.
                self._on_room()

    def close(self) -> None:
        """End `run` when all is flushed."""
        self._closing = True
        self._changed.set()

    def _next_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        ids: set[UUID] = set()
        size = 0
        while self._waiting and len(batch) < MAX_BATCH_JOBS and (not batch or size < MAX_BATCH_BYTES):
            # Of a job that is in a batch twice, the first entry counts: one that was sent before without an answer
            # must not shadow that of the job's next claim.
            if self._waiting[0].outcome.id in ids:
                break
            entry = self._waiting.popleft()
            self._bytes -= entry.size
            ids.add(entry.outcome.id)
            if entry.held.lost:
                self._done(entry, accepted=False, state=None)
                continue
            size += entry.size
            batch.append(entry)
        return batch

    async def _flush(self, batch: list[_Entry]) -> None:
        self._in_flight = len(batch)
        for entry in batch:
            entry.held.sending = True
        try:
            answers = await self._link.run(lambda conn: store.finish(conn, [entry.outcome for entry in batch]))
        except (psycopg.Error, OSError) as error:
            await self._refused(batch, error)
        else:
            self._in_flight = 0
            self._answered(batch, answers)
            self._outage.over()
        self._in_flight = 0
        self._on_room()

    async def _refused(self, batch: list[_Entry], error: Exception) -> None:
        if not _is_about_data(error):
            # Recorded or not, who knows: asking again is safe, the token lets it count once.
            for entry in batch:
                entry.unknown = True
            self._put_back(batch)
            await asyncio.sleep(self._outage.failed(error))
            return
        # It was the database that refused, so it is there.
        self._outage.over()
        if len(batch) > 1:
            log.warning("a batch of %d outcomes was refused (%s), sending them one by one", len(batch), _said(error))
            for done, entry in enumerate(batch):
                await self._flush([entry])
                if self._outage.lasting:
                    self._put_back(batch[done + 1 :])
                    break
        elif batch[0].outcome.outcome == "discard":
            # Nothing we could say would be taken; the lease runs out and the reaper counts the loss.
            log.error("job %s: its outcome cannot be recorded (%s)", batch[0].held.job.id, _said(error))
            self._done(batch[0], accepted=False, state=None)
        else:
            self._in_flight = 0
            held = batch[0].held
            await self._flush([_Entry(held, result_refused(held.job, _said(error)))])

    def _put_back(self, batch: Sequence[_Entry]) -> None:
        for entry in reversed(batch):
            entry.held.sending = False
            self._waiting.appendleft(entry)
            self._bytes += entry.size

    def _answered(self, batch: Sequence[_Entry], answers: Sequence[Finished]) -> None:
        by_id = {answer.id: answer for answer in answers}
        for entry in batch:
            answer = by_id[entry.outcome.id]
            recorded_before = entry.unknown and answer.state == _END_STATES.get(entry.outcome.outcome)
            self._done(entry, accepted=answer.accepted or recorded_before, state=answer.state)

    def _done(self, entry: _Entry, *, accepted: bool, state: str | None) -> None:
        self._leases.remove(entry.held)
        if accepted and entry.outcome.outcome != "release":
            self.processed += 1
            self.failed += entry.outcome.outcome in ("fail", "discard")
        _log(entry, accepted=accepted, state=state)
        self._signals.emit("finished", (entry.outcome.id, accepted, state))


def _log(entry: _Entry, *, accepted: bool, state: str | None) -> None:
    job, outcome = entry.held.job, entry.outcome
    if not accepted:
        log.warning("job %s (%s): the lease was lost, the outcome of this attempt is dropped", job.id, job.kind)
    elif outcome.outcome in ("fail", "discard") and outcome.error is not None:
        code = json.loads(outcome.error).get("code")
        log.warning("job %s (%s): attempt %d failed: %s; it is %s", job.id, job.kind, job.attempt, code, state)
    else:
        log.info("job %s (%s): %s", job.id, job.kind, state)


def _said(error: Exception) -> str:
    """Return the server's sentence only: its DETAIL can hold the whole row, payload and all."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return primary or type(error).__name__


def _is_about_data(error: Exception) -> bool:
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate.startswith(_DATA_ERROR_CLASSES)
    # Without a state it comes from psycopg: either it cannot express a value, or the connection is gone.
    return isinstance(error, psycopg.DataError | psycopg.ProgrammingError | psycopg.NotSupportedError)
