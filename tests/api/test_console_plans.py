"""The console's pages of schedules, batches, limits and job templates, by HTTP and without a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
import pytest
from console_kit import BROWSER, page_of, post, regions_of
from page_reader import read
from queue_pg_api.pages import batches, job_templates, limits, new_schedule, schedules
from queue_pg_api.pages.page import Page
from queue_pg_api.pages.places import PATHS, address
from queue_pg_api.pages.templating import fire

from queue_pg.client import Queue
from queue_pg.errors import LimitNotFound, ScheduleNotFound
from queue_pg.models import JobState

ABSENT = "018f0000-0000-7000-8000-000000000000"
HOSTILE = '<script>alert("1")<\\script>\u202eevil'
LISTS = [schedules.page, batches.page, limits.page, job_templates.page]

MakeClient = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as opened:
        yield opened


# ---- what holds for all of them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", LISTS, ids=lambda page: page.name)
async def test_every_list_page_by_page(web: httpx.AsyncClient, prefix: str, queue: Queue, page: Page) -> None:
    found = await regions_of(web, prefix + PATHS[page.name], prefix, page)
    assert "No" in found[page.name].text
    for number in range(7):
        name = f"n{number}"
        await queue.schedule(name, "report", cron="0 9 * * *")
        await queue.create_batch(name)
        await queue.set_limit("key", f"{name}/ä & b", max_running=3)
        await queue.put_template(name, "chat", {})
    place: str | None = f"{prefix}{PATHS[page.name]}?limit=3"
    rows: list[str] = []
    pages = 0
    while place:
        [section] = (await page_of(web, place, prefix)).all("section")
        rows += [row.attributes["data-key"] for row in section.all("tbody")[0].children]
        more = [link.attributes["href"] for link in section.all("a", rel="next")]
        place = more[0] if more else None
        pages += 1
    assert (pages, len(rows), len(set(rows))) == (3, 7, 7)
    for link in section.all("a"):
        assert (await web.get(link.attributes["href"])).status_code == 200, link.attributes
    for query in ("colour=red", "limit=0", "limit=x", "cursor=%00", "cursor=" + "x" * 600):
        assert (await web.get(f"{prefix}{PATHS[page.name]}?{query}")).status_code == 422, query


async def test_the_database_away_is_a_page(make_client: MakeClient) -> None:
    async with make_client("postgresql://nobody@127.0.0.1:1/none") as client:
        for path in (
            *(PATHS[page.name] for page in LISTS),
            PATHS["new_schedule"],
            "/console/schedules/x",
            f"/console/batches/{ABSENT}",
            "/console/templates/x",
        ):
            answer = await client.get(path, headers=BROWSER)
            assert answer.status_code == 503, path
            assert read(answer.text).all("h1")[0].text == "The database is away"
        for path in ("/console/limits/set", "/console/schedules/x/run", f"/console/batches/{ABSENT}/close"):
            answer = await client.post(path, data={"scope": "queue", "name": "q", "max_running": "1"})
            assert answer.status_code == 503, path


async def test_forms_of_other_origins_are_refused(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    await queue.schedule("s", "report", cron="0 9 * * *")
    await queue.set_limit("queue", "q", max_running=1)
    await queue.put_template("t", "chat", {})
    batch = await queue.create_batch("b")
    for path in (
        "/schedules/s/delete",
        "/schedules/s/run",
        "/new/schedule",
        "/limits/remove",
        f"/batches/{batch.id}/cancel",
        "/templates/t",
    ):
        fields = {"scope": "queue", "name": "q", "kind": "k", "cron": "0 0 * * *"}
        answer = await web.post(f"{prefix}/console{path}", data=fields, headers={"origin": "http://evil.example"})
        assert answer.status_code == 403, path
    assert [each.name for each in await queue.schedules()] == ["s"]
    assert len(await queue.limits()) == 1
    assert (await queue.list()).jobs == []
    assert (await queue.get_batch(batch.id)).state == "open"


async def test_what_is_not_there_is_a_page(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    for path, title in (
        ("/schedules/none", "No such schedule"),
        ("/schedules/" + "x" * 201, "Not Found"),
        ("/schedules/%E2%80%AE", "Not Found"),
        (f"/batches/{ABSENT}", "No such batch"),
        ("/batches/nonsense", "No such batch"),
        ("/batches/" + "%00" * 36, "No such batch"),
        ("/templates/none", "No such template"),
        ("/templates/none?version=2", "No such template"),
    ):
        assert (await page_of(web, f"{prefix}/console{path}", prefix, 404)).all("h1")[0].text == title
    for path in ("/schedules/none/run", "/schedules/none/pause", f"/batches/{ABSENT}/close", "/templates/none"):
        assert (await post(web, f"{prefix}/console{path}")).status_code == 404, path
    await queue.schedule("s", "report", cron="0 9 * * *")
    for path in ("/schedules/s/explode", "/limits/explode", f"/batches/{ABSENT}/explode"):
        assert (await post(web, f"{prefix}/console{path}")).status_code == 404, path
    assert (await web.get(f"{prefix}/console/schedules/s/delete")).status_code == 405
    assert (await post(web, f"{prefix}/console/limits/resume", scope="key", name="none")).status_code == 404


async def test_hostile_names_are_only_text(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    await queue.schedule(HOSTILE, HOSTILE, {"x": HOSTILE}, cron="0 9 * * *", tags=[HOSTILE])
    await queue.set_limit("key", HOSTILE, max_running=2)
    batch = await queue.create_batch(HOSTILE, on_all=HOSTILE)
    variable = {"type": "string", "default": HOSTILE, "enum": [HOSTILE], "description": HOSTILE}
    await queue.put_template("t", HOSTILE, {"x": HOSTILE}, variables={"v": variable}, description=HOSTILE)
    for path in (
        PATHS["schedules"],
        address("", "schedule", {}, {"name": HOSTILE}),
        PATHS["limits"],
        PATHS["batches"],
        f"/console/batches/{batch.id}",
        PATHS["templates"],
        "/console/templates/t",
    ):
        # A schedule of such a name may not be found by it; it may not be run either.
        root = read((await web.get(prefix + path)).text, prefix)
        assert len(root.all("script")) == 1, path


# ---- schedules ------------------------------------------------------------------------------------------------------


async def test_a_schedule_and_its_buttons(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    name = "the report, 50 % & more"
    await queue.schedule(name, "report", {"day": "x" * 9_000}, cron="0 9 * * mon-fri", time_zone="Europe/Berlin")
    place = prefix + address("", "schedule", {}, {"name": name})
    [section] = (await regions_of(web, place, prefix, schedules.detail)).values()
    assert len(section.all("time")) >= 10
    assert "of which the beginning is shown" in section.text
    assert "CET" in section.text or "CEST" in section.text
    assert "x" * 100 not in (await web.get(f"{prefix}/console/schedules")).text

    answer = await post(web, f"{place}/run")
    job = await queue.get(answer.headers["location"].rpartition("/")[2])
    assert (job.kind, job.metadata["schedule"]["name"]) == ("report", name)
    answer = await post(web, f"{place}/pause?cursor=a&limit=3", back="list")
    assert answer.headers["location"] == f"{prefix}/console/schedules?cursor=a&limit=3"
    assert (await queue.get_schedule(name)).paused
    assert "paused" in (await page_of(web, f"{prefix}/console/schedules", prefix)).all("tbody")[0].text
    assert "paused" in (await page_of(web, place, prefix)).text
    assert (await post(web, f"{place}/resume")).headers["location"] == place
    assert not (await queue.get_schedule(name)).paused
    # What cannot be taken back asks once more, also without scripts.
    [button] = [each for each in (await page_of(web, place, prefix)).all("button") if "Delete" in each.text]
    assert button.inside("details")
    assert (await post(web, f"{place}/delete")).headers["location"] == f"{prefix}/console/schedules"
    with pytest.raises(ScheduleNotFound):
        await queue.get_schedule(name)
    assert (await queue.get(job.id)).state is JobState.QUEUED


async def test_a_schedule_by_form(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    place = f"{prefix}/console/new/schedule"
    answer = await post(
        web, place, name="r", timing="cron", cron="*/5 * * * *", time_zone="Asia/Tokyo", mode="payload", kind="report",
        payload='{"n": 1}', queue="q", priority="high", missed="skip", jitter_seconds="30", tags="a, b",
        max_attempts="2", every="", unit="min", at="", run_at="",
    )  # fmt: skip
    assert (answer.status_code, answer.headers["location"]) == (303, f"{prefix}/console/schedules/r")
    made = await queue.get_schedule("r")
    assert (made.cron, made.time_zone, made.kind, made.payload) == ("*/5 * * * *", "Asia/Tokyo", "report", {"n": 1})
    assert (made.queue, made.priority, made.missed, made.tags, made.max_attempts) == ("q", 10, "skip", ["a", "b"], 2)
    assert made.jitter.total_seconds() == 30
    assert (
        await post(web, place, name="e", timing="every", every="2", unit="h", prompt="Hello", cron="junk")
    ).status_code == 303
    every = await queue.get_schedule("e")
    assert every.every is not None
    assert (every.every.total_seconds(), every.payload, every.cron) == (7_200, {"prompt": "Hello"}, None)
    assert (await post(web, place, name="o", timing="at", at="2999-01-02T03:04", prompt="x")).status_code == 303
    assert (await queue.get_schedule("o")).at == datetime(2999, 1, 2, 3, 4, tzinfo=UTC)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": ""}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": "* * * * *", "time_zone": "Mars/Base"}, "time_zone"),
        ({"timing": "every", "every": "0"}, "every"),
        ({"timing": "every", "every": "99999", "unit": "d"}, "every_seconds"),
        ({"timing": "every"}, "every"),
        ({"timing": "at"}, "at"),
        ({"timing": "at", "at": "tomorrow"}, "at"),
        ({"timing": "never"}, "timing"),
        ({"cron": "* * * * *", "name": ""}, "name"),
        ({"cron": "* * * * *", "name": "a/b"}, "name"),
        ({"cron": "* * * * *", "name": "taken"}, ""),
        ({"cron": "* * * * *", "prompt": " "}, "prompt"),
        ({"cron": "* * * * *", "mode": "payload", "kind": "k", "payload": "{"}, "payload"),
        ({"cron": "* * * * *", "jitter_seconds": "-1"}, "jitter_seconds"),
        ({"cron": "* * * * *", "missed": "maybe"}, "missed"),
        ({"cron": "* * * * *", "colour": "red"}, "colour"),
    ],
)
async def test_a_refused_schedule_comes_back_as_it_was(
    web: httpx.AsyncClient, prefix: str, queue: Queue, fields: dict[str, str], field: str
) -> None:
    await queue.schedule("taken", "report", cron="0 9 * * *")
    given = {"name": "new one", "timing": "cron", "prompt": "Say it.", **fields}
    answer = await post(web, f"{prefix}/console/new/schedule", **given)
    assert answer.status_code == (409 if fields.get("name") == "taken" else 422)
    root = read(answer.text, prefix)
    [fault] = root.all("p", id="fault-schedule")
    assert fault.text.startswith(field), fault.text
    assert len(await queue.schedules()) == 1
    assert root.all("input", name="name")[0].attributes["value"] == given["name"]
    assert root.all("input", name="cron")[0].attributes["value"] == given.get("cron", "")
    assert root.all("textarea", name="prompt")[0].text == given["prompt"].strip()
    if field in {"cron", "time_zone", "every", "name", "prompt", "jitter_seconds"}:
        assert root.all(aria_invalid="true")[0].attributes["name"] == field


async def test_the_next_fires_are_shown_before(web: httpx.AsyncClient, prefix: str) -> None:
    place = f"{prefix}/console/new/schedule"
    found = await regions_of(web, f"{place}?cron=0+0+1+1+*&name=x", prefix, new_schedule.page)
    assert [len(each.all("li")) for each in found.values()] == [5]
    assert found["preview"].all("time")[0].attributes["datetime"].endswith("-01-01T00:00:00Z")
    for query, words in (
        ("", "are shown here"),
        ("timing=cron&cron=a", "cron"),
        ("timing=cron&cron=*+*+*+*+*&time_zone=Nowhere", "time_zone"),
        ("timing=every&every=x", "every"),
        ("timing=at&at=2001-01-01T00:00", "never fire"),
        ("timing=at&at=2999-01-01T00:00&run_at=2998-12-31T15:00:00Z", "2998-12-31 15:00:00"),
        ("cron=%00", "are shown here"),
    ):
        answer = await web.get(f"{place}?{query}&part=preview")
        assert answer.status_code == 200
        assert words in read(answer.text, prefix).text, query
        # Without scripts the whole form comes back, filled in.
        assert words in (await page_of(web, f"{place}?{query}", prefix)).text, query


def test_a_fire_by_the_clocks_of_its_zone() -> None:
    at = datetime(2026, 7, 1, 7, 0, tzinfo=UTC)
    assert "Wed 2026-07-01 09:00 CEST, 07:00:00 UTC" in fire(at, "Europe/Berlin")
    assert "Wed 2026-07-01 07:00:00 UTC" in fire(at, "UTC")
    assert "Wed 2026-07-01 07:00:00 UTC" in fire(at, "Not/Known")


# ---- batches --------------------------------------------------------------------------------------------------------


async def a_batch(queue: Queue, name: str = "import", jobs: int = 4) -> Any:
    """Return a batch with one job completed and one failed, both of its first two."""
    made = await queue.create_batch(name)
    for _ in range(jobs):
        await queue.submit("load", batch_id=made.id)
    first, second = await queue.claim("w", ["default"], max_jobs=2)
    await queue.complete(first.id, first.lease_token, {})
    await queue.fail(second.id, second.lease_token, {"code": "boom", "message": HOSTILE}, retry=False)
    return made


async def test_a_batch_and_its_buttons(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    batch = await a_batch(queue)
    place = f"{prefix}/console/batches/{batch.id}"
    found = await regions_of(web, place, prefix, batches.detail)
    assert found["batch"].all("progress")[0].attributes["value"] == "2"
    assert found["batch"].all("progress")[0].attributes["max"] == "4"
    assert found["batch"].all("li", data_key="failed")[0].text.endswith("1")
    assert found["batch"].all("li", data_key="unfinished")[0].text.endswith("2")
    link = found["batch"].all("li", data_key="failed")[0].all("a")[0].attributes["href"]
    assert link == f"{prefix}/console/jobs?batch={batch.id}&state=failed"
    assert len((await page_of(web, link, prefix)).all("tbody")[0].children) == 1
    assert len(found["batch_failures"].all("tbody")[0].children) == 1
    assert "boom" in found["batch_failures"].text

    assert (await post(web, f"{place}/retry", max_attempts="9")).headers["location"] == place
    assert (await queue.get_batch(batch.id)).failed == 0
    assert {job.max_attempts for job in (await queue.list(batch_id=batch.id, state="queued")).jobs} >= {9}
    for wrong in ("0", "x", "1001"):
        answer = await post(web, f"{place}/retry", max_attempts=wrong)
        root = read(answer.text, prefix)
        assert answer.status_code == 422
        assert root.all("input", name="max_attempts")[0].attributes["value"] == wrong
        # The next refresh is to leave it alone.
        assert [part.attributes["data-part"] for part in root.all("section", data_refused="")] == ["batch"]
    assert (await post(web, f"{place}/close")).status_code == 303
    assert (await queue.get_batch(batch.id)).state == "closed"
    [button] = [each for each in (await page_of(web, place, prefix)).all("button") if "Cancel" in each.text]
    assert button.inside("details")
    assert (await post(web, f"{place}/cancel", reason="enough")).status_code == 303
    assert (await queue.get_batch(batch.id)).unfinished == 0
    [job, *_] = (await queue.list(batch_id=batch.id, state="cancelled")).jobs
    assert job.error is not None
    assert job.error["message"] == "enough"


async def test_a_batch_that_takes_longer_says_so(
    web: httpx.AsyncClient, prefix: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await a_batch(queue)
    monkeypatch.setattr(batches, "ACTION_SECONDS", 0.0)
    monkeypatch.setattr("queue_pg.batching.JOBS_AT_ONCE", 1)
    answer = await post(web, f"{prefix}/console/batches/{batch.id}/cancel")
    assert answer.headers["location"].endswith("?note=more")
    assert "Do it again" in (await page_of(web, answer.headers["location"], prefix)).text
    assert "Do it again" not in (await page_of(web, f"{prefix}/console/batches/{batch.id}?note=%3Cb%3E", prefix)).text


async def test_batches_are_filtered(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    await a_batch(queue, "one & two")
    await queue.create_batch("other")
    for query, rows in (("state=open", 2), ("state=failed", 0), ("name=one+%26+two", 1), ("name=&state=", 2)):
        root = await page_of(web, f"{prefix}/console/batches?{query}", prefix)
        assert len(root.all("tbody")[0].children if root.all("tbody") else []) == rows, query
    for query in ("state=lost", "name=" + "x" * 201, "name=a%00"):
        root = await page_of(web, f"{prefix}/console/batches?{query}", prefix, 422)
        assert root.all("p", role="alert")


# ---- limits ---------------------------------------------------------------------------------------------------------


async def test_limits_by_form(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    place = f"{prefix}/console/limits"
    key = "user:7/ä & b"
    answer = await post(web, f"{place}/set", scope="queue", name="gpu", max_running="4", per="minute")
    assert (answer.status_code, answer.headers["location"]) == (303, place)
    answer = await post(
        web, f"{place}/set?scope=key", scope="key", name=key, rate="60", per="minute", burst="10", max_running=""
    )
    assert answer.headers["location"] == f"{place}?scope=key"
    part = await web.get(f"{place}?scope=key&limit=1&cursor=key:a&part=limits")
    [form] = [each for each in read(part.text, prefix).all("form") if "/pause" in each.attributes["action"]]
    assert form.attributes["action"] == f"{place}/pause?scope=key&limit=1&cursor=key%3Aa"
    made = await queue.get_limit("key", key)
    assert (made.rate, made.per, made.burst, made.max_running) == (60, "minute", 10, None)
    root = await page_of(web, place, prefix)
    assert [each.attributes["data-key"] for each in root.all("tbody")[0].children] == [f"key:{key}", "queue:gpu"]
    [row] = root.all("tr", data_key=f"key:{key}")
    assert "60 per minute" in row.text
    assert "10 of 10 left" in row.text
    # The name leads to the form, which then has what the limit says.
    [link] = [each for each in row.all("a") if each.text == key]
    filled = await page_of(web, link.attributes["href"], prefix)
    values = {name: filled.all("input", name=name)[-1].attributes["value"] for name in ("name", "rate", "burst")}
    assert values == {"name": key, "rate": "60", "burst": "10"}

    assert (await post(web, f"{place}/pause", scope="key", name=key, minutes="10")).status_code == 303
    paused = await queue.get_limit("key", key)
    assert paused.paused
    assert paused.paused_until is not None
    row = (await page_of(web, place, prefix)).all("tr", data_key=f"key:{key}")[0]
    assert "Resume" in row.text
    assert (await post(web, f"{place}/resume", scope="key", name=key)).status_code == 303
    assert not (await queue.get_limit("key", key)).paused
    [button] = [each for each in row.all("button") if "Remove" in each.text]
    assert button.inside("details")
    assert (await post(web, f"{place}/remove", scope="key", name=key)).status_code == 303
    with pytest.raises(LimitNotFound):
        await queue.get_limit("key", key)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_running": ""}, "max_running"),
        ({"max_running": "0"}, "max_running"),
        ({"max_running": "1000001"}, "max_running"),
        ({"max_running": "many"}, "max_running"),
        ({"max_running": "1.5"}, "max_running"),
        ({"rate": "-1"}, "rate"),
        ({"rate": "5", "per": "week"}, "per"),
        ({"rate": "5", "burst": "x"}, "burst"),
        ({"max_running": "1", "name": ""}, "name"),
        ({"max_running": "1", "name": "x" * 256}, "name"),
        ({"max_running": "1", "scope": "planet"}, "scope"),
        ({"max_running": "1", "colour": "red"}, "colour"),
    ],
)
async def test_a_refused_limit_comes_back_as_it_was(
    web: httpx.AsyncClient, prefix: str, queue: Queue, fields: dict[str, str], field: str
) -> None:
    given = {"scope": "key", "name": "openai", "per": "second", **fields}
    answer = await post(web, f"{prefix}/console/limits/set", **given)
    assert answer.status_code == 422
    root = read(answer.text, prefix)
    [fault] = root.all("p", id="fault-limit")
    assert fault.text.startswith(field), fault.text
    assert root.all("input", name="name")[-1].attributes["value"] == given["name"]
    assert root.all("input", name="max_running")[-1].attributes["value"] == given.get("max_running", "")
    assert await queue.limits() == []


async def test_a_limit_under_which_jobs_run(
    web: httpx.AsyncClient, prefix: str, queue: Queue, conn: psycopg.AsyncConnection
) -> None:
    await queue.set_limit("queue", "default", max_running=2)
    for _ in range(3):
        await queue.submit("chat")
    assert len(await queue.claim("w", ["default"], max_jobs=5)) == 2
    [row] = (await page_of(web, f"{prefix}/console/limits", prefix)).all("tr", data_key="queue:default")
    assert "full" in row.text
    assert "2 of 2" in row.text
    assert (
        await post(web, f"{prefix}/console/limits/pause", scope="queue", name="default", minutes="7")
    ).status_code == 422


# ---- job templates --------------------------------------------------------------------------------------------------

VARIABLES = {
    "text": {"type": "string", "description": "What it is about", "max_length": 200},
    "words": {"type": "integer", "default": 50, "minimum": 5, "maximum": 500},
    "ratio": {"type": "number", "default": 0.5},
    "loud": {"type": "boolean", "default": False},
    "tone": {"type": "string", "enum": ["calm", "lively"], "default": "calm"},
    "files": {"type": "array", "default": []},
    "extra": {"type": "any", "default": None},
}
TAKES_ALL = {name: f"{{{{ variables.{name} }}}}" for name in VARIABLES}


async def test_a_template_its_versions_and_its_form(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    await queue.put_template("summary", "chat", {"old": "{{ variables.text }}"}, variables={"text": "string"})
    await queue.put_template("summary", "chat", TAKES_ALL, variables=VARIABLES, queue="q", description="In short.")
    place = f"{prefix}/console/templates/summary"
    root = await page_of(web, place, prefix)
    assert "version 2" in root.all("h1")[0].text
    fields = [each.attributes["name"] for tag in ("textarea", "input", "select") for each in root.all(tag)]
    assert {f"variables.{name}" for name in VARIABLES} <= set(fields)
    assert root.all("textarea", name="variables.text")[0].inside("label")
    assert [each.text for each in root.all("select", name="variables.tone")[0].all("option")] == [
        "default: calm", "calm", "lively",
    ]  # fmt: skip
    older = await page_of(web, f"{place}?version=1", prefix)
    assert "older version" in older.text
    assert older.all("input", name="version")[0].attributes["value"] == "1"
    assert '"old"' in older.text
    for wrong in ("0", "x", "99999999999"):
        assert (await web.get(f"{place}?version={wrong}")).status_code == 422

    answer = await post(
        web, place, version="2",
        **{"variables.text": "all 100 % <b>", "variables.words": "7", "variables.ratio": "0.25",
           "variables.loud": "true", "variables.tone": "lively", "variables.files": '["a", 1]',
           "variables.extra": "plain words", "queue": "mine", "priority": "high", "delay": "60", "unique_key": "k"},
    )  # fmt: skip
    assert answer.status_code == 303, answer.text
    job = await queue.get(answer.headers["location"].rpartition("/")[2])
    assert job.payload == {
        "text": "all 100 % <b>", "words": 7, "ratio": 0.25, "loud": True, "tone": "lively", "files": ["a", 1],
        "extra": "plain words",
    }  # fmt: skip
    assert (job.queue, job.priority, job.state, job.unique_key) == ("mine", 10, JobState.SCHEDULED, "k")
    # What is left empty is as the template says, and an older version stays one.
    answer = await post(web, f"{place}?version=1", version="1", **{"variables.text": "x", "queue": "", "priority": ""})
    job = await queue.get(answer.headers["location"].rpartition("/")[2])
    assert job.payload == {"old": "x"}
    assert job.metadata["template"] == {"name": "summary", "version": 1}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "variables.text"),
        ({"variables.text": "x", "variables.words": "many"}, "variables.words"),
        ({"variables.text": "x", "variables.words": "501"}, "variables.words"),
        ({"variables.text": "x", "variables.words": "1.5"}, "variables.words"),
        ({"variables.text": "x", "variables.loud": "yes"}, "variables.loud"),
        ({"variables.text": "x", "variables.tone": "rude"}, "variables.tone"),
        ({"variables.text": "x", "variables.files": "{}"}, "variables.files"),
        ({"variables.text": "x" * 201}, "variables.text"),
        ({"variables.text": "x", "variables.none": "1"}, "variables.none"),
        ({"variables.text": "x", "delay": "soon"}, "delay"),
        ({"variables.text": "x", "colour": "red"}, "colour"),
        ({"variables.text": "x", "priority": "urgent"}, "priority"),
    ],
)
async def test_wrong_variables_come_back_as_they_were(
    web: httpx.AsyncClient, prefix: str, queue: Queue, fields: dict[str, str], field: str
) -> None:
    await queue.put_template("summary", "chat", TAKES_ALL, variables=VARIABLES)
    answer = await post(web, f"{prefix}/console/templates/summary", version="1", **fields)
    assert answer.status_code == 422
    root = read(answer.text, prefix)
    [fault] = root.all("p", id="fault-template")
    assert fault.text.startswith(field), fault.text
    assert (await queue.list()).jobs == []
    assert root.all("textarea", name="variables.text")[0].text == fields.get("variables.text", "")
    assert root.all("input", name="variables.words")[0].attributes["value"] == fields.get("variables.words", "")


async def test_a_template_with_many_variables(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    names = [f"v{number}" for number in range(100)]
    await queue.put_template(
        "wide",
        "chat",
        {name: f"{{{{ variables.{name} }}}}" for name in names},
        variables=dict.fromkeys(names, "string"),
    )
    fields = {f"variables.{name}": name for name in names}
    answer = await post(web, f"{prefix}/console/templates/wide", version="1", **fields)
    assert answer.status_code == 303
    job = await queue.get(answer.headers["location"].rpartition("/")[2])
    assert job.payload == {name: name for name in names}
