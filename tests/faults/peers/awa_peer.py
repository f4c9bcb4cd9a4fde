"""awa: its Rust engine with an asynchronous Python handler, timed as its page on configuration says for 5 seconds."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass

from awa import AsyncClient, Job
from notes import CONCURRENCY, DEAD_SECONDS, POOLED, SECONDS, effect, produce

# sqlx: no prepared statements are kept.
DSN = os.environ["DATABASE_URL"] + ("&statement-cache-capacity=0" if POOLED else "")


@dataclass
class Work:
    n: int


async def serve(client: AsyncClient) -> None:
    @client.task(Work, queue="default")
    async def work(job: Job) -> None:
        with effect(job.args.n, job.id):
            await asyncio.sleep(SECONDS)

    halt = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, halt.set)
    await client.start(
        [("default", CONCURRENCY)],
        heartbeat_interval_ms=1_000,
        heartbeat_staleness_ms=(DEAD_SECONDS - 1) * 1_000,
        heartbeat_rescue_interval_ms=1_000,
        leader_election_interval_ms=1_000,
    )
    await halt.wait()
    await client.shutdown(10_000)


async def main(what: str) -> None:
    client = AsyncClient(DSN)
    if what == "prepare":
        await client.migrate()
        # Else the first worker switches the storage, and what was submitted just before that is never done.
        await client.install_queue_storage()
    elif what == "produce":

        async def submit(n: int) -> object:
            return (await client.insert(Work(n), queue="default")).id

        await produce(submit)
    else:
        await serve(client)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
