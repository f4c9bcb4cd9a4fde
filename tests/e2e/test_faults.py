"""What is killed comes back, and what was acknowledged ends; once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.client_sync import SyncQueue
from queue_pg.embedded import EmbeddedPostgres
from queue_pg.errors import DatabaseUnavailable
from queue_pg.schema import migrate


def test_a_killed_workers_job_is_finished_by_another_and_recorded_once(
    folder: Any, dsn: str, api: str, http: Any, database: psycopg.Connection, wait_until: Any
) -> None:
    first = folder.start("worker", "e2e_tasks", DATABASE_URL=dsn, WORKER_ID="first", LEASE_SECONDS="1")
    first.says("serves default")
    job = http("POST", f"{api}/jobs", {"kind": "hold", "payload": {"name": "it"}}).body
    job_url = f"{api}/jobs/{job['id']}"

    [start] = wait_until(lambda: folder.ledger, "the job has started")
    row = database.execute("select worker_id, lease_token from queue_pg.jobs").fetchone()
    assert row is not None
    victim, old_token = row
    assert (victim, int(start.split()[2])) == ("first", first.pid)
    second = folder.start("worker", "e2e_tasks", DATABASE_URL=dsn, WORKER_ID="second")
    second.says("serves default")
    first.process.kill()

    wait_until(lambda: len(folder.ledger) == 2, "the other worker has started it")
    late = http("POST", f"{job_url}/complete", {"lease_token": old_token, "result": "late"})
    assert (late.status, late.body["code"]) == (409, "lease_lost")
    (folder.path / "release").touch()
    done = http("GET", f"{job_url}?wait=30").body
    assert (done["state"], done["result"], done["attempt"]) == ("completed", "it", 1)
    again = http("POST", f"{job_url}/complete", {"lease_token": old_token, "result": "late"})
    assert (again.status, again.body["code"]) == (409, "lease_lost")
    assert http("GET", job_url).body["result"] == "it"
    assert [line.split()[0] for line in folder.ledger] == ["started", "started", "ended"]
    assert folder.ledger[2].split()[2] == str(second.pid)
    assert database.execute("select count(*) from queue_pg.all_jobs").fetchone() == (1,)


class Submitter:
    """Submits one job after another, goes on after refusals, and keeps what was acknowledged."""

    def __init__(self, dsn: str) -> None:
        self.acknowledged: dict[int, UUID] = {}
        self.refused = 0
        self._dsn = dsn
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        n = 0
        with SyncQueue(self._dsn) as queue:
            while not self._stop.is_set():
                n += 1
                try:
                    self.acknowledged[n] = queue.submit("record", {"n": n}).id
                except DatabaseUnavailable:
                    self.refused += 1
                    self._stop.wait(0.05)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def family(pid: int) -> list[int]:
    """Return a process and its children."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # ended meanwhile
    return [pid, *(child for child, parent in parents.items() if parent == pid)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the server's processes in /proc")
def test_every_acknowledged_job_ends_although_postgres_is_killed(folder: Any, wait_until: Any) -> None:
    server = EmbeddedPostgres(folder.path / "postgres")
    dsn = server.start()
    try:
        migrate(dsn)
        workers = [
            folder.start("worker", "e2e_tasks", DATABASE_URL=dsn, LEASE_SECONDS="2", LOG_LEVEL="WARNING")
            for _ in range(2)
        ]
        submitter = Submitter(dsn)
        try:
            for _ in range(2):
                before = len(submitter.acknowledged)
                wait_until(lambda least=before + 150: len(submitter.acknowledged) >= least, "jobs are accepted")
                postmaster = int((server.cluster / "postmaster.pid").read_text().splitlines()[0])
                for pid in family(postmaster):
                    with suppress(ProcessLookupError):  # they end by themselves when the first is gone
                        os.kill(pid, signal.SIGKILL)
                # The server's guard starts it again, at the same address.
                wait_until(lambda dead=postmaster: not Path(f"/proc/{dead}").exists(), "the server is dead")
                wait_until(lambda: server.running() == dsn, "the server is back")
            before = len(submitter.acknowledged)
            wait_until(lambda: len(submitter.acknowledged) >= before + 150, "jobs are accepted again")
        finally:
            submitter.stop()
        assert submitter.refused, "the outage was noticed"
        with psycopg.connect(dsn, autocommit=True) as connection:
            live = "select count(*) from queue_pg.jobs"
            wait_until(lambda: connection.execute(live).fetchone() == (0,), "every job has ended")
            stored = dict(connection.execute("select id, state::text from queue_pg.all_jobs").fetchall())
        assert {stored.get(job_id) for job_id in submitter.acknowledged.values()} == {"completed"}
        assert {str(n) for n in submitter.acknowledged} <= set(folder.ledger)
        assert all(worker.process.poll() is None for worker in workers), "no worker has ended for it"
        for worker in workers:
            worker.process.terminate()
        assert [worker.ended() for worker in workers] == [0, 0]
    finally:
        server.stop()
