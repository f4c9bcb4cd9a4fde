"""The console's stream: who watches is told what has changed, once, and nobody pays for those who don't."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from queue_pg_api.pages import figures as figures_module
from queue_pg_api.pages import pulse as pulse_module
from queue_pg_api.pages.figures import Figures
from queue_pg_api.pages.pulse import MAX_VIEWERS, Pulse, Rest, TooManyViewers

from queue_pg.client import Queue
from queue_pg.errors import DatabaseUnavailable, TooSlow
from queue_pg.models import NewJob

LONG = 20


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as opened:
        yield opened


class Stream:
    """The events of one open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> tuple[str, Any]:
        """Return name and data of the next event; StopAsyncIteration at the end."""
        name, data = "message", None
        async with asyncio.timeout(LONG):
            async for line in self._lines:
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    data = json.loads(line[6:])
                elif not line and data is not None:
                    return name, data
        raise StopAsyncIteration

    async def topics_until(self, *wanted: str) -> set[str]:
        found: set[str] = set()
        while not found >= set(wanted):
            found |= set((await self.next())[1]["topics"])
        return found


@asynccontextmanager
async def watching(url: str, *topics: str) -> AsyncGenerator[Stream]:
    async with (
        httpx.AsyncClient(timeout=LONG) as client,
        client.stream("GET", f"{url}/console/events", params={"topic": list(topics)}) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = Stream(response)
        assert await stream.next() == ("ready", {})
        yield stream


async def test_who_watches_hears_of_every_change(served: Any, queue: Queue) -> None:
    async with watching(served.url, "jobs", "queues") as lists:
        submitted = await queue.submit("chat")
        assert await lists.topics_until("jobs", "queues") == {"jobs", "queues"}
        async with watching(served.url, f"job:{submitted.id}") as one:
            [claimed] = await queue.claim("w", ["default"])
            await one.topics_until(f"job:{submitted.id}")
            await queue.complete(claimed.id, claimed.lease_token, {})
            await one.topics_until(f"job:{submitted.id}")
        await lists.topics_until("jobs")
        await queue.pause("default")
        await lists.topics_until("queues")


async def test_lists_batches_and_families_are_followed(served: Any, queue: Queue) -> None:
    batch = await queue.create_batch("b")
    parent = await queue.submit("chat")
    topics = ("schedules", "limits", "batches", f"batch:{batch.id}", f"family:{parent.id}", f"family:{uuid4()}")
    async with watching(served.url, *topics) as stream:
        await queue.schedule("s", "report", cron="0 9 * * *")
        assert await stream.topics_until("schedules") == {"schedules"}
        await queue.run_schedule_now("s")
        assert await stream.topics_until("schedules") == {"schedules"}
        await queue.set_limit("queue", "q", max_running=1)
        assert await stream.topics_until("limits") == {"limits"}
        child = await queue.chain(parent.id, NewJob(kind="report"))
        assert await stream.topics_until(f"family:{parent.id}") == {f"family:{parent.id}"}
        await queue.cancel(child.id)
        assert await stream.topics_until(f"family:{parent.id}") == {f"family:{parent.id}"}
        await queue.submit("load", batch_id=batch.id)
        assert await stream.topics_until("batches", f"batch:{batch.id}") == {"batches", f"batch:{batch.id}"}


async def test_steps_and_artifacts_of_a_job_are_followed(served: Any, queue: Queue) -> None:
    submitted = await queue.submit("chat")
    async with watching(served.url, f"job:{submitted.id}") as stream:
        await queue.put_artifact(submitted.id, "a.txt", b"x")
        await stream.topics_until(f"job:{submitted.id}")
        await queue.signal(submitted.id, "go")
        await stream.topics_until(f"job:{submitted.id}")


async def test_workers_and_jobs_that_are_not_there(served: Any, queue: Queue) -> None:
    async with watching(served.url, "workers", f"job:{uuid4()}") as stream, queue.connection() as conn:
        await conn.execute(
            "insert into queue_pg.workers (id, host, pid, version, queues, kinds, capacity)"
            " values ('w', 'h', 1, '1', '{}', '{}', 1)"
        )
        assert await stream.topics_until("workers") == {"workers"}


async def test_a_form_is_seen_by_others_at_once(served: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "INTERVAL_SECONDS", 3_600)
    await queue.submit("chat")
    async with watching(served.url, "queues") as stream, httpx.AsyncClient(base_url=served.url) as client:
        assert (await client.post("/console/queues/pause", data={"queue": "default"})).status_code == 303
        await stream.topics_until("queues")


async def test_streams_end_when_the_service_stops(served: Any) -> None:
    async with watching(served.url, "jobs") as stream:
        served.server.should_exit = True
        with pytest.raises((StopAsyncIteration, RuntimeError)):
            await stream.next()
    await asyncio.wait_for(served.task, LONG)


async def test_who_goes_gives_the_place_back(served: Any) -> None:
    pulse = served.service.figures.pulse
    async with watching(served.url, "jobs"), watching(served.url, "jobs"):
        assert pulse.viewers == 2
    async with asyncio.timeout(LONG):
        while pulse.viewers:  # noqa: ASYNC110 - the other side of a socket sets no event
            await asyncio.sleep(0.01)


async def test_too_many_are_sent_away(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "MAX_VIEWERS", 1)
    async with watching(served.url, "jobs"), httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.get("/console/events?topic=jobs")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    "query",
    [
        "",
        "topic=",
        "topic=all",
        "topic=job:1",
        "topic=job:",
        "&".join(["topic=jobs"] * 21),
        f"topic=thing:{UUID(int=7)}",
    ],
)
async def test_wrong_topics_are_refused(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/console/events?{query}")
    assert answer.status_code == 422
    assert "topic" in answer.text


# ---- the shared look ------------------------------------------------------------------------------------------------


class Looks:
    """A look that the test controls."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[frozenset[str]] = asyncio.Queue()
        self.marks: dict[str, str] = {}
        self.fault: Exception | None = None

    async def __call__(self, topics: Collection[str]) -> Mapping[str, str]:
        self.asked.put_nowait(frozenset(topics))
        if self.fault is not None:
            raise self.fault
        return {topic: self.marks[topic] for topic in topics if topic in self.marks}


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
async def pulse(looks: Looks) -> AsyncIterator[Pulse]:
    made = Pulse(looks, asyncio.Event())
    yield made
    await made.close()


FOREVER = asyncio.Event()


async def test_one_look_for_all_and_none_for_nobody(
    pulse: Pulse, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse_module, "INTERVAL_SECONDS", 3_600)
    looks.marks = {"jobs": "1"}
    viewers = [pulse.enter(["jobs"]), pulse.enter(["jobs", "workers"])]
    for viewer in viewers:
        await asyncio.wait_for(viewer.ready.wait(), LONG)
    assert await looks.asked.get() == {"jobs", "workers"}
    assert looks.asked.empty()
    looks.marks = {"jobs": "2"}
    pulse.kick()
    assert [await viewer.wait(LONG, FOREVER) for viewer in viewers] == [["jobs"], ["jobs"]]
    for viewer in viewers:
        pulse.leave(viewer)
        pulse.leave(viewer)
    assert pulse.viewers == 0
    task = pulse._task
    assert task is not None
    await asyncio.wait_for(task, LONG)


async def test_a_topic_that_appears_or_goes_has_changed(pulse: Pulse, looks: Looks) -> None:
    viewer = pulse.enter(["job:1"])
    await asyncio.wait_for(viewer.ready.wait(), LONG)
    for marks in ({"job:1": "a"}, {"job:1": "b"}, {}):
        looks.marks = marks
        pulse.kick()
        assert await viewer.wait(LONG, FOREVER) == ["job:1"]
    assert await viewer.wait(0, FOREVER) == []


async def test_an_outage_tells_all_and_so_does_its_end(
    pulse: Pulse, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse_module, "FAILURE_SECONDS", 3_600)
    looks.marks = {"jobs": "1"}
    viewer = pulse.enter(["jobs", "workers"])
    await asyncio.wait_for(viewer.ready.wait(), LONG)
    looks.fault = DatabaseUnavailable("away")
    pulse.kick()
    assert await viewer.wait(LONG, FOREVER) == ["jobs", "workers"]
    looks.fault = None
    pulse.kick()
    assert await viewer.wait(LONG, FOREVER) == ["jobs", "workers"]


@pytest.mark.parametrize("fault", [TooSlow("slow"), RuntimeError("a fault of ours")])
async def test_a_look_that_fails_is_taken_again_later(
    pulse: Pulse, looks: Looks, fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pulse_module, "FAILURE_SECONDS", 3_600)
    looks.marks = {"jobs": "1"}
    viewer = pulse.enter(["jobs"])
    await asyncio.wait_for(viewer.ready.wait(), LONG)
    await looks.asked.get()
    looks.fault = fault
    pulse.kick()
    await asyncio.wait_for(looks.asked.get(), LONG)
    assert await viewer.wait(0, FOREVER) == []
    assert ("a fault of ours" in caplog.text) == isinstance(fault, RuntimeError)
    looks.fault, looks.marks = None, {"jobs": "2"}
    pulse.kick()
    assert await viewer.wait(LONG, FOREVER) == ["jobs"]


async def test_one_slow_look_may_be_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds one look up (a connection to open, a busy machine) must not keep all pages still for long."""
    rest = Rest()
    assert [rest.after(took) for took in (1.0, 0.01, 0.01)] == [0, 0.2, 0.2]
    assert [rest.after(took) for took in (1.0, 2.0, 2.0)] == [0.2, 20, 40]
    rests: list[float] = []

    async def recorded(timeout: float, *events: asyncio.Event) -> None:
        rests.append(timeout)
        if len(rests) == 3:
            stopping.set()

    clock = iter([0, 1, 2, 4, 5, 5])
    monkeypatch.setattr(pulse_module, "wait_any", recorded)
    monkeypatch.setattr(pulse_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    stopping = asyncio.Event()
    pulse = Pulse(Looks(), stopping)
    viewer = pulse.enter(["jobs"])
    task = pulse._task
    assert task is not None
    await asyncio.wait([task])
    pulse.leave(viewer)
    assert rests == [pulse_module.INTERVAL_SECONDS, 20, pulse_module.INTERVAL_SECONDS]


async def test_a_slow_connection_is_no_slow_look(served: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts are looked at again soon, however long the first look waited for its connection."""
    figures = served.service.figures
    real, now = Figures.looking, [0.0]

    @asynccontextmanager
    async def opened_slowly(self: Figures) -> AsyncGenerator[Any]:
        async with real(self) as conn:
            now[0] += 5
            yield conn

    monkeypatch.setattr(Figures, "looking", opened_slowly)
    monkeypatch.setattr(figures_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in range(2):
        await figures.overview()
        now[0] += figures_module.FRESH_SECONDS
    await queue.submit("chat")
    assert (await figures.overview()).totals["queued"] == 1


async def test_one_that_is_slow_holds_up_no_others(served: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*_: object) -> object:
        raise TooSlow("slow")

    monkeypatch.setitem(figures_module.LOOKS_AT_ONE, "family", slow)
    job = await queue.submit("chat")
    async with watching(served.url, "jobs", f"family:{job.id}", f"batch:{job.id}") as stream:
        await queue.submit("chat")
        assert await stream.topics_until("jobs") == {"jobs"}


async def test_viewers_are_bounded(pulse: Pulse) -> None:
    for _ in range(MAX_VIEWERS):
        pulse.enter(["jobs"])
    with pytest.raises(TooManyViewers):
        pulse.enter(["jobs"])
