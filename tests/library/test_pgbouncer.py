"""Through PgBouncer in transaction mode, where it is installed: nothing may depend on the session."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from queue_pg import NewJob, Queue, SyncQueue, store
from queue_pg.connections import connect_async, prepare_if_direct
from queue_pg.maintenance import MaintenanceLoop
from queue_pg.pool import AsyncPool

PROGRAM = os.environ.get("QUEUE_PG_TEST_PGBOUNCER") or shutil.which("pgbouncer")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no pgbouncer here")

CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
{extra}
"""


@pytest.fixture(params=["", "ignore_startup_parameters = options"], ids=["options refused", "options ignored"])
def bouncer(dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of the test's database behind a pooler of two server connections."""
    server = {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(dsn).items()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = free.getsockname()[1]
    settings = {"password": "", **server, "listen": listen, "extra": request.param}
    folder = Path(tempfile.mkdtemp(prefix="queue-pg-bouncer-"))
    folder.chmod(0o755)  # as root, the pooler's account has to read it
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(CONFIGURATION.format(**settings))
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen([str(PROGRAM), "-q", *as_nobody, str(configuration)], stderr=subprocess.DEVNULL)
    dsn = f"postgresql://{server['user']}@127.0.0.1:{listen}/{server['dbname']}"
    try:
        while process.poll() is None:
            try:
                psycopg.connect(dsn, connect_timeout=2).close()
                break
            except psycopg.OperationalError:
                pass
        yield dsn
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


async def test_everything_works(bouncer: str) -> None:
    async with Queue(bouncer, notify=False, max_connections=8) as queue:
        jobs = await asyncio.gather(*(queue.submit("k", {"n": number}) for number in range(50)))
        await queue.submit_many([NewJob(kind="k")] * 1200)
        waiter = asyncio.create_task(queue.wait(jobs[-1].id, 30))

        async def work(worker: str) -> None:
            while claimed := await queue.claim(worker, ["default"], max_jobs=50):
                for job in claimed:
                    assert await queue.complete(job.id, job.lease_token) == "completed"

        while (await queue.stats())[0].queued:
            await asyncio.gather(*(work(f"w{number}") for number in range(8)))
        assert (await waiter).state == "completed"
        assert [stats.completed for stats in await queue.stats()] == [1250]
    pool = AsyncPool(bouncer)
    assert (await MaintenanceLoop(pool).step()).step is not None
    await pool.close()


async def test_nothing_is_prepared(bouncer: str) -> None:
    async with await connect_async(bouncer) as conn:
        await prepare_if_direct(conn)
        assert conn.prepare_threshold is None


async def test_vacuum(bouncer: str, conn: psycopg.AsyncConnection) -> None:
    async with await connect_async(bouncer) as pooled:
        await store.vacuum(pooled, "jobs")
        await store.vacuum(pooled, "queue_counters")
    tables = "'queue_pg.jobs'::regclass, 'queue_pg.queue_counters'::regclass"
    cursor = await conn.execute(f"select pg_stat_get_vacuum_count(oid) from pg_class where oid in ({tables})")
    assert await cursor.fetchall() == [(1,), (1,)]


async def test_listening_goes_nowhere_and_waiting_still_ends(bouncer: str) -> None:
    async with Queue(bouncer) as queue:
        job = await queue.submit("k")
        waiter = asyncio.create_task(queue.wait(job.id, 30))
        await queue.cancel(job.id)
        assert (await waiter).state == "cancelled"


async def test_listening_past_the_pooler(bouncer: str, dsn: str) -> None:
    pool = AsyncPool(bouncer)
    async with Queue(dsn) as queue:
        queue._pool = pool
        job = await queue.submit("k")
        waiter = asyncio.create_task(queue.wait(job.id, 30))
        assert await asyncio.to_thread(queue.wakeups.wait_listening, 30)
        await queue.cancel(job.id)
        assert (await waiter).state == "cancelled"


def test_the_blocking_twin(bouncer: str) -> None:
    with SyncQueue(bouncer, notify=False) as queue:
        assert queue.get(queue.submit("k").id).state == "queued"
