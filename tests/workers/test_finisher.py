"""The flush of outcomes, without a database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from queue_pg_workers import finisher
from queue_pg_workers.finisher import Finisher
from queue_pg_workers.leases import Held, Leases
from queue_pg_workers.outcomes import released
from queue_pg_workers.signals import Signals

from queue_pg import store
from queue_pg.models import Finished, LeasedJob, Outcome
from queue_pg.outcomes import of_return


def held(job_id: str | None = None, *, token: int = 1) -> Held:
    job = LeasedJob(
        id=job_id or str(uuid4()),
        org="default",
        queue="default",
        kind="k",
        payload="{}",
        metadata=None,
        attempt=1,
        max_attempts=4,
        lease_token=token,
        lease_seconds=30,
        timeout_seconds=300,
        tags=None,
        traceparent=None,
    )
    return Held(job, asked_at=0, on_interrupted=lambda _held: None)


class FakeLink:
    async def run(self, statement: Any) -> Any:
        return await statement(None)


class Recorder:
    """Stands for queue_pg.finish: notes batches, refuses as told."""

    def __init__(self, *refusals: Exception | None) -> None:
        self.batches: list[list[Outcome]] = []
        self._refusals = list(refusals)

    async def finish(self, _connection: Any, outcomes: Sequence[Outcome]) -> list[Finished]:
        self.batches.append(list(outcomes))
        if self._refusals and (refusal := self._refusals.pop(0)) is not None:
            raise refusal
        return [Finished(str(outcome.id), True, "failed") for outcome in outcomes if outcome.outcome == "discard"]


async def flush(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, *entries: Held) -> Finisher:
    monkeypatch.setattr(store, "finish", recorder.finish)
    link: Any = FakeLink()
    flushing = Finisher(link, Leases(), max_unflushed=10, signals=Signals(), on_room=lambda: None)
    for one in entries:
        flushing.add(one)
    flushing.close()
    await asyncio.wait_for(flushing.run(), 10)
    return flushing


def completed(one: Held, value: Any = 1) -> Held:
    one.outcome = of_return(one.job.id, one.job.lease_token, value)
    return one


async def test_what_has_gathered_goes_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    flushing = await flush(recorder, monkeypatch, *(completed(held()) for _ in range(5)))
    assert [len(batch) for batch in recorder.batches] == [5]
    assert (flushing.processed, flushing.failed, flushing.unflushed) == (5, 0, 0)


async def test_large_results_go_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finisher, "MAX_BATCH_BYTES", 1000)
    recorder = Recorder()
    await flush(recorder, monkeypatch, *(completed(held(), "x" * 600) for _ in range(3)))
    assert [len(batch) for batch in recorder.batches] == [2, 1]


async def test_two_leases_of_one_job_go_in_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    first = held()
    second = held(first.job.id, token=2)
    first.outcome = released(first.job)
    await flush(recorder, monkeypatch, first, completed(second))
    assert [[outcome.lease_token for outcome in batch] for batch in recorder.batches] == [[1], [2]]


async def test_a_refused_batch_is_sent_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = psycopg.DataError("bad")
    # The batch, the first alone, the second alone; then its replacement is taken.
    recorder = Recorder(refusal, None, refusal)
    entries = [completed(held()) for _ in range(3)]
    flushing = await flush(recorder, monkeypatch, *entries)
    assert [len(batch) for batch in recorder.batches] == [3, 1, 1, 1, 1]
    replacement = recorder.batches[3][0]
    assert (replacement.id, replacement.outcome) == (entries[1].job.id, "discard")
    assert "result_invalid" in (replacement.error or "")
    assert (flushing.processed, flushing.failed) == (3, 1)


async def test_an_outage_keeps_outcomes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(psycopg.OperationalError("away"), psycopg.errors.DeadlockDetected("deadlock"))
    await flush(recorder, monkeypatch, *(completed(held()) for _ in range(3)))
    assert len(recorder.batches) == 3
    assert recorder.batches[0] == recorder.batches[1] == recorder.batches[2]


async def test_a_lease_known_to_be_lost_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    lost = held()
    lost.lost = True
    await flush(recorder, monkeypatch, completed(lost), completed(held()))
    assert [len(batch) for batch in recorder.batches] == [1]


async def test_outcomes_whose_leases_were_lost_in_an_outage_do_not_keep_the_worker_from_claiming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "finish", Recorder(psycopg.OperationalError("away")).finish)
    link: Any = FakeLink()
    signals = Signals()
    lagging_when_told: list[bool] = []
    flushing = Finisher(
        link, Leases(), max_unflushed=10, signals=signals, on_room=lambda: lagging_when_told.append(flushing.lagging)
    )
    one = held()
    with signals.listen("outage") as outage:
        flushing.add(completed(one))
        running = asyncio.create_task(flushing.run())
        await asyncio.wait_for(outage.get(), 10)
    assert flushing.lagging
    # As the heartbeat does, when it is the first to reach the database again.
    one.lost = True
    flushing.close()
    await asyncio.wait_for(running, 10)
    assert not flushing.lagging
    assert lagging_when_told[-1] is False


async def test_a_refusal_for_good_ends_an_outage_too(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = psycopg.DataError("bad")
    monkeypatch.setattr(store, "finish", Recorder(psycopg.OperationalError("away"), refusal, refusal).finish)
    link: Any = FakeLink()
    signals = Signals()
    flushing = Finisher(link, Leases(), max_unflushed=10, signals=signals, on_room=lambda: None)
    flushing.add(completed(held()))
    flushing.close()
    with signals.listen("recovered") as recovered:
        await asyncio.wait_for(flushing.run(), 10)
        assert await asyncio.wait_for(recovered.get(), 10) == "recording outcomes"
    assert (flushing.lagging, flushing.unflushed, flushing.processed) == (False, 0, 0)
