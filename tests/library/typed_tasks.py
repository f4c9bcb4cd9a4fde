"""Checked by mypy and pyright in test_typing.py: every line marked `# error` must be one, and no other."""

from __future__ import annotations

from typing import assert_type

from queue_pg import Job, Queue, SyncQueue, task


@task
async def summarise(text: str, words: int = 50) -> str:
    return text[:words]


@task(queue="cpu", run_in="process")
def count(text: str) -> int:
    return len(text)


async def right(queue: Queue, sync_queue: SyncQueue) -> None:
    assert_type(await summarise.submit(text="a", words=3), Job)
    assert_type(await summarise.submit("a"), Job)
    assert_type(await summarise.using(queue=queue, delay=5, tags=["a"]).submit(text="a"), Job)
    assert_type(await summarise(text="a"), str)
    assert_type(count("a"), int)
    assert_type(count.submit_sync("a"), Job)
    assert_type(count.using(queue=sync_queue).submit_sync(text="a"), Job)


async def wrong(queue: Queue) -> None:
    await summarise.submit(text=7)  # error
    await summarise.submit()  # error
    await summarise.submit("a", wrods=3)  # error
    await summarise.using(queue=queue).submit(txet="a")  # error
    summarise.using(prioritty=3)  # error
    summarise.using(delay="soon")  # error
    count.submit_sync(b"a")  # error
    count(1)  # error
    await queue.submit(7)  # error
