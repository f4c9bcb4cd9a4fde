"""The maintenance loop: in time, woken by hints, through outages. Time is the database's movable clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from queue_pg import JobNotFound, Queue, maintenance, store
from queue_pg.maintenance import MaintenanceLoop
from queue_pg.models import MaintenanceStep
from queue_pg.pool import AsyncPool
from queue_pg.settings import Settings
from queue_pg.testing import Clock
from queue_pg.wakeup import WAKE, Wakeups

SOON = 20.0


class Watched(MaintenanceLoop):
    """Tells its steps and pauses, so that tests need not sleep."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[MaintenanceStep] = []
        self.pauses: list[float] = []
        self.failures = 0
        self._changed = asyncio.Condition()

    async def step(self) -> MaintenanceStep:
        try:
            step = await super().step()
        except Exception:
            self.failures += 1
            await self._tell()
            raise
        self.seen.append(step)
        await self._tell()
        return step

    def _pause(self, step: MaintenanceStep) -> float:
        pause = super()._pause(step)
        self.pauses.append(pause)
        return pause

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


async def test_a_hint_wakes_the_loop(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "MAX_SLEEP_SECONDS", 3600.0)
    async with Queue(dsn, notify=False) as queue:
        with Wakeups(dsn) as wakeups:
            assert await asyncio.to_thread(wakeups.wait_listening, SOON)
            async with running(Watched(dsn, wakeups)) as loop:
                await loop.until(lambda: bool(loop.seen))
                assert loop.seen[0].next_due_seconds is None
                steps = len(loop.seen)
                await queue.submit("k", delay=1800)
                await loop.until(lambda: len(loop.seen) > steps)
                assert loop.seen[-1].next_due_seconds is not None


async def test_pauses(dsn: str) -> None:
    loop = MaintenanceLoop(dsn)

    def pause(**given: Any) -> float:
        step = {"reaped": 0, "promoted": 0, "expired": 0, "busy": False, "next_due_seconds": None, **given}
        return loop._pause(MaintenanceStep(**step))

    assert 1.0 <= pause() <= 1.1
    assert 0.3 <= pause(next_due_seconds=0.3) <= 0.33
    assert 1.0 <= pause(next_due_seconds=100) <= 1.1
    assert 0.01 <= pause(next_due_seconds=0.0) <= 0.011
    assert 0.25 <= pause(next_due_seconds=0.0, busy=True) <= 0.275
    assert pause(promoted=1000) == 0


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


async def test_two_loops_share_the_work(dsn: str, clock: Clock) -> None:
    async with Queue(dsn, notify=False) as queue:
        await queue.submit("k", delay=60)
        clock.advance(61)
        one, two = Watched(dsn), Watched(dsn)
        async with running(one), running(two):
            await one.until(lambda: bool(one.seen))
            await two.until(lambda: bool(two.seen))
        assert sum(step.promoted for step in one.seen + two.seen) == 1


async def test_works_on_a_pool(dsn: str) -> None:
    pool = AsyncPool(dsn)
    step = await MaintenanceLoop(pool).step()
    assert not step.busy
    await pool.close()


async def test_the_settings_of_the_process_become_the_instance_s_defaults(
    dsn: str, conn: psycopg.AsyncConnection, clock: Clock, monkeypatch: pytest.MonkeyPatch
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
        clock.advance(119)
        assert (await queue.get(job.id)).state == "cancelled"
        clock.advance(2)
        with pytest.raises(JobNotFound):
            await queue.get(job.id)
        await start(job_ttl_seconds=60)
        monkeypatch.delenv("JOB_TTL_SECONDS")
        await start()  # it says nothing of retention, and leaves it as it is
    await pool.close()
    row = await (await conn.execute("select extract(epoch from retention) from queue_pg.settings")).fetchone()
    assert row == (60,)
