"""Tasks in the console: the list, the form with a description, and the subtasks on the page of a task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from secrets import token_hex

import httpx
import pytest
from console_kit import IN_CHROMIUM, live, page_of, post, regions_of, shows
from page_reader import read
from playwright.async_api import Page, expect
from queue_pg_api.pages import job, tasks

from queue_pg.client import Queue
from queue_pg.models import JobState
from queue_pg.task_model import NewTask

HOSTILE = '<script>alert("1")</script>\u202eevil'
ABSENT = "018f0000-0000-7000-8000-000000000000"


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as opened:
        yield opened


async def test_the_list_says_what_each_is_about(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    place = f"{prefix}/console/tasks"
    assert "No tasks yet" in (await page_of(web, place, prefix)).text
    plan = await queue.submit_task(NewTask(description=f"Build {HOSTILE}", name="the build"))
    # What is long is not read for a list; as it is stored, so it must not compress well.
    chat = await queue.submit_task(NewTask(prompt="Say hello, secretly: " + token_hex(40_000)))
    short = await queue.submit_task(NewTask(prompt="Say hello."))
    other = await queue.submit("resize", {"text": "a secret"})
    found = await regions_of(web, place, prefix, tasks.page)
    rows = {row.attributes["data-key"]: row for row in found["tasks"].all("tbody")[0].children}
    assert len(rows) == 4 + len(plan.subtasks)
    assert "the build" in rows[str(plan.id)].text
    assert "queued" in rows[str(plan.id)].text  # as its subtasks are, though its job waits
    assert rows[str(plan.id)].all("td", data_label="Subtasks")[0].text == str(len(plan.subtasks))
    assert "Say hello." in rows[str(short.id)].text
    assert str(chat.id)[-12:] in rows[str(chat.id)].text
    assert str(other.id)[-12:] in rows[str(other.id)].text
    answer = await web.get(place)
    assert "secret" not in answer.text
    assert "\u202e" not in answer.text
    for query, count in (("state=queued", len(rows)), ("state=waiting", 0), ("state=completed", 0), ("limit=2", 2)):
        root = await page_of(web, f"{place}?{query}", prefix)
        assert len(root.all("tbody")[0].children if root.all("tbody") else []) == count, query
    await queue.cancel(other.id)
    assert len((await page_of(web, f"{place}?state=cancelled", prefix)).all("tbody")[0].children) == 1
    for query in ("state=lost", "colour=red", "cursor=nonsense", "limit=0", "state=a%00"):
        assert (await web.get(f"{place}?{query}")).status_code == 422, query


async def test_pages_of_the_list_miss_nothing(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    submitted = [str((await queue.submit("chat", {"prompt": "x"})).id) for _ in range(7)]
    place: str | None = f"{prefix}/console/tasks?limit=3&state=queued"
    seen: list[str] = []
    while place:
        root = await page_of(web, place, prefix)
        seen += [row.attributes["data-key"] for row in root.all("tbody")[0].children]
        more = [link.attributes["href"] for link in root.all("a", rel="next")]
        place = more[0] if more else None
    assert seen == submitted[::-1]


async def test_the_page_of_a_task_shows_its_subtasks(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    plan = await queue.submit_task(NewTask(description=f"{HOSTILE} api"))
    [claimed] = await queue.claim("w", ["work_queue"])
    await queue.complete(claimed.id, claimed.lease_token, {"text": "done"})
    found = await regions_of(web, f"{prefix}/console/jobs/{plan.id}", prefix, job.page)
    items = found["task"].all("li")
    assert [item.all("a")[0].text for item in items] == plan.subtasks
    states = [item.all("span")[0].text for item in items]
    assert sorted(states) == ["queued"] * (len(states) - 1) + ["completed"] or "✓ completed" in states
    assert f"1 of {len(items)}" in found["task"].text
    assert f"family:{plan.id}" in found["task"].attributes["data-topics"]
    assert found["family"].all("ul", data_key="parents") == []
    subtask = await web.get(items[0].all("a")[0].attributes["href"])
    assert "It belongs to" in read(subtask.text, prefix).text
    # A task's page is its job's, also by the id of a subtask.
    for task_id, job_id in ((str(plan.id), plan.id), (f"{plan.id}-0", (await queue.get_task(f"{plan.id}-0")).id)):
        answer = await web.get(f"{prefix}/console/tasks/{task_id}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"{prefix}/console/jobs/{job_id}")
    for wrong in (ABSENT, f"{plan.id}-99", "nonsense", "a%00b", "%ED%A0%80"):
        assert (await page_of(web, f"{prefix}/console/tasks/{wrong}", prefix, 404)).all("h1")[0].text == "No such job"


async def test_a_task_by_form_now_and_later(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    place = f"{prefix}/console/new"
    root = await page_of(web, f"{place}?mode=description", prefix)
    assert "checked" in root.all("input", name="mode", value="description")[0].attributes
    answer = await post(
        web, place, mode="description", description="An api, & 100 %", planner="rules", name="mine", priority="high",
        tags="a, b", prompt="not this", kind="nor this",
    )  # fmt: skip
    assert answer.status_code == 303, answer.text
    made = await queue.get_task(answer.headers["location"].rpartition("/")[2])
    assert (made.description, made.name, made.job.priority, made.job.tags) == (
        "An api, & 100 %",
        "mine",
        10,
        ["a", "b"],
    )
    assert len(made.subtasks) == 4
    before = datetime.now(UTC)
    answer = await post(
        web, place, mode="description", description="Later", planner="llm", when="in", delay="2", unit="h"
    )
    later = await queue.get_task(answer.headers["location"].rpartition("/")[2])
    assert later.status is JobState.SCHEDULED
    assert later.scheduled_for is not None
    assert abs(later.scheduled_for - before - timedelta(hours=2)) < timedelta(minutes=1)
    answer = await post(web, place, mode="description", description="Then", when="at", at="2999-01-02T03:04")
    then = await queue.get_task(answer.headers["location"].rpartition("/")[2])
    assert then.scheduled_for == datetime(2999, 1, 2, 3, 4, tzinfo=UTC)
    answer = await post(web, place, mode="prompt", prompt="Say hello.", name="greeting")
    prompted = await queue.get_task(answer.headers["location"].rpartition("/")[2])
    assert (prompted.prompt, prompted.name, prompted.status) == ("Say hello.", "greeting", JobState.QUEUED)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"description": "  "}, "description"),
        ({"description": "x" * 10_001}, "description"),
        ({"description": "x", "planner": "oracle"}, "planner"),
        ({"description": "x", "name": "n" * 201}, "name"),
        ({"description": "x", "when": "in", "delay": "soon"}, "delay"),
        ({"description": "x", "when": "in", "delay": "99999999", "unit": "d"}, "delay"),
        ({"description": "x", "when": "at"}, "at"),
        ({"description": "x", "when": "at", "at": "tomorrow"}, "scheduled_for"),
        ({"description": "x", "when": "never"}, "when"),
        ({"description": "x", "max_attempts": "0"}, "max_attempts"),
        ({"description": "x", "colour": "red"}, "colour"),
    ],
)
async def test_a_refused_task_comes_back_as_it_was(
    web: httpx.AsyncClient, prefix: str, queue: Queue, fields: dict[str, str], field: str
) -> None:
    answer = await post(web, f"{prefix}/console/new", mode="description", **fields)
    assert answer.status_code == 422
    root = read(answer.text, prefix)
    [fault] = root.all("p", id="fault")
    assert fault.text.startswith(field), fault.text
    assert root.all("textarea", name="description")[0].text == fields["description"].strip()
    assert "checked" in root.all("input", name="mode", value="description")[0].attributes
    assert (await queue.list()).jobs == []


class TestInChromium:
    pytestmark = IN_CHROMIUM

    async def test_a_task_is_described_and_followed(self, tab: Page, queue: Queue) -> None:
        await live(tab, "/console/tasks")
        await tab.get_by_role("link", name="New task").click()
        await expect(tab.get_by_label("Prompt", exact=True)).to_be_hidden()
        await tab.get_by_label("Description").fill("Write an api")
        await tab.get_by_label("Planned by").select_option("rules")
        await tab.get_by_label("Name", exact=True).fill("the api")
        await tab.get_by_role("button", name="Submit job").click()
        region = tab.locator("[data-part=task]")
        await expect(region.locator("li")).to_have_count(4)
        await expect(region).to_contain_text("Write an api")
        await shows(tab, "stream")
        for number in range(1, 5):
            [claimed] = await queue.claim("w", ["work_queue"])
            await queue.complete(claimed.id, claimed.lease_token, {"text": f"part {number}"})
            await expect(region.locator("progress")).to_have_attribute("value", str(number))
        await tab.keyboard.press("g")
        await tab.keyboard.press("t")
        await tab.wait_for_url("**/console/tasks")
        await expect(tab.locator("tbody tr")).to_have_count(5)
        await tab.get_by_role("link", name="completed").click()
        # With its subtasks the task has ended too.
        await tab.wait_for_url("**state=completed")
        await expect(tab.locator("tbody tr")).to_have_count(5)
        await tab.get_by_role("link", name="Define API endpoints").click()
        await region.get_by_role("link", name="another task").click()
        await expect(region.locator("h2")).to_have_text("the api")

    @pytest.mark.parametrize("width", [390, 1280])
    async def test_nothing_is_cut_off(self, tab: Page, queue: Queue, width: int) -> None:
        plan = await queue.submit_task(NewTask(description="d" * 300 + " api", name="n" * 200))
        await tab.set_viewport_size({"width": width, "height": 800})
        for path in ("/console/tasks", f"/console/jobs/{plan.id}", "/console/new?mode=description"):
            await tab.goto(path)
            await expect(tab.locator("html")).to_have_class("scripted")
            assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
            small = "[...document.querySelectorAll('button, .button, nav a, td > a:not(.tag)')].filter(each =>"
            small += " each.offsetParent && each.getBoundingClientRect().height < 43.5).map(each => each.outerHTML)"
            assert await tab.evaluate(small) == [], path
