"""One queue, four doors: HTTP, command line, SQL in a psql transaction, Python in the caller's transaction."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from queue_pg.client_sync import SyncQueue


@pytest.fixture
def worker(folder: Any, dsn: str) -> Any:
    working = folder.start("worker", "e2e_tasks", DATABASE_URL=dsn)
    working.says("serves default")
    return working


@pytest.mark.usefixtures("worker")
def test_by_http(api: str, http: Any) -> None:
    answer = http("POST", f"{api}/jobs", {"kind": "record", "payload": {"n": 1}})
    assert answer.status == 201
    polled = http("GET", f"{api}/jobs/{answer.body['id']}?wait=30").body
    assert (polled["state"], polled["result"]) == ("completed", 1)


@pytest.mark.usefixtures("worker")
def test_by_command_line(folder: Any, dsn: str) -> None:
    submitted = folder.run("submit", "record", '{"n": 2}', DATABASE_URL=dsn)
    job_id = submitted.stdout.strip()
    waited = folder.run("wait", job_id, "--timeout", "30s", DATABASE_URL=dsn)
    assert (waited.returncode, waited.stdout) == (0, f"{job_id} completed\n")
    assert folder.json("get", job_id, DATABASE_URL=dsn)["result"] == 2


@pytest.mark.usefixtures("worker")
def test_by_insert_in_a_psql_transaction(folder: Any, dsn: str, psql: list[str], wait_until: Any) -> None:
    def run(script: str) -> str:
        done = subprocess.run([*psql, dsn], input=script, capture_output=True, text=True, check=True, cwd=folder.path)
        return done.stdout.strip()

    insert = "insert into queue_pg.jobs (kind, payload) values ('record', '{\"n\": %d}') returning id;"
    gone = run("begin;" + insert % 3 + "rollback;")
    kept = run("begin;" + insert % 4 + "commit;")
    read = "select state, result from queue_pg.job('%s');"
    wait_until(lambda: run(read % kept) == "completed|4", "the inserted job ends")
    assert run(read % gone) == ""
    assert run("select queue, completed from queue_pg.overview;") == "default|1"
    assert folder.ledger == ["4"]


@pytest.mark.usefixtures("worker")
def test_by_python_in_the_callers_transaction(folder: Any, dsn: str) -> None:
    with SyncQueue(dsn) as queue, psycopg.connect(dsn) as connection:
        connection.execute("create table orders (id int)")
        connection.commit()
        gone = queue.submit("record", {"n": 5}, connection=connection)
        connection.rollback()
        connection.execute("insert into orders values (6)")
        job = queue.submit("record", {"n": 6}, connection=connection)
        assert queue.list().jobs == [], "nobody sees it before the commit"
        connection.commit()
        assert queue.result(job.id, timeout=30) == 6
        assert [found.id for found in queue.list().jobs] == [job.id]
        assert gone.id != job.id
    assert folder.ledger == ["6"]


@pytest.mark.usefixtures("worker")
def test_by_the_example_that_reads_the_standard_library(folder: Any, dsn: str, database: Any) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "stdlib_summaries.py"
    done = subprocess.run(
        [sys.executable, str(example)],
        env=folder.env | {"DATABASE_URL": dsn},
        cwd=folder.path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "abc            Abstract Base Classes" in done.stdout
    [(submitted,)] = database.execute(
        "select count(*) from queue_pg.all_jobs where tags = '{stdlib-summaries}'"
    ).fetchall()
    assert submitted > 150
