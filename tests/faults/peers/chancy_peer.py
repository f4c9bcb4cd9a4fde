"""Chancy: the asynchronous executor; its plugins of leadership and recovery, which are on by default, look often.

Its handlers are found by annotations that are classes, so those are not put off here.
"""

import asyncio
import os
import sys

from chancy import Chancy, Queue, QueuedJob, Worker, job
from chancy.plugins.leadership import Leadership
from chancy.plugins.recovery import Recovery
from notes import CONCURRENCY, DEAD_SECONDS, POOLED, SECONDS, effect, produce


@job(queue="default")
async def work(*, n: int, context: QueuedJob) -> None:
    with effect(n, context.id):
        await asyncio.sleep(SECONDS)


QUEUE = Queue(
    "default",
    concurrency=CONCURRENCY,
    executor="chancy.executors.asyncex.AsyncExecutor",
    polling_interval=1,
    eager_polling=True,
)


async def main(what: str) -> None:
    plugins = [Leadership(poll_interval=1, timeout=DEAD_SECONDS), Recovery(poll_interval=1)]
    async with Chancy(os.environ["DATABASE_URL"], plugins=plugins, notifications=not POOLED) as chancy:
        if what == "prepare":
            await chancy.migrate()
            await chancy.declare(QUEUE, upsert=True)
        elif what == "produce":

            async def submit(n: int) -> object:
                return (await chancy.push(work.job.with_kwargs(n=n).with_max_attempts(25))).identifier

            await produce(submit)
        else:
            async with Worker(chancy, heartbeat_poll_interval=1, heartbeat_timeout=DEAD_SECONDS) as worker:
                await worker.wait_for_shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
