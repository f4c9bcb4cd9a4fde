"""Submit one summarisation request for each documented module of Python's standard library.

    queue-pg dev                          # in one terminal: Postgres, API, a worker
    python examples/stdlib_summaries.py   # in another

`queue-pg demo` does the same with a progress bar.
"""

from __future__ import annotations

import os

from queue_pg import SyncQueue
from queue_pg.cli.stdlib_summaries import summary_jobs

DATABASE_URL = os.environ.get("DATABASE_URL")


def main(*, modules: int | None = None) -> None:
    jobs = list(summary_jobs(tag="stdlib-summaries", modules=modules))
    with SyncQueue(DATABASE_URL) as queue:
        submitted = queue.submit_many(jobs)
        print(f"Submitted {len(submitted)} requests; the first is {submitted[0].id}.")
        for new, job in list(zip(jobs, submitted, strict=True))[:5]:
            done = queue.wait(job.id, timeout=60)
            answer = done.result["text"] if done.state == "completed" else done.error
            print(f"{new.metadata['module']:<14} {answer}")


if __name__ == "__main__":
    main()
