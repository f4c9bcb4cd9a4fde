"""`drain` and `scale` of Queue and SyncQueue."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from queue_pg import InvalidJob, NewJob, Queue, QueueDraining, SyncQueue


async def test_every_way_of_submitting_is_refused_while_it_drains(dsn: str) -> None:
    async with Queue(dsn, notify=False) as queue:
        await queue.drain("mail")
        job = NewJob(kind="send", queue="mail")
        with pytest.raises(QueueDraining, match="is draining") as refused:
            await queue.submit("send", queue="mail")
        assert (refused.value.queue, refused.value.field) == ("mail", "queue")
        for jobs in ([job], [NewJob(kind="send"), job], [job] * 2000):
            with pytest.raises(QueueDraining):
                await queue.submit_many(jobs)
        with pytest.raises(QueueDraining):
            await queue.submit_graph(
                [NewJob(kind="send", key="a"), NewJob(kind="send", queue="mail", depends_on=["a"])]
            )
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            with pytest.raises(QueueDraining):
                await queue.submit_many([job] * 10, connection=conn)
        assert (await queue.list()).jobs == []
        assert [(each.queue, each.state) for each in await queue.stats()] == [("mail", "draining")]
        await queue.resume("mail")
        await queue.submit_many([job] * 2000)


def test_the_blocking_twin(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        queue.submit_many([NewJob(kind="send") for _ in range(25)])
        found = queue.scale("default", slots=10)
        assert (found.desired_workers, found.queued, found.running, found.state) == (3, 25, 0, "active")
        queue.drain("default")
        with pytest.raises(QueueDraining):
            queue.submit("send")
        assert queue.scale("default", slots=10, min_workers=9).desired_workers == 3


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"slots": 0}, "slots"),
        ({"slots": 2.5}, "slots"),
        ({"slots": 2**40}, "slots"),
        ({"jobs_per_worker": "many"}, "jobs_per_worker"),
        ({"jobs_per_worker": float("nan")}, "jobs_per_worker"),
        ({"target_wait": -1}, "target_wait"),
        ({"target_wait": 1, "jobs_per_worker": 1}, "target_wait"),
        ({"min_workers": 5, "max_workers": 4}, "min_workers"),
        ({"max_workers": True}, "max_workers"),
    ],
)
async def test_what_is_wrong_is_named(dsn: str, options: dict[str, Any], field: str) -> None:
    async with Queue(dsn, notify=False) as queue:
        with pytest.raises(InvalidJob) as refused:
            await queue.scale("default", **options)
        assert refused.value.field == field
