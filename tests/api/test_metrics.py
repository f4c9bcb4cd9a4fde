"""GET /metrics: what Prometheus reads, of the database and of this process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import websockets
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from queue_pg_api.app import all_endpoints, create_app
from queue_pg_api.metrics import DatabaseMetrics
from starlette.applications import Starlette

from queue_pg import Queue
from queue_pg.settings import Settings
from queue_pg.testing import Clock

UNREACHABLE = "postgresql://nobody@127.0.0.1:1/nothing"
GUIDE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(client: httpx.AsyncClient) -> Samples:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return samples_of(answer.text)


def labels(**given: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(given.items()))


OF_DEFAULT = {"org": "default", "queue": "default"}


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as own:
        yield own


async def test_the_figures_of_the_queues(
    app: Starlette, client: httpx.AsyncClient, conn: psycopg.AsyncConnection
) -> None:
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 3)")
    await conn.execute("select queue_pg.complete(id, lease_token) from queue_pg.claim('w', '{default}')")
    found = await scrape(client)
    assert found["queue_pg_queue_jobs", labels(**OF_DEFAULT, state="queued")] == 2
    assert found["queue_pg_jobs_finished_total", labels(**OF_DEFAULT, state="completed")] == 1
    assert found["queue_pg_database_up", ()] == 1
    assert found["queue_pg_queue_workers", labels(**OF_DEFAULT)] == 0
    assert 0 < found["queue_pg_queue_oldest_queued_seconds", labels(**OF_DEFAULT)] < 60


async def test_totals_are_the_same_in_every_process_and_after_a_restart(
    dsn: str, make_client: Any, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    key = ("queue_pg_jobs_finished_total", labels(**OF_DEFAULT, state="cancelled"))
    seen: list[float] = []
    for _ in range(2):
        await queue.cancel((await queue.submit("k")).id)
        async with make_client() as one, make_client() as other:
            both = await asyncio.gather(scrape(one), scrape(other))
            seen += [found[key] for found in both]
    assert seen == [1, 1, 2, 2]


async def test_requests_by_the_template_of_their_route(app: Starlette, client: httpx.AsyncClient) -> None:
    job = (await client.post("/jobs", json={"kind": "chat"})).json()
    for _ in range(2):
        await client.get(f"/jobs/{job['id']}")
    await client.get("/jobs/018f0000-0000-7000-8000-000000000000")
    await client.get(f"/nothing/{job['id']}")
    await client.request("BREW", "/jobs")
    await client.get("/", headers={"accept": "text/html"})
    answer = (await client.get("/metrics")).text
    found = samples_of(answer)
    name = "queue_pg_http_requests_total"
    assert found[name, labels(method="GET", route="/jobs/{id}", status="200")] == 2
    assert found[name, labels(method="GET", route="/jobs/{id}", status="404")] == 1
    assert found[name, labels(method="GET", route="(none)", status="404")] == 1
    assert found[name, labels(method="other", route="/jobs", status="405")] == 1
    assert found["queue_pg_http_request_seconds_count", labels(method="GET", route="/jobs/{id}")] == 3
    assert found["queue_pg_http_request_seconds_bucket", labels(method="POST", route="/jobs", le="60.0")] == 1
    assert job["id"] not in answer


async def test_no_label_has_a_value_that_a_client_can_make_up(app: Starlette, client: httpx.AsyncClient) -> None:
    templates = {endpoint.path for endpoint in all_endpoints()} | {"(none)"}
    for n in range(30):
        await client.request(f"M{n}", f"/jobs/{n}")
        await client.get(f"/x{n}?a={n}")
        await client.get(f"/console/no-{n}", headers={"accept": "text/html"})
    found = await scrape(client)
    routes = {dict(key)["route"] for name, key in found if name == "queue_pg_http_requests_total"}
    assert routes <= templates | {"/console/{path:path}"}
    assert {dict(key)["method"] for name, key in found if name == "queue_pg_http_requests_total"} == {"GET", "other"}


async def test_open_streams(served: Any, app: Starlette) -> None:
    gauge = "queue_pg_http_open_streams"
    async with httpx.AsyncClient(base_url=served.url) as client:
        job = (await client.post("/jobs", json={"kind": "chat"})).json()
        accept = {"accept": "text/event-stream"}
        async with (
            client.stream("GET", f"/jobs/{job['id']}/events", headers=accept) as stream,
            websockets.connect(f"{served.url.replace('http', 'ws')}/jobs/{job['id']}/ws") as socket,
        ):
            assert stream.status_code == 200
            await socket.recv()
            found = await scrape(client)
            assert (found[gauge, labels(type="sse")], found[gauge, labels(type="websocket")]) == (1, 1)
        async with asyncio.timeout(20):
            # The server notices that a client has gone when it next turns to it; each scrape gives it the time.
            while sum(value for (name, _), value in (await scrape(client)).items() if name == gauge):
                pass


async def test_while_the_database_is_away_there_are_the_figures_of_the_process(make_client: Any) -> None:
    async with make_client(UNREACHABLE) as client:
        found = await scrape(client)
        assert found["queue_pg_database_up", ()] == 0
        assert not [name for name, _ in found if name.startswith("queue_pg_queue")]
        assert [name for name, _ in found if name.startswith("process_")]
        again = await scrape(client)
        assert again["queue_pg_http_requests_total", labels(method="GET", route="/metrics", status="200")] == 1


async def test_openmetrics_for_those_who_ask_for_it(client: httpx.AsyncClient) -> None:
    plain = await client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    answer = await client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in read_openmetrics(answer.text)} >= {
        "queue_pg_queue_jobs",
        "queue_pg_http_requests",
    }


async def test_names_of_queues_cannot_break_the_format(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection
) -> None:
    name = 'a"b\\c\nqueue_pg_forged 1'
    await conn.execute("insert into queue_pg.jobs (kind, queue) values ('k', %s)", (name,))
    found = await scrape(client)
    assert found["queue_pg_queue_jobs", labels(org="default", queue=name, state="queued")] == 1
    assert not [key for key in found if key[0] == "queue_pg_forged"]


async def test_scrapes_that_come_together_ask_once(queue: Queue, clock: Clock) -> None:
    now = 0.0
    metrics = DatabaseMetrics(queue, clock=lambda: now)

    def queued(families: Sequence[Any]) -> float:
        return sum(
            sample.value for family in families if family.name == "queue_pg_queue_jobs" for sample in family.samples
        )

    first, second = await asyncio.gather(metrics.families(), metrics.families())
    assert queued(first) == queued(second) == 0
    await queue.submit("k")
    assert queued(await metrics.families()) == 0
    now += 0.6
    assert queued(await metrics.families()) == 1


async def test_other_organisations_are_not_shown(
    dsn: str, client: httpx.AsyncClient, conn: psycopg.AsyncConnection
) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, queue, org) values ('k', 'theirs', 'other')")
    assert "theirs" not in (await client.get("/metrics")).text


async def test_the_guide_lists_every_metric(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    await conn.execute("select queue_pg.set_limit('queue', 'default', 1)")
    await client.get("/livez")
    answer = await client.get("/metrics")
    families = [family.name for family in text_string_to_metric_families(answer.text)]
    names = {name for name in families if name.startswith("queue_pg_") and not name.endswith("_created")}
    counters = set(re.findall(r"^# TYPE (\w+) counter$", answer.text, re.MULTILINE))
    listed = set(re.findall(r"^\| `(queue_pg_(?!worker_)\w+|queue_pg_worker_slots)", GUIDE, re.MULTILINE))
    assert {f"{name}_total" if f"{name}_total" in counters else name for name in names} == listed


def test_an_app_is_measured_by_itself() -> None:
    settings = Settings.load(env_file=None, database_url=UNREACHABLE)
    one, other = create_app(settings), create_app(settings)
    assert one.state.service.http_metrics.registry is not other.state.service.http_metrics.registry
