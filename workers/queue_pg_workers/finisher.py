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
from queue_pg.surroundings import REAL, Surroundings
from queue_pg_workers.leases import Held, Leases
from queue_pg_workers.link import Link
from queue_pg_workers.outage import Outage
from queue_pg_workers.outcomes import result_refused
from queue_pg_workers.signals import Signals
from queue_pg_workers.tally import Tally

log = logging.getLogger(__name__)

MAX_BATCH_JOBS = 1000
MAX_BATCH_BYTES = 8 * 1024 * 1024
# Above it no new jobs are claimed until the database has caught up.
MAX_UNFLUSHED_BYTES = 64 * 1024 * 1024

# What the server says about the data of a batch: data exceptions, broken constraints, limits, our own "invalid
# argument". All else (disk full, failing over, a deadlock, a function that a migration replaces) passes, so we wait.
_DATA_ERROR_CLASSES = ("22", "23", "54", "QP")

_END_STATES = {"complete": "completed", "discard": "failed", "cancel": "cancelled", "plan": "waiting"}


class Finisher:
    """Flushes what has gathered as soon as the flush before is done, so batches grow with the load by themselves."""

    def __init__(
        self,
        link: Link,
        leases: Leases,
        *,
        max_unflushed: int,
        signals: Signals,
        on_room: Callable[[], None],
        tally: Tally | None = None,
        surroundings: Surroundings = REAL,
    ) -> None:
        self._max_unflushed = max_unflushed
        self._link = link
        self._leases = leases
        self._signals = signals
        self._on_room = on_room
        self._tally = tally
        self._surroundings = surroundings
        self._outage = Outage("recording outcomes", log=log, signals=signals, surroundings=surroundings)
        self._waiting: deque[Held] = deque()
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

    def add(self, held: Held) -> None:
        """Take over a job that has its outcome."""
        self._waiting.append(held)
        self._bytes += _size(held)
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

    def _next_batch(self) -> list[Held]:
        batch: list[Held] = []
        ids: set[str] = set()
        size = 0
        while self._waiting and len(batch) < MAX_BATCH_JOBS and (not batch or size < MAX_BATCH_BYTES):
            held = self._waiting[0]
            # Of a job that is in a batch twice, the first entry counts: one that was sent before without an answer
            # must not shadow that of the job's next claim.
            if held.job.id in ids:
                break
            self._waiting.popleft()
            if held.lost:
                self._bytes -= _size(held)
                self._done([held], accepted=False, state=None)
                continue
            ids.add(held.job.id)
            size += _size(held)
            batch.append(held)
        self._bytes -= size
        return batch

    async def _flush(self, batch: list[Held]) -> None:
        self._in_flight = len(batch)
        outcomes = [_outcome(held) for held in batch]
        for held in batch:
            held.sending = True
        began = self._surroundings.monotonic()
        try:
            answers = await self._link.run(lambda conn: store.finish(conn, outcomes))
        except (psycopg.Error, OSError) as error:
            await self._refused(batch, error)
        else:
            self._in_flight = 0
            if self._tally is not None:
                self._tally.finishes.add(self._surroundings.monotonic() - began)
            self._answered(batch, answers)
            self._outage.over()
        self._in_flight = 0
        self._on_room()

    async def _refused(self, batch: list[Held], error: Exception) -> None:
        if not _is_about_data(error):
            # Recorded or not, who knows: asking again is safe, the token lets it count once.
            for held in batch:
                held.unknown = True
            self._put_back(batch)
            await asyncio.sleep(self._outage.failed(error))
            return
        # It was the database that refused, so it is there.
        self._outage.over()
        if len(batch) > 1:
            log.warning("a batch of %d outcomes was refused (%s), sending them one by one", len(batch), _said(error))
            for done, held in enumerate(batch):
                await self._flush([held])
                if self._outage.lasting:
                    self._put_back(batch[done + 1 :])
                    break
        elif _outcome(batch[0]).outcome == "discard":
            # Nothing we could say would be taken; the lease runs out and the reaper counts the loss.
            about = {"job_id": batch[0].job.id}
            log.error("job %s: its outcome cannot be recorded (%s)", batch[0].job.id, _said(error), extra=about)
            self._done(batch, accepted=False, state=None)
        else:
            self._in_flight = 0
            [held] = batch
            held.outcome, held.unknown = result_refused(held.job, _said(error)), False
            await self._flush(batch)

    def _put_back(self, batch: Sequence[Held]) -> None:
        for held in reversed(batch):
            held.sending = False
            self._waiting.appendleft(held)
            self._bytes += _size(held)

    def _answered(self, batch: list[Held], answers: Sequence[Finished]) -> None:
        if not answers:
            self._done(batch, accepted=True, state="completed")
            return
        by_id = {answer.id: answer for answer in answers}
        self._done([held for held in batch if held.job.id not in by_id], accepted=True, state="completed")
        for held in batch:
            if (answer := by_id.get(held.job.id)) is not None:
                recorded_before = held.unknown and answer.state == _END_STATES.get(_outcome(held).outcome)
                self._done([held], accepted=answer.accepted or recorded_before, state=answer.state)

    def _done(self, batch: Sequence[Held], *, accepted: bool, state: str | None) -> None:
        """Let go of jobs that have all met the same end."""
        self._leases.remove(batch)
        if accepted:
            words = [_outcome(held).outcome for held in batch]
            self.processed += len(words) - words.count("release")
            self.failed += words.count("fail") + words.count("discard")
        if not accepted or state != "completed" or log.isEnabledFor(logging.DEBUG):
            for held in batch:
                _log(held, accepted=accepted, state=state)
        if self._signals.heard("finished"):
            for held in batch:
                self._signals.emit("finished", (UUID(held.job.id), accepted, state))


def _outcome(held: Held) -> Outcome:
    assert held.outcome is not None  # noqa: S101 - `add` takes only those that have one
    return held.outcome


def _size(held: Held) -> int:
    """Return about how many bytes the outcome takes in a statement."""
    outcome = _outcome(held)
    return len(outcome.result or "") + len(outcome.error or "") + 200


def _log(held: Held, *, accepted: bool, state: str | None) -> None:
    job, outcome = held.job, _outcome(held)
    about = {"job_id": job.id, "kind": job.kind, "attempt": job.attempt}
    if not accepted:
        message = "job %s (%s): the lease was lost, the outcome of this attempt is dropped"
        log.warning(message, job.id, job.kind, extra=about)
    elif outcome.outcome in ("fail", "discard") and outcome.error is not None:
        code = json.loads(outcome.error).get("code")
        message = "job %s (%s): attempt %d failed: %s; it is %s"
        log.warning(message, job.id, job.kind, job.attempt, code, state, extra=about)
    else:
        log.debug("job %s (%s): %s", job.id, job.kind, state, extra=about)


def _said(error: Exception) -> str:
    """Return the server's sentence only: its DETAIL can hold the whole row, payload and all."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return primary or type(error).__name__


def _is_about_data(error: Exception) -> bool:
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate.startswith(_DATA_ERROR_CLASSES)
    # Without a state it comes from psycopg: either it cannot express a value, or the connection is gone.
    return isinstance(error, psycopg.DataError | psycopg.ProgrammingError | psycopg.NotSupportedError)
