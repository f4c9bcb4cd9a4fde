"""The maintenance loop: in time, woken by hints, one leader, through outages. Time is the database's movable clock."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from queue_pg import JobNotFound, Queue, pace, store
from queue_pg.maintenance import MaintenanceLoop
from queue_pg.models import Horizon, MaintenanceRound, MaintenanceStep
from queue_pg.pool import AsyncPool
from queue_pg.settings import Settings
from queue_pg.testing import Clock
from queue_pg.wakeup import WAKE, Wakeups

SOON = 20.0


class Watched(MaintenanceLoop):
    """Tells its rounds, so that tests need not sleep."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rounds: list[MaintenanceRound] = []
        self.failures = 0
        self._changed = asyncio.Condition()

    @property
    def seen(self) -> list[MaintenanceStep]:
        """The steps taken while it led."""
        return [found.step for found in self.rounds if found.step is not None]

    async def step(self) -> MaintenanceRound:
        try:
            found = await super().step()
        except Exception:
            self.failures += 1
            await self._tell()
            raise
        self.rounds.append(found)
        await self._tell()
        return found

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON), self._changed:
            await self._changed.wait_for(wanted)


@asynccontextmanager
async def running(loop: Watched) -> AsyncIterator[Watched]:
    stop = asyncio.Event()
    task = asyncio.create_task(loop.run(stop))
    try:
        yield loop
    finally:
        stop.set()
        await task


async def test_due_jobs_become_claimable_and_wake_workers(dsn: str, clock: Clock) -> None:
    async with Queue(dsn, notify=False) as queue:
        job = await queue.submit("k", delay=3600)
        with Wakeups(dsn) as wakeups:
            wake = wakeups.subscribe(WAKE)
            async with running(Watched(dsn, wakeups)) as loop:
                await loop.until(lambda: bool(loop.seen))
                clock.advance(3601)
                await loop.until(lambda: sum(step.promoted for step in loop.seen) == 1)
                assert await wake.wait(SOON)
        assert (await queue.get(job.id)).state == "queued"


async def test_expired_leases_and_deadlines(dsn: str, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async with Queue(dsn, notify=False) as queue:
        lost = await queue.submit("k")
        await queue.claim("w", ["default"], lease_seconds=30)
        late = await queue.submit("k", expires_at=clock.now() + timedelta(seconds=60))
        async with running(Watched(dsn)) as loop:
            await loop.until(lambda: bool(loop.seen))
            clock.advance(61)
            await loop.until(lambda: sum(step.reaped + step.expired for step in loop.seen) == 2)
        assert (await queue.get(lost.id)).state == "queued"
        expired = await queue.get(late.id)
        assert (expired.state, (expired.error or {}).get("code")) == ("failed", "expired")
    assert "Took 1 jobs back" in caplog.text


async def test_a_hint_wakes_the_leader(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MAX_SLEEP_SECONDS", 3600.0)
    async with Queue(dsn, notify=False) as queue:
        with Wakeups(dsn) as wakeups:
            assert await asyncio.to_thread(wakeups.wait_listening, SOON)
            async with running(Watched(dsn, wakeups)) as loop:
                await loop.until(lambda: bool(loop.seen))
                assert loop.seen[0].next_due_seconds is None
                await queue.submit("k", delay=0.5)
                await loop.until(lambda: any(step.promoted for step in loop.seen))


async def test_without_notifications_it_polls(dsn: str) -> None:
    async with Queue(dsn, notify=False) as queue:
        with Wakeups(dsn, enabled=False) as wakeups:
            async with running(Watched(dsn, wakeups)) as loop:
                await loop.until(lambda: bool(loop.seen))
                await queue.submit("k", delay=0.5)
                await loop.until(lambda: any(step.promoted for step in loop.seen))


async def test_history_is_kept_at_the_start_and_its_faults_stop_nothing(
    dsn: str,
    conn: psycopg.AsyncConnection,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cursor = await conn.execute("select count(*) from queue_pg.partitions")
    before = await cursor.fetchone()
    clock.advance(timedelta(days=2))  # the migration has made the first partitions
    pool = AsyncPool(dsn)
    await MaintenanceLoop(pool).step()
    cursor = await conn.execute("select count(*) from queue_pg.partitions")
    assert await cursor.fetchone() > (before or (0,))

    async def broken(conn: Any) -> Any:
        raise psycopg.errors.ObjectInUse("a partition is broken")

    monkeypatch.setattr(store, "maintain_history", broken)
    clock.advance(2)  # the first loop is gone
    loop = MaintenanceLoop(pool)
    await loop.step()
    await loop.step()
    assert loop.steps == 2
    assert len([record for record in caplog.records if "History is not maintained" in record.message]) == 1
    await pool.close()


async def test_an_outage_is_survived_and_told_once(
    dsn: str, admin: psycopg.Connection, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "queue_pg.maintenance")
    name = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
    allow = psycopg.sql.SQL("alter database {} allow_connections {}").format
    async with running(Watched(dsn)) as loop:
        await loop.until(lambda: bool(loop.seen))
        admin.execute(allow(psycopg.sql.Identifier(name), False))
        admin.execute("select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s", (name,))
        await loop.until(lambda: loop.failures >= 3)
        admin.execute(allow(psycopg.sql.Identifier(name), True))
        steps = len(loop.seen)
        await loop.until(lambda: len(loop.seen) > steps)
    told = [record.levelname for record in caplog.records if record.name == "queue_pg.maintenance"]
    assert told == ["WARNING", "INFO"]


async def test_one_of_many_leads_and_the_others_look(dsn: str, stopped: Clock) -> None:
    loops: list[Watched] = []
    ages: list[float] = []
    async with AsyncExitStack() as stack:
        for _ in range(4):
            born_at = time.monotonic()
            loop = Watched(dsn)
            loops.append(loop)
            await stack.enter_async_context(running(loop))
            await loop.until(lambda loop=loop: bool(loop.rounds))
            ages.append(time.monotonic() - born_at)
        assert [loop.leads for loop in loops] == [True, False, False, False]
        first = [loop.rounds[0].next_look_seconds for loop in loops]
        assert first[0] == 0
        assert all(0.5 <= seconds <= max(1, age) for seconds, age in zip(first[1:], ages[1:], strict=True))
        async with Queue(dsn, notify=False) as queue:
            await queue.submit("k", delay=60)
            stopped.advance(61)
            # By that clock the lead is over, too: whoever looks first has it.
            promoted = [
                asyncio.create_task(loop.until(lambda loop=loop: any(step.promoted for step in loop.seen)))
                for loop in loops
            ]
            await asyncio.wait(promoted, return_when=asyncio.FIRST_COMPLETED)
            for waiting in promoted:
                waiting.cancel()
            await asyncio.wait(promoted)
        assert sum(step.promoted for loop in loops for step in loop.seen) == 1


@pytest.mark.usefixtures("stopped")
async def test_the_longer_a_process_is_there_the_further_away_are_its_looks(dsn: str) -> None:
    async with running(Watched(dsn)) as leader:
        await leader.until(lambda: leader.leads)
        async with running(Watched(dsn)) as second, running(Watched(dsn)) as third:
            await third.until(lambda: third.rounds != [] and third.rounds[-1].next_look_seconds > 1.01)
        assert all(0.5 <= loop.rounds[0].next_look_seconds <= 1 for loop in (second, third))


async def test_another_one_leads_when_the_leader_stops_or_dies(dsn: str, stopped: Clock) -> None:
    pool = AsyncPool(dsn)
    second, third = MaintenanceLoop(pool), MaintenanceLoop(pool)
    async with running(Watched(dsn)) as first:
        await first.until(lambda: first.leads)
        await second.step()
        assert not second.leads
    await second.step()  # the first one has resigned
    assert second.leads
    await third.step()
    assert not third.leads
    stopped.advance(1.6)  # the second one does nothing more
    await third.step()
    assert third.leads
    await second.step()
    assert not second.leads
    await pool.close()


async def test_works_on_a_pool(dsn: str) -> None:
    pool = AsyncPool(dsn)
    found = await MaintenanceLoop(pool).step()
    assert found.step is not None
    assert not found.step.busy
    await pool.close()


@pytest.mark.usefixtures("stopped")
async def test_who_holds_the_horizon_is_told_by_the_leader(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    holder = Horizon(
        kind="session", pid=4711, name="report", username="app", database="shop", state="idle in transaction",
        visible=True, age_seconds=90.0, age_transactions=5_000, query="select 1", dead_rows=12_345, jobs_bytes=2**20,
    )  # fmt: skip

    async def held(_: Any) -> Horizon:
        return holder

    monkeypatch.setattr(store, "horizon", held)
    pool = AsyncPool(dsn)
    leader, other = MaintenanceLoop(pool), MaintenanceLoop(pool)
    await leader.step()
    await other.step()
    await pool.close()
    [told] = [record.getMessage() for record in caplog.records if record.name == "queue_pg.horizon"]
    assert "pid 4711" in told
    assert "12,345 dead rows" in told
    assert "pg_terminate_backend(4711)" in told


async def test_the_settings_of_the_process_become_the_instance_s_defaults(
    dsn: str, conn: psycopg.AsyncConnection, stopped: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"JOB_TTL_SECONDS": "120", "ZBRAIN_MAX_RETRIES": "1", "ZBRAIN_DEFAULT_TIMEOUT": "7"}.items():
        monkeypatch.setenv(name, value)

    async def start(**settings: Any) -> None:
        loop = MaintenanceLoop(pool, defaults=Settings.load(env_file=None, **settings).instance_defaults)
        await loop.step()

    pool = AsyncPool(dsn)
    async with Queue(dsn, notify=False) as queue:
        await start()
        job = await queue.submit("k")
        assert (job.max_attempts, job.timeout.total_seconds()) == (2, 7)
        await queue.cancel(job.id)
        stopped.advance(119)
        assert (await queue.get(job.id)).state == "cancelled"
        stopped.advance(2)
        with pytest.raises(JobNotFound):
            await queue.get(job.id)
        await start(job_ttl_seconds=60)
        monkeypatch.delenv("JOB_TTL_SECONDS")
        await start()  # it says nothing of retention, and leaves it as it is
    await pool.close()
    row = await (await conn.execute("select extract(epoch from retention) from queue_pg.settings")).fetchone()
    assert row == (60,)
