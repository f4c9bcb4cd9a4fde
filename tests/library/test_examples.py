"""The library's examples run as they stand, twice on one database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

PRINTED = {
    "artifacts.py": """input/words.txt 8 text/plain 0
output/words.txt 8 text/plain 1
b'ONE\\nTWO\\n'
""",
    "templates.py": """greeting has the variables who, times
Hello, Ada!
Hello, Bob! Hello, Bob!
refused: variables.times: must be at most 3
""",
    "batches.py": """submitted: 3 jobs are queued
report: import failed, 2 of 3 loaded
failed: 100 % ended, 1 failed
retried: 1
report: import completed, 3 of 3 loaded
completed
""",
    "caching.py": """first queued, second waiting
at work on 2 words
second: 'Queues', from the first: True
third: completed at once, 'Queues'
another version: queued
at work on 2 words
""",
    "replay.py": """3 failed for it
3 put back
completed sent to ann
completed sent to bob
completed sent to cleo
3 deleted
""",
    "quickstart.py": """submitted: greet is queued
result: Hello world
later: scheduled
cancelled: cancelled
""",
    "tasks.py": """refused: payload.words: Input should be a valid integer, unable to parse string as an integer
summarise: completed urgent things go first
summarise: completed one two three
fetch: completed {'url': 'https://example.org/', 'attempt': 1}
""",
    "schedules.py": """report: 0 9 * * mon-fri Europe/Berlin - fires known: 5
schedules: ping, reminder, report
30 2 * * *: 29 01:00 UTC, 30 00:30 UTC
30 2 * * *: 25 00:30 UTC, 26 01:30 UTC
now: report queued report team@example.org
paused: True []
refused: cron: its hour '25' must be of numbers from 0 to 23
""",
    "tasks_planned.py": """queued 4 Define API endpoints and routes
subtask Define API endpoints and routes: done
completed 4
Shorten this: Write API documentation: done
queued []
completed ['open it: done', 'read it: done', 'answer it: done']
""",
    "dependencies.py": "the report is waiting\nALL ABOUT EXAMPLE.ORG (3 words)\n",
    "approval.py": """writing 'Queues'
scheduled: The job waits for the event 'review'.
posting 'Queues: many words'
completed: {'published': 'https://example.org/18'}
step draft: Queues: many words
event review: {'approved': True, 'delay_seconds': 0}
sleep embargo: None
step post: https://example.org/18
""",
    "transaction_psycopg.py": "send_receipt for a book: queued\n",
    "transaction_sqlalchemy.py": "send_receipt for order 1: queued\n",
    "transaction_django.py": "rolled back: the payment failed\nsend_receipt for a book: queued\n",
}


def run(example: str, dsn: str, folder: Path) -> str:
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": dsn}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / example)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("example", PRINTED)
def test_example(example: str, dsn: str, tmp_path: Path) -> None:
    assert run(example, dsn, tmp_path) == PRINTED[example]
    # A second run works too; what is in the database already may show.
    assert run(example, dsn, tmp_path)
