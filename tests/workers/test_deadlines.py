"""Timeouts of many handlers by one timer."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from in_process import soon
from queue_pg_workers.deadlines import Deadlines
from queue_pg_workers.leases import Held, Interruption, Leases

from queue_pg.models import LeasedJob, Outcome


def leased() -> LeasedJob:
    return LeasedJob(
        id=str(uuid4()),
        org="default",
        queue="default",
        kind="k",
        payload="{}",
        metadata=None,
        attempt=1,
        max_attempts=4,
        lease_token=1,
        lease_seconds=30,
        timeout_seconds=300,
        tags=None,
        traceparent=None,
    )


async def test_each_is_interrupted_at_its_time_and_who_has_ended_is_not() -> None:
    now = asyncio.get_running_loop().time()
    interrupted: asyncio.Queue[Held] = asyncio.Queue()
    leases = Leases()
    deadlines = Deadlines(leases)
    batch = [Held(leased(), asked_at=now, on_interrupted=interrupted.put_nowait) for _ in range(5)]
    last, first, ended, far, second = batch
    for held, after in zip(batch, (0.06, 0.01, 0.02, 300.0, 0.03), strict=True):
        held.times_out_at = now + after
    ended.outcome = Outcome(ended.job.id, 1, "complete")
    leases.add(batch)
    deadlines.watch(far.times_out_at)
    deadlines.watch(first.times_out_at)
    deadlines.watch(last.times_out_at)
    for expected in (first, second, last):
        assert await soon(interrupted.get()) is expected
        assert expected.interruption is Interruption.TIMEOUT
        assert asyncio.get_running_loop().time() >= expected.times_out_at
    assert (ended.interruption, far.interruption) == (None, None)
    deadlines.close()
    assert interrupted.empty()
