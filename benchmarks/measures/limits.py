"""What limits and keys cost a claim, and how long a small tenant waits beside a large one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.bench import Bench
from benchmarks.children import Failed
from benchmarks.contestants.queue_pg import migrate_database
from benchmarks.model import Metric, Record, Target
from benchmarks.server import Database
from benchmarks.statements import statement

NAME = "limits"
TITLE = "Claims under limits, and 10 jobs beside 100,000"
METHOD = """\
One session claims 50 jobs and finishes them, until 10,000 are through: jobs without a key; jobs of 20 keys without
limits; jobs of 20 keys, each with a limit of its own that lets all of them run. Then 100,000 jobs of one key are in the
queue when 10 jobs of another come, and are claimed four at a time: *foreign* is how many of the large key's jobs are
claimed until the last of the ten is."""
METRICS = (
    Metric(name="rate", label="jobs/s", plot=True),
    Metric(name="foreign", label="foreign jobs claimed before the ten are done"),
)
PLAIN, KEYED, LIMITED, SMALL = "without keys", "20 keys", "20 limited keys", "10 beside 100,000"
TARGETS = (
    Target(text="jobs of limited keys against those without", metric="rate", pairs=[(LIMITED, PLAIN)], at_least=0.3),
    Target(
        text="jobs of a key with 100,000 that one with 10 waits for", metric="foreign", pairs=[(SMALL, "")],
        relation="value", at_most=20, unit="jobs",
    ),
)  # fmt: skip

JOBS, QUICK_JOBS = 10_000, 500
LARGE, QUICK_LARGE = 100_000, 2_000
WANTED = 50
KEYS = 20


def run(bench: Bench) -> Record:
    """Claim by each in turn."""
    record = Record()
    jobs = bench.pick(JOBS, QUICK_JOBS)
    # Two runs at most: filling takes longer than what is measured.
    for _ in range(min(bench.runs, 2)):
        for name, key, limited in ((PLAIN, None, False), (KEYED, "key-", False), (LIMITED, "key-", True)):
            with bench.server.database() as database:
                migrate_database(database)
                if limited:
                    database.execute(statement("limits_set"))
                _fill(database, key, jobs, KEYS)
                database.settle()
                begin = time.monotonic()
                taken = _turns(database, jobs, WANTED, last="")
                rate = len(taken) / (time.monotonic() - begin)
            record.add(name, rate=rate)
            bench.say(f"{name:22} {rate:,.0f} jobs/s")
        with bench.server.database() as database:
            migrate_database(database)
            _fill(database, "large", bench.pick(LARGE, QUICK_LARGE), 1)
            _fill(database, "small", 10, 1)
            database.settle()
            foreign = _turns(database, 10, 4, last="small").count("large")
        record.add(SMALL, foreign=foreign)
        bench.say(f"{SMALL:22} {foreign} foreign jobs")
    return record


def _fill(database: Database, key: str | None, jobs: int, keys: int) -> None:
    database.execute(statement("limits_fill"), {"key": key, "keys": keys, "jobs": jobs})


def _turns(database: Database, jobs: int, wanted: int, *, last: str) -> Sequence[str]:
    """Claim and finish until so many jobs of the key `last` are done, of any if it is empty; return all their keys."""
    taken: list[str] = []
    own = 0
    with database.connect() as connection:
        while own < jobs:
            found = connection.execute(statement("limits_claim"), {"wanted": wanted}).fetchone()
            if found is None:
                raise Failed(f"nothing was claimed after {len(taken)} jobs")
            ids, tokens, keys = found
            connection.execute(statement("backlog_finish"), (ids, tokens, ["complete"] * len(ids)))
            taken += keys
            own += sum(not last or key == last for key in keys)
    return taken
