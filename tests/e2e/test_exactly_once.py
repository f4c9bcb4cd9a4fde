"""10,000 jobs over four worker processes: each ended exactly once, none lost; by a ledger outside the database."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import psycopg

JOBS = 10_000
WORKERS = 4


def test_ten_thousand_jobs_each_run_once(folder: Any, dsn: str, database: psycopg.Connection, wait_until: Any) -> None:
    lines = "".join(json.dumps({"n": n}) + "\n" for n in range(JOBS))
    (folder.path / "payloads.jsonl").write_text(lines)
    workers = [
        folder.start("worker", "e2e_tasks", "--concurrency", "32", DATABASE_URL=dsn, WORKER_ID=f"w{n}")
        for n in range(WORKERS)
    ]
    for worker in workers:
        worker.says("serves default")
    submitted = folder.run("submit", "record", "--jsonl", "payloads.jsonl", DATABASE_URL=dsn)
    assert submitted.returncode == 0, submitted.stderr
    ids = submitted.stdout.split()
    assert len(set(ids)) == JOBS

    left = "select count(*) from queue_pg.jobs"
    wait_until(lambda: database.execute(left).fetchone() == (0,), "every job has ended")
    for worker in workers:
        worker.process.terminate()
    assert [worker.ended() for worker in workers] == [0] * WORKERS

    counts = Counter(folder.ledger)
    assert counts == Counter(map(str, range(JOBS))), f"run more than once: {counts - Counter(set(counts))}"
    rows = database.execute(
        "select id::text, state::text, result, attempt, lease_token, worker_id from queue_pg.all_jobs"
    ).fetchall()
    assert {row[0] for row in rows} == set(ids)
    assert len(rows) == JOBS
    assert {(row[1], row[3], row[4]) for row in rows} == {("completed", 1, 1)}
    assert {row[2] for row in rows} == set(range(JOBS))
    assert {row[5] for row in rows} == {f"w{n}" for n in range(WORKERS)}, "all of them took part"
    stats = folder.json("stats", DATABASE_URL=dsn)
    assert stats["jobs"]["completed"] == JOBS
