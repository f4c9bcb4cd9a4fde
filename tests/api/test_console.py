"""The console's pages and regions, by HTTP and without a browser: what they show, what they refuse, where they lead."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest
from console_kit import BROWSER, page_of, post, regions_of
from page_reader import Element, read
from queue_pg_api.pages import assets, figures, job, jobs, overview, queues, workers
from queue_pg_api.pages.json_text import MAX_CHARACTERS, indented
from queue_pg_api.pages.page import Page
from queue_pg_api.pages.places import PATHS
from queue_pg_api.pages.templating import duration, visible
from queue_pg_api.service import Service
from starlette.applications import Starlette

from queue_pg.client import Queue
from queue_pg.models import JobState

ABSENT = "018f0000-0000-7000-8000-000000000000"
HOSTILE = '<script>alert("1")</script>\u202eevil\u2066'
LISTS: list[Page] = [overview.page, jobs.page, queues.page, workers.page]
SOURCES = Path(assets.__file__).parent

MakeClient = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def service(inner: Starlette) -> Service:
    return inner.state.service


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as opened:
        yield opened


async def run_one(queue: Queue, *, fail: bool = False, result: Any = None) -> str:
    [claimed] = await queue.claim("worker-1", ["default"])
    if fail:
        await queue.fail(claimed.id, claimed.lease_token, {"code": "boom", "message": HOSTILE}, retry=False)
    else:
        await queue.complete(claimed.id, claimed.lease_token, result)
    return str(claimed.id)


# ---- pages with nothing, one and many ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", LISTS, ids=lambda page: page.name)
@pytest.mark.parametrize("count", [0, 1, 130])
async def test_every_list_with_any_number_of_rows(
    web: httpx.AsyncClient, prefix: str, queue: Queue, conn: psycopg.AsyncConnection, page: Page, count: int
) -> None:
    for number in range(count):
        await queue.submit("chat", {"n": number}, queue=f"q {number}/é?&#", tags=["a&b"])
    if count:
        await conn.execute(
            "insert into queue_pg.workers (id, host, pid, version, queues, kinds, capacity)"
            " select 'w' || n, 'host', n, '1', array['q'], array['chat'], 4 from generate_series(1, %s) n",
            (count,),
        )
    found = await regions_of(web, prefix + PATHS[page.name], prefix, page)
    rows = sum(len(section.all("tr")) for section in found.values())
    if count == 0:
        assert rows == 0
        assert page.name == "overview" or any("No" in section.text for section in found.values())
    elif page.name == "overview":
        assert rows == 1 + min(count, overview.NEWEST)
    else:
        assert rows == 1 + (min(count, jobs.DEFAULT_LIMIT) if page.name == "jobs" else count)
    for link in [each for section in found.values() for each in section.all("a")][:12]:
        assert (await web.get(link.attributes["href"])).status_code == 200, link.attributes


async def test_the_front_page_is_for_browsers_alone(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    await queue.submit("chat")
    root = await page_of(web, f"{prefix}/", prefix)
    assert root.all("li", data_key="queued")[0].text.endswith("1")
    assert "No worker is live" in root.text
    answer = await web.get(f"{prefix}/", headers={"accept": "*/*"})
    assert (answer.status_code, answer.headers["location"]) == (307, f"{prefix}/docs")
    assert answer.headers["vary"] == "accept"
    # Nobody's answer depends on what a browser accepts, except there.
    for path in ("/jobs", "/queues", "/workers", "/stats", "/health", "/nothing"):
        assert (await web.get(prefix + path)).headers["content-type"] == "application/json"
    assert (await web.get(f"{prefix}/console")).headers["location"] == f"{prefix}/"
    assert "Disallow: /" in (await web.get(f"{prefix}/robots.txt")).text


async def test_counts_are_those_of_the_api(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    for _ in range(3):
        await queue.submit("chat")
    await queue.submit("chat", delay=timedelta(hours=1))
    await run_one(queue)
    await run_one(queue, fail=True)
    root = await page_of(web, f"{prefix}/", prefix)
    stats = (await web.get(f"{prefix}/stats")).json()
    for state in JobState:
        [item] = root.all("li", data_key=state.value)
        assert item.text == f"{item.all('span')[0].text} {stats[state.value]}"
        assert item.all("a")[0].attributes["href"] == f"{prefix}/console/jobs?state={state.value}"


# ---- the list ------------------------------------------------------------------------------------------------------


async def test_filters_are_the_address_and_stay_in_the_form(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    await queue.submit("chat", queue="a b/ü", tags=["x&y"], unique_key="k?1")
    await queue.submit("other", queue="plain")
    for query, rows in [
        ("queue=a+b%2F%C3%BC", 1),
        ("kind=other", 1),
        ("tag=x%26y", 1),
        ("key=k%3F1", 1),
        ("state=queued", 2),
        ("state=queued&queue=&kind=+&tag=&key=", 2),
        ("state=failed", 0),
        (f"parent={ABSENT}", 0),
        ("kind=nothing", 0),
    ]:
        root = await page_of(web, f"{prefix}/console/jobs?{query}", prefix)
        assert len(root.all("tbody")[0].children if root.all("tbody") else []) == rows, query
        for name, [value] in parse_qs(query).items():
            fields = root.all("input", name=name) or root.all("select", name=name)[0].all("option", selected="")
            shown = {field.attributes.get("value", field.text) for field in fields}
            assert value.strip() == "" or value in shown, name


async def test_pages_of_the_list_keep_the_filters_and_miss_nothing(
    web: httpx.AsyncClient, prefix: str, queue: Queue
) -> None:
    submitted = [str((await queue.submit("chat", queue="one & two")).id) for _ in range(23)]
    await queue.submit("chat", queue="elsewhere")
    seen: list[str] = []
    address: str | None = f"{prefix}/console/jobs?queue=one+%26+two&limit=10"
    pages = 0
    while address:
        root = await page_of(web, address, prefix)
        seen += [row.attributes["data-key"] for row in root.all("tbody")[0].children]
        older = [link.attributes["href"] for link in root.all("a") if link.text == "Older"]
        newest = [link.attributes["href"] for link in root.all("a") if link.text == "Newest"]
        assert newest == ([f"{prefix}/console/jobs?queue=one+%26+two&limit=10"] if pages else [])
        address = older[0] if older else None
        pages += 1
    assert (pages, seen) == (3, submitted[::-1])


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("state=lost", "state"),
        ("colour=red", "colour: is no filter"),
        ("kind=" + "x" * 201, "kind"),
        ("cursor=nonsense", "cursor"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("batch=1", "batch"),
        ("kind=a%00b", "NUL"),
        ("kind=a&kind=b", "more than once"),
        ("tag=%ED%A0%80", None),
    ],
)
async def test_a_bad_filter_is_named_and_stays_in_the_form(
    web: httpx.AsyncClient, prefix: str, query: str, reason: str | None
) -> None:
    status = 422 if reason else 200
    root = await page_of(web, f"{prefix}/console/jobs?{query}", prefix, status)
    if reason:
        [fault] = root.all("p", role="alert")
        assert reason in fault.text
    part = await web.get(f"{prefix}/console/jobs?{query}&part=jobs")
    assert part.status_code == status


async def test_lists_read_neither_payloads_nor_results(
    web: httpx.AsyncClient, prefix: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    await queue.submit("chat", {"secret": "in the payload"})
    await run_one(queue, result="in the result")
    for path in ("/", "/console/jobs", "/console/queues"):
        text = (await web.get(prefix + path)).text
        assert "in the payload" not in text
        assert "in the result" not in text
    # Not even inside the database: what cannot be read does no harm.
    await conn.execute("update queue_pg.finished_jobs set payload = to_jsonb(repeat('x', 20000000))")
    assert (await web.get(f"{prefix}/console/jobs")).status_code == 200


async def test_a_look_that_takes_too_long_ends_and_says_so(
    web: httpx.AsyncClient, prefix: str, queue: Queue, conn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue.submit("chat")
    async with conn.transaction():
        await conn.execute("lock table queue_pg.finished_jobs")
        with monkeypatch.context() as short:
            short.setattr(figures, "LOOK_SECONDS", 0.2)
            answer = await web.get(f"{prefix}/console/jobs?part=jobs")
            assert answer.status_code == 200
            assert "narrow the filters" in read(answer.text, prefix).text
            # The totals do not need that table; the other regions say what is the matter.
            short.setattr(figures, "LOOK_SECONDS", 1.0)
            root = await page_of(web, f"{prefix}/", prefix)
            assert root.all("li", data_key="queued")[0].text.endswith("1")
            assert len(root.all("p", role="alert")) == 2
    assert "narrow" not in (await web.get(f"{prefix}/console/jobs")).text


# ---- one job -------------------------------------------------------------------------------------------------------


async def test_a_job_in_every_state(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    async def shown(job_id: object, state: str) -> tuple[Element, list[str]]:
        address = f"{prefix}/console/jobs/{job_id}"
        found = await regions_of(web, address, prefix, job.page)
        assert found["headline"].all("span", **{"class": f"state state-{state}"})
        moments = [each.all("span", **{"class": "what"})[0].text for each in found["timeline"].all("li")]
        return found["headline"], moments

    later = await queue.submit("chat", delay=timedelta(hours=1))
    headline, moments = await shown(later.id, "scheduled")
    assert moments == ["submitted", "due"]
    assert "to start later" in headline.text

    ready = await queue.submit("chat", {"prompt": "one"})
    headline, moments = await shown(ready.id, "queued")
    assert moments == ["submitted"]
    assert "No live worker" in headline.text
    assert [each.text for each in headline.all("button")] == ["Cancel job"]

    [claimed] = await queue.claim("worker-1", ["default"])
    _, moments = await shown(ready.id, "running")
    assert moments == ["submitted", "started"]
    await queue.complete(claimed.id, claimed.lease_token, {"text": "the answer"})
    headline, moments = await shown(ready.id, "completed")
    assert moments == ["submitted", "started", "completed"]
    assert headline.all("button") == []
    assert "the answer" in (await web.get(f"{prefix}/console/jobs/{ready.id}")).text

    wrong = await queue.submit("chat")
    await run_one(queue, fail=True)
    headline, moments = await shown(wrong.id, "failed")
    assert moments[0] == "submitted"
    assert moments[-1] == "failed"
    assert [each.text for each in headline.all("button")] == ["Retry"]
    assert "boom" in headline.text

    unwanted = await queue.submit("chat")
    await queue.cancel(unwanted.id, "no longer needed")
    headline, moments = await shown(unwanted.id, "cancelled")
    assert moments == ["submitted", "cancelled"]
    assert "no longer needed" in headline.text


async def test_attempts_and_what_became_of_each(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    submitted = await queue.submit("chat", max_attempts=5)
    for message in ("first", "second"):
        [claimed] = await queue.claim("worker-1", ["default"])
        await queue.fail(claimed.id, claimed.lease_token, {"code": "timeout", "message": message}, delay=0)
    answer = await web.get(f"{prefix}/console/jobs/{submitted.id}?part=timeline")
    text = read(answer.text, prefix).text
    assert text.index("first") < text.index("second")
    assert "attempt 1" in text
    assert "attempt 2" in text
    assert "worker-1" in text


async def test_what_the_handler_says(
    web: httpx.AsyncClient, prefix: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = await queue.submit("chat")
    address = f"{prefix}/console/jobs/{submitted.id}?part=output"
    assert "said nothing yet" in read((await web.get(address)).text, prefix).text
    [claimed] = await queue.claim("worker-1", ["default"])
    said = [
        ("log", {"stream": "stderr", "line": HOSTILE}),
        ("chunk", {"text": "Ray"}),
        ("chunk", {"text": "leigh"}),
        ("progress", {"fraction": 0.50}),
        ("chunk", {"text": " scatters"}),
    ]
    await queue.append_events(claimed.id, claimed.lease_token, said)
    answer = await web.get(address)
    [box] = read(answer.text, prefix).all("div", role="log")
    lines = [child.text for child in box.children]
    assert "stderr <script>" in lines[0]
    assert "\u202e" not in answer.text
    assert lines[1] == "Rayleigh"
    assert '"fraction": 0.5' in lines[2]
    assert lines[3] == "scatters"
    # It is no part of the timeline.
    assert "Rayleigh" not in (await web.get(address.replace("output", "timeline"))).text
    monkeypatch.setattr(job, "MAX_SAID", 2)
    short = read((await web.get(address)).text, prefix).text
    assert "Only the newest" in short
    assert "Rayleigh" not in short


async def test_cancel_and_retry_by_form(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    submitted = await queue.submit("chat")
    address = f"{prefix}/console/jobs/{submitted.id}"
    answer = await post(web, f"{address}/cancel", reason="by hand")
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    cancelled = await queue.get(submitted.id)
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.error is not None
    assert cancelled.error["message"] == "by hand"

    answer = await post(web, f"{address}/retry", max_attempts="7")
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    again = await queue.get(submitted.id)
    assert (again.state, again.max_attempts) == (JobState.QUEUED, 7)

    refused = await post(web, f"{address}/retry")
    assert refused.status_code == 409
    assert "Not in this state" in read(refused.text, prefix).text
    for wrong in ("0", "-1", "1001", "x", "٣", "9" * 30):
        assert (await post(web, f"{address}/retry", max_attempts=wrong)).status_code == 422
    assert (await post(web, f"{prefix}/console/jobs/{ABSENT}/cancel")).status_code == 404
    assert (await post(web, f"{prefix}/console/jobs/nonsense/cancel")).status_code == 404


HUGE = {"text": "x" * 3_000_000}
DEEP: Any = 0
for _ in range(60):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        ({"a": HOSTILE}, "U+202E"),
        ({HOSTILE: ["</pre></section>", '" onmouseover="x', "&lt;", "javascript:alert(1)"]}, "</pre></section>"),
        (HUGE, "2.9 MB, of which the beginning"),
        (DEEP, "[ ["),
        ({"n": 12345678901234567890123456789}, "12345678901234567890123456789"),
        ("{{ 7*7 }}{% raw %}", "{{ 7*7 }}"),
        (None, "{}"),
        ("\u200b\u00ad\ufeff", "⟨U+200B⟩"),
    ],
    ids=["script and bidi", "markup", "huge", "deep", "long number", "template", "empty", "invisible"],
)
async def test_hostile_payloads_are_only_text(
    web: httpx.AsyncClient, prefix: str, queue: Queue, payload: Any, shown: str
) -> None:
    submitted = await queue.submit("chat", payload)
    answer = await web.get(f"{prefix}/console/jobs/{submitted.id}")
    root = await page_of(web, f"{prefix}/console/jobs/{submitted.id}", prefix)
    assert shown in root.all("section", data_part="payload")[0].text
    assert [each.attributes["src"].rpartition("/")[2] for each in root.all("script")] == ["main.js"]
    assert "\u202e" not in answer.text
    assert len(answer.content) < 100_000


async def test_hostile_names_tags_keys_and_errors(
    web: httpx.AsyncClient, prefix: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    submitted = await queue.submit(
        HOSTILE, queue=HOSTILE, tags=[HOSTILE, "</td>"], unique_key=HOSTILE, metadata={HOSTILE: HOSTILE}
    )
    [claimed] = await queue.claim(HOSTILE, [HOSTILE])
    await queue.fail(claimed.id, claimed.lease_token, {"code": HOSTILE, "message": HOSTILE * 500}, retry=False)
    await conn.execute(
        "insert into queue_pg.workers (id, host, pid, version, queues, kinds, capacity)"
        " values (%(x)s, %(x)s, 1, %(x)s, array[%(x)s], array[%(x)s], 0)",
        {"x": HOSTILE},
    )
    await queue.pause(HOSTILE)
    for path in ("/", "/console/jobs", f"/console/jobs/{submitted.id}", "/console/queues", "/console/workers"):
        answer = await web.get(prefix + path)
        assert answer.status_code == 200
        root = read(answer.text, prefix)
        assert len(root.all("script")) == 1
        shown = re.sub(r'(value|title|data-key|data-topics)="[^"]*"', "", answer.text)
        assert "\u202e" not in shown, path


async def test_a_payload_that_python_cannot_hold(
    web: httpx.AsyncClient, prefix: str, conn: psycopg.AsyncConnection
) -> None:
    cursor = await conn.execute(
        """insert into queue_pg.jobs (kind, payload) values ('chat', '{"n": 1e5000, "é": null}') returning id"""
    )
    [job_id] = await cursor.fetchone() or [None]
    root = await page_of(web, f"{prefix}/console/jobs/{job_id}", prefix)
    assert "1" + "0" * 3000 in root.all("section", data_part="payload")[0].text
    await conn.execute("update queue_pg.jobs set payload = (repeat('[', 3000) || repeat(']', 3000))::jsonb")
    answer = await web.get(f"{prefix}/console/jobs/{job_id}")
    assert (answer.status_code, len(answer.content) < 300_000) == (200, True)


async def test_an_unknown_job_is_a_page(web: httpx.AsyncClient, prefix: str) -> None:
    for name in (ABSENT, "nonsense", "%3Cscript%3E", "urn:uuid:" + ABSENT):
        root = await page_of(web, f"{prefix}/console/jobs/{name}", prefix, 404)
        assert root.all("h1")[0].text == "No such job"
        part = await web.get(f"{prefix}/console/jobs/{name}?part=headline")
        assert (part.status_code, part.headers["content-type"]) == (404, "text/plain; charset=utf-8")


# ---- the form ------------------------------------------------------------------------------------------------------


async def submitted_by(web: httpx.AsyncClient, queue: Queue, prefix: str, /, **fields: str) -> Any:
    answer = await post(web, f"{prefix}/console/new", **fields)
    assert answer.status_code == 303, answer.text
    path = urlsplit(answer.headers["location"]).path
    assert path.startswith(f"{prefix}/console/jobs/")
    return await queue.get(path.rpartition("/")[2])


async def test_submit_by_form(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    await page_of(web, f"{prefix}/console/new", prefix)
    job = await submitted_by(web, queue, prefix, mode="prompt", prompt="Say\r\nhello & 100% ☺", model="m-1", delay="5")
    assert (job.kind, job.queue, job.state) == ("chat", "default", JobState.QUEUED)
    assert job.payload == {"prompt": "Say\nhello & 100% ☺", "model": "m-1"}

    job = await submitted_by(
        web, queue, prefix, mode="payload", kind="resize", payload='{"n": 1.50, "big": 12345678901234567890}',
        queue="gpu/a", priority="high", tags=" a, b c ,,", max_attempts="3", unique_key="k", when="in", delay="2",
        unit="h",
    )  # fmt: skip
    assert (job.kind, job.queue, job.priority, job.tags) == ("resize", "gpu/a", 10, ["a", "b c"])
    assert (job.max_attempts, job.unique_key, job.state) == (3, "k", JobState.SCHEDULED)
    assert job.payload == {"n": 1.5, "big": 12345678901234567890}
    assert job.run_at - job.created_at == timedelta(hours=2)

    without_scripts = await submitted_by(web, queue, prefix, prompt="x", when="at", at="2999-01-02T03:04", run_at="")
    assert without_scripts.run_at.isoformat() == "2999-01-02T03:04:00+00:00"
    with_seconds = await submitted_by(web, queue, prefix, prompt="x", when="at", at="2999-01-02T03:04:05")
    assert with_seconds.run_at.isoformat() == "2999-01-02T03:04:05+00:00"
    zone = {"at": "2999-01-02T03:04", "run_at": "2999-01-02T01:04:00.000Z"}
    with_scripts = await submitted_by(web, queue, prefix, prompt="x", when="at", **zone)
    assert with_scripts.run_at.isoformat() == "2999-01-02T01:04:00+00:00"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"mode": "payload", "payload": "{}"}, "kind"),
        ({"mode": "payload", "kind": "k", "payload": "{"}, "payload"),
        ({"mode": "payload", "kind": "k", "payload": '{"a": NaN}'}, "payload"),
        ({"mode": "payload", "kind": "k", "payload": '{"a": "\\u0000"}'}, "payload"),
        ({"mode": "payload", "kind": "k", "payload": "[" * 5000 + "]" * 5000}, "payload"),
        ({"mode": "payload", "kind": "k" * 201}, "kind"),
        ({"mode": "payload", "kind": "chatt"}, "kind"),
        ({"prompt": "x", "when": "in"}, "delay"),
        ({"prompt": "x", "when": "in", "delay": "-1"}, "delay"),
        ({"prompt": "x", "when": "at"}, "at"),
        ({"prompt": "x", "when": "at", "at": "tomorrow"}, "run_at"),
        ({"prompt": "x", "when": "never"}, "when"),
        ({"prompt": "x", "priority": "urgent"}, "priority"),
        ({"prompt": "x", "max_attempts": "0"}, "max_attempts"),
        ({"prompt": "x", "max_attempts": "many"}, "max_attempts"),
        ({"prompt": "x", "tags": ",".join("abc" for _ in range(65))}, "tags"),
        ({"prompt": "x", "colour": "red"}, "colour"),
        ({"prompt": "x", "queue": "q" * 201}, "queue"),
    ],
)
async def test_a_refused_form_comes_back_as_it_was(
    web: httpx.AsyncClient, prefix: str, queue: Queue, fields: dict[str, str], field: str
) -> None:
    answer = await post(web, f"{prefix}/console/new", **fields)
    assert answer.status_code == 422
    root = read(answer.text, prefix)
    [fault] = root.all("p", id="fault")
    assert fault.text.startswith(field), fault.text
    assert (await queue.list()).jobs == []
    for name, value in fields.items():
        shown = [each.attributes.get("value") for each in root.all("input", name=name)]
        shown += [each.text for each in root.all("textarea", name=name)]
        if name not in {"colour", "priority", "when", "mode"}:
            assert value.strip() in [text.strip() for text in shown if text is not None], name


async def test_a_link_can_fill_the_form_in(web: httpx.AsyncClient, prefix: str, conn: psycopg.AsyncConnection) -> None:
    kinds = json.dumps([{"kind": "resize", "schema": {"properties": {"n": {"type": "integer"}}}}])
    await conn.execute("select queue_pg.register_kinds(%s)", (kinds,))
    root = await page_of(web, f"{prefix}/console/new?kind=resize&queue=gpu&unknown=1", prefix)
    assert root.all("input", name="kind")[0].attributes["value"] == "resize"
    assert root.all("input", name="queue")[0].attributes["value"] == "gpu"
    assert "checked" in root.all("input", name="mode", value="payload")[0].attributes
    assert '"integer"' in root.text


async def test_forms_that_are_none(web: httpx.AsyncClient, prefix: str) -> None:
    own = {"origin": "http://web", "content-type": "application/x-www-form-urlencoded"}
    address = f"{prefix}/console/new"
    assert (await web.post(address, json={"prompt": "x"}, headers={"origin": "http://web"})).status_code == 415
    assert (await web.post(address, content="prompt=%ff%fe", headers=own)).status_code == 422
    assert (await web.post(address, content="prompt=a%00b", headers=own)).status_code == 422
    assert (await web.post(address, content="&".join("a=1" for _ in range(100)), headers=own)).status_code == 422
    assert (await web.post(address, content="prompt=\xff".encode("latin-1"), headers=own)).status_code == 422


# ---- queues --------------------------------------------------------------------------------------------------------


async def test_pause_and_resume_by_form(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    name = "gpu/ä & b"
    await queue.submit("chat", queue=name)
    address = f"{prefix}/console/queues"
    answer = await post(web, f"{address}/pause", queue=name, minutes="10")
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    [stats] = await queue.stats()
    assert stats.paused
    assert stats.paused_until is not None
    root = await page_of(web, address, prefix)
    [row] = root.all("tr", data_key=name)
    assert "paused until in 9 min" in row.text or "paused until in 10 min" in row.text
    assert [each.text for each in row.all("button")] == ["Resume"]

    assert (await post(web, f"{address}/resume", queue=name)).status_code == 303
    assert not (await queue.stats())[0].paused
    [row] = (await page_of(web, address, prefix)).all("tr", data_key=name)
    assert [each.text for each in row.all("button")] == ["Pause", "Drain"]
    assert (await post(web, f"{address}/pause", queue=name)).status_code == 303
    assert (await queue.stats())[0].paused_until is None
    for wrong in ({}, {"queue": "x" * 201}, {"queue": name, "minutes": "7"}, {"queue": name, "minutes": "-1"}):
        assert (await post(web, f"{address}/pause", **wrong)).status_code == 422


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://web.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_forms_of_other_origins_are_refused(
    web: httpx.AsyncClient, prefix: str, queue: Queue, headers: dict[str, str]
) -> None:
    submitted = await queue.submit("chat")
    for path in (
        "/new",
        f"/jobs/{submitted.id}/cancel",
        f"/jobs/{submitted.id}/retry",
        "/queues/pause",
        "/queues/resume",
    ):
        answer = await web.post(
            f"{prefix}/console{path}", data={"prompt": "x", "mode": "prompt", "queue": "default"}, headers=headers
        )
        assert answer.status_code == 403, path
        read(answer.text, prefix)
    assert [each.state for each in (await queue.list()).jobs] == [JobState.QUEUED]
    assert not (await queue.stats())[0].paused


async def test_what_is_not_there_is_a_page(web: httpx.AsyncClient, prefix: str) -> None:
    for path in ("/console/", "/console/nothing", "/console/jobs/", "/console/%E2%80%AE", "/console/queues/gpu"):
        await page_of(web, prefix + path, prefix, 404)
    for part in ("nothing", "", "../layout"):
        assert (await web.get(f"{prefix}/console/jobs?part={part}")).status_code == 404
    for method, path in (("POST", "/console/workers"), ("DELETE", "/console/new"), ("GET", "/console/queues/pause")):
        answer = await web.request(method, prefix + path, headers={"origin": "http://web"})
        assert answer.status_code == 405
        read(answer.text, prefix)
    assert (await web.head(f"{prefix}/console/jobs")).status_code == 200


async def test_the_database_away_is_a_page_that_tries_again(make_client: MakeClient) -> None:
    async with make_client("postgresql://nobody@127.0.0.1:1/none") as client:
        for path in (
            "/",
            "/console/jobs",
            f"/console/jobs/{ABSENT}",
            "/console/new",
            "/console/queues",
            "/console/workers",
        ):
            answer = await client.get(path, headers=BROWSER)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            root = read(answer.text)
            assert root.all("h1")[0].text == "The database is away"
            assert root.all("meta", http_equiv="refresh")
            assert "nobody" not in answer.text
        part = await client.get("/console/jobs?part=jobs", headers=BROWSER)
        assert (part.status_code, part.text) == (503, "Database unavailable")
        answer = await client.post("/console/new", data={"prompt": "x"})
        assert answer.status_code == 503
        assert not read(answer.text).all("meta", http_equiv="refresh")


async def test_an_unforeseen_fault_tells_nothing(
    web: httpx.AsyncClient, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fault(_: object) -> None:
        raise RuntimeError("the inside of things")

    monkeypatch.setattr(figures.Figures, "overview", fault)
    answer = await web.get(f"{prefix}/console/queues")
    assert answer.status_code == 500
    assert "inside" not in answer.text
    assert "the inside of things" in caplog.text


# ---- files ----------------------------------------------------------------------------------------------------------


async def test_assets_are_kept_by_their_version(web: httpx.AsyncClient, prefix: str) -> None:
    root = await page_of(web, f"{prefix}/", prefix)
    used = [each.attributes["src"] for each in root.all("script")]
    used += [each.attributes["href"] for each in root.all("link")]
    for address in used:
        answer = await web.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert address.startswith(f"{prefix}/console/static/{assets.version()}/")
    old = await web.get(f"{prefix}/console/static/old/main.js")
    assert (old.status_code, old.headers["cache-control"]) == (200, "no-cache")
    for name in ("nothing.js", "..%2Fpage.py", "page.py", ""):
        assert (await web.get(f"{prefix}/console/static/x/{name}")).status_code == 404


def test_budgets_and_nothing_from_elsewhere() -> None:
    scripts = sorted((SOURCES / "static").glob("*.js"))
    templates = sorted((SOURCES / "templates").rglob("*.html"))
    assert sum(len(path.read_text("utf-8").splitlines()) for path in scripts) <= 700
    assert sum(len(path.read_text("utf-8").splitlines()) for path in templates) <= 1_200
    for path in (*scripts, *templates, *(SOURCES / "static").glob("*.css")):
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|\bsafe\b|innerHTML|eval\(|document\.write", text), path.name
    for path in scripts:
        for name in re.findall(r'from "([^"]+)"', path.read_text("utf-8")):
            assert name.startswith("./")
            assert (path.parent / name).exists()


# ---- how values are shown -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "\N{EN DASH}"), (-5, "0 s"), (0, "0 s"), (0.25, "250 ms"), (1.5, "1.5 s"), (59.9, "59 s"), (60, "1 min"),
        (61, "1 min 1 s"), (3_600, "1 h"), (90_061, "1 d 1 h"), (1e12, "11574074 d 1 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_json_is_indented_as_it_stands() -> None:
    text = '{"a": [1.500, {}, [], "x, {y}: \\" ["], "b": null}'
    assert indented(text) == '{\n  "a": [\n    1.500,\n    {},\n    [],\n    "x, {y}: \\" ["\n  ],\n  "b": null\n}'
    assert json.loads(indented(text)) == json.loads(text)
    for end in range(len(text)):
        indented(text[:end])  # cut off anywhere
    assert len(indented("[" * 1_000_000)) <= MAX_CHARACTERS
    assert visible("a\u202eb\x00c\nd") == "a⟨U+202E⟩b⟨U+0000⟩c\nd"


async def test_the_pages_share_one_look(service: Service, inner: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    real = figures.store.queue_stats

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal looks
        looks += 1
        return await real(*args, **kwargs)

    monkeypatch.setattr(figures.store, "queue_stats", counted)
    monkeypatch.setattr(figures, "FRESH_SECONDS", 60)
    async with inner.router.lifespan_context(inner):
        await asyncio.gather(*(service.figures.overview() for _ in range(20)))
        assert looks == 1
        service.figures.changed()
        await service.figures.overview()
        assert looks == 2
