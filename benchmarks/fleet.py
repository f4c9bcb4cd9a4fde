"""Many workers in few processes: `python -m benchmarks.fleet WORKERS PROCESSES`, until SIGTERM."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys

from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.providers.choice import ProviderSettings, make_provider
from queue_pg_workers.target import load_handlers
from queue_pg_workers.worker import Worker

from benchmarks.contestants.queue_pg import TASKS


async def work(dsn: str, count: int) -> None:
    """Run so many workers in this process until SIGTERM."""
    config = WorkerConfig(dsn=dsn, target=TASKS)
    handlers = load_handlers(TASKS, make_provider(ProviderSettings()))
    workers = [Worker(config, handlers) for _ in range(count)]

    def stop() -> None:
        for worker in workers:
            worker.stop(now=True)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    await asyncio.gather(*(worker.run() for worker in workers))


def _process(dsn: str, count: int) -> None:
    asyncio.run(work(dsn, count))


def main() -> None:
    """Start the processes and end them when asked to."""
    workers, processes = int(sys.argv[1]), int(sys.argv[2])
    arguments = (os.environ["DATABASE_URL"], workers // processes)
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_process, args=arguments) for _ in range(processes)]
    for child in children:
        child.start()

    def stop(*_: object) -> None:
        for child in children:
            child.terminate()

    signal.signal(signal.SIGTERM, stop)
    for child in children:
        child.join()


if __name__ == "__main__":
    main()
