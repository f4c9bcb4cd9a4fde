"""The console in a real Chromium: it follows what happens, and never undoes what its reader does.

The browser is the one that is installed: QUEUE_PG_TEST_CHROMIUM names it, else `chromium` on PATH.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from console_kit import IN_CHROMIUM, TIMEOUT, live, live_less, shows
from playwright.async_api import Browser, Page, expect
from queue_pg_api.pages import pulse as pulse_module

from queue_pg.client import Queue
from queue_pg.models import JobState

pytestmark = IN_CHROMIUM


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as opened:
        yield opened


async def test_lists_and_counts_follow(tab: Page, queue: Queue) -> None:
    await live(tab, "/")
    await expect(tab.locator("[data-part=newest]")).to_contain_text("No jobs yet")
    submitted = await queue.submit("chat")
    row = tab.locator(f'[data-part=newest] tr[data-key="{submitted.id}"]')
    await expect(row).to_contain_text("queued")
    await expect(tab.locator("li[data-key=queued] strong")).to_have_text("1")
    [claimed] = await queue.claim("w", ["default"])
    await expect(row).to_contain_text("running")
    await queue.fail(claimed.id, claimed.lease_token, {"code": "boom", "message": "<b>no</b>"}, retry=False)
    await expect(row).to_contain_text("boom")
    await expect(tab.locator("[data-part=failures] tbody tr")).to_have_count(1)


async def test_a_job_is_followed_to_its_result(tab: Page, queue: Queue) -> None:
    submitted = await queue.submit("chat", {"prompt": "<script>document.title = 'taken'</script>"})
    await live(tab, f"/console/jobs/{submitted.id}")
    await expect(tab.locator("[data-part=payload] pre")).to_contain_text("<script>document.title")
    [claimed] = await queue.claim("w", ["default"])
    await expect(tab.locator(".headline")).to_contain_text("running")
    for text in ("Once upon", " a time"):
        await queue.append_events(claimed.id, claimed.lease_token, [("chunk", {"text": text})])
    await expect(tab.get_by_role("log")).to_contain_text("Once upon a time")
    await queue.complete(claimed.id, claimed.lease_token, {"text": "<img src=x onerror=alert(1)> done"})
    await expect(tab.locator("[data-part=result] pre")).to_contain_text("<img src=x onerror=alert(1)> done")
    await expect(tab.locator(".timeline .what")).to_have_text(["submitted", "started", "completed"])
    assert "taken" not in await tab.title()


async def test_a_refresh_does_not_undo_what_is_typed_or_open(tab: Page, queue: Queue) -> None:
    submitted = await queue.submit("chat", max_attempts=9)
    [claimed] = await queue.claim("w", ["default"])
    await queue.fail(claimed.id, claimed.lease_token, {"code": "boom", "message": "one"}, delay=0)
    await live(tab, f"/console/jobs/{submitted.id}")
    await tab.locator(".timeline summary").click()
    await tab.evaluate("window.scrollTo(0, 50)")
    reason = tab.get_by_label("Reason")
    await reason.fill("because of th")
    await reason.evaluate("field => { window.field = field; field.setSelectionRange(3, 7); }")
    [claimed] = await queue.claim("w", ["default"])
    await expect(tab.locator(".headline")).to_contain_text("running")
    await queue.fail(claimed.id, claimed.lease_token, {"code": "boom", "message": "two"}, delay=0)
    await expect(tab.locator(".timeline summary")).to_have_count(2)
    await expect(tab.locator(".timeline details").first).to_have_attribute("open", "")
    state = (
        "(field => [document.activeElement === field, field.value, field.selectionStart, field.selectionEnd])(field)"
    )
    assert await tab.evaluate(state) == [True, "because of th", 3, 7]
    await reason.press("End")
    await reason.press_sequentially("is")
    await reason.press("Enter")
    await expect(tab.locator(".headline")).to_contain_text("cancelled")
    cancelled = await queue.get(submitted.id)
    assert cancelled.error is not None
    assert cancelled.error["message"] == "because of this"


async def test_a_row_in_focus_stays_while_others_come_above_it(tab: Page, queue: Queue) -> None:
    first = await queue.submit("chat")
    await live(tab, "/console/jobs")
    await tab.keyboard.press("j")
    focused = "document.activeElement.closest('tr')?.dataset.key"
    assert await tab.evaluate(focused) == str(first.id)
    others = [await queue.submit("chat") for _ in range(3)]
    await expect(tab.locator("tbody tr")).to_have_count(4)
    assert await tab.evaluate(focused) == str(first.id)
    keys = "[...document.querySelectorAll('tbody tr')].map(row => row.dataset.key)"
    assert await tab.evaluate(keys) == [*(str(each.id) for each in reversed(others)), str(first.id)]


async def test_selected_text_waits_for_its_reader(tab: Page, queue: Queue) -> None:
    submitted = await queue.submit("chat")
    await live(tab, "/console/jobs")
    await tab.locator("tbody a.mono").first.evaluate("link => getSelection().selectAllChildren(link)")
    async with tab.expect_response(lambda response: "part=jobs" in response.url):
        await queue.submit("chat")
    await expect(tab.locator("tbody tr")).to_have_count(1)
    assert (await tab.evaluate("String(getSelection())")).endswith(str(submitted.id)[-12:])
    await tab.evaluate("getSelection().removeAllRanges()")
    await expect(tab.locator("tbody tr")).to_have_count(2)


async def test_filters_are_the_address(tab: Page, queue: Queue) -> None:
    await queue.submit("chat", queue="one & two")
    await queue.submit("chat", queue="other")
    await live(tab, "/console/jobs")
    await tab.keyboard.press("/")
    await tab.keyboard.type("one & two")
    await tab.keyboard.press("Enter")
    await tab.wait_for_url("**/console/jobs?queue=one+%26+two")
    await expect(tab.locator("tbody tr")).to_have_count(1)
    await shows(tab, "stream")
    await queue.submit("chat", queue="other")
    await queue.submit("chat", queue="one & two")
    await expect(tab.locator("tbody tr")).to_have_count(2)
    await tab.get_by_label("State").select_option("failed")
    await tab.get_by_role("button", name="Filter").click()
    await expect(tab.locator("[data-part=jobs]")).to_contain_text("No job is like that")
    await tab.go_back()
    await expect(tab.locator("tbody tr")).to_have_count(2)
    await expect(tab.get_by_label("State")).to_have_value("")


async def test_create_now_and_at_a_time_of_the_visitors_clock(tab: Page, queue: Queue) -> None:
    await live_less(tab, "/console/new")
    await tab.get_by_label("Prompt", exact=True).fill("Say hello.")
    await tab.get_by_role("button", name="Submit job").click()
    await expect(tab.locator(".headline")).to_contain_text("queued")
    [job] = (await queue.list(with_payload=True)).jobs
    assert job.payload == {"prompt": "Say hello."}

    await tab.keyboard.press("n")
    await tab.wait_for_url("**/console/new")
    await tab.get_by_label("A kind with its payload").check()
    await expect(tab.get_by_label("Prompt", exact=True)).to_be_hidden()
    await tab.get_by_label("Kind", exact=True).fill("resize")
    await tab.get_by_label("Payload, as JSON").fill('{"n": }')
    await tab.get_by_label("Time").fill("2999-01-02T03:04")
    await tab.get_by_role("button", name="Submit job").click()
    await expect(tab.get_by_role("alert")).to_contain_text("payload")
    await expect(tab.get_by_label("Payload, as JSON")).to_have_value('{"n": }')
    await tab.get_by_label("Payload, as JSON").fill('{"n": 1}')
    await tab.get_by_role("button", name="Submit job").click()
    await expect(tab.locator(".headline")).to_contain_text("scheduled")
    job = await queue.get(urlsplit(tab.url).path.rpartition("/")[2])
    assert (job.kind, job.payload) == ("resize", {"n": 1})
    assert job.run_at == datetime(2999, 1, 1, 18, 4, tzinfo=UTC)  # Tokyo is nine hours ahead


async def test_cancel_retry_and_pause(tab: Page, queue: Queue) -> None:
    submitted = await queue.submit("chat")
    await live(tab, f"/console/jobs/{submitted.id}")
    await tab.get_by_role("button", name="Cancel job").click()
    await expect(tab.locator(".headline")).to_contain_text("cancelled")
    await tab.get_by_role("button", name="Retry").click()
    await expect(tab.locator(".headline")).to_contain_text("queued")
    assert (await queue.get(submitted.id)).state is JobState.QUEUED

    await live(tab, "/console/queues")
    await tab.get_by_role("button", name="Pause queue default").click()
    await expect(tab.get_by_role("button", name="Resume queue default")).to_be_visible()
    assert (await queue.stats())[0].paused
    await shows(tab, "stream")
    await queue.resume("default")
    await expect(tab.get_by_role("button", name="Pause queue default")).to_be_visible()


async def test_the_keyboard_is_enough(tab: Page, queue: Queue) -> None:
    submitted = [await queue.submit("chat") for _ in range(3)]
    await live(tab, "/")
    for keys, path in (("gj", "/console/jobs"), ("gq", "/console/queues"), ("gw", "/console/workers"), ("go", "/")):
        for key in keys:
            await tab.keyboard.press(key)
        await tab.wait_for_url(f"**{path}")
        await shows(tab, "stream")
    await live(tab, "/console/jobs")
    for key in "jjk":
        await tab.keyboard.press(key)
    await tab.keyboard.press("j")
    await tab.keyboard.press("Enter")
    await tab.wait_for_url(f"**/console/jobs/{submitted[1].id}")
    await live_less(tab, "/console/jobs")
    await tab.keyboard.press("?")
    await expect(tab.get_by_role("dialog")).to_be_visible()
    await tab.keyboard.press("Escape")
    await expect(tab.get_by_role("dialog")).to_be_hidden()
    # Keys that are typed into a field are text.
    await tab.get_by_label("Kind").press_sequentially("gjn?")
    await expect(tab.get_by_label("Kind")).to_have_value("gjn?")


async def test_live_can_be_switched_off_and_stays_off(tab: Page, queue: Queue) -> None:
    await live(tab, "/console/jobs")
    await tab.get_by_role("button", name="Live").click()
    await tab.reload()
    await expect(tab.locator("#live")).to_have_attribute("aria-pressed", "false")
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    await queue.submit("chat")
    await tab.keyboard.press("r")
    await expect(tab.locator("tbody tr")).to_have_count(1)
    assert [url for url in asked if "events" in url] == []
    await tab.keyboard.press("l")
    await shows(tab, "stream")
    await queue.submit("chat")
    await expect(tab.locator("tbody tr")).to_have_count(2)


async def test_without_the_stream_it_polls(tab: Page, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "MAX_VIEWERS", 0)
    await tab.goto("/console/jobs")
    await shows(tab, "polling")
    await queue.submit("chat")
    await expect(tab.locator("tbody tr")).to_have_count(1)


async def test_a_hidden_tab_asks_for_nothing(tab: Page, queue: Queue, served: Any) -> None:
    await live(tab, "/console/jobs")
    hide = "state => { Object.defineProperty(document, 'hidden', {value: state, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    await tab.evaluate(hide, True)
    async with asyncio.timeout(20):
        while served.service.figures.pulse.viewers:  # noqa: ASYNC110 - the other side of a socket sets no event
            await asyncio.sleep(0.01)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    await queue.submit("chat")
    await tab.evaluate("new Promise(done => setTimeout(done, 1500))")
    assert asked == []
    await tab.evaluate(hide, False)
    await expect(tab.locator("tbody tr")).to_have_count(1)


async def test_it_works_without_scripts(browser: Browser, served: Any, queue: Queue) -> None:
    async with await browser.new_context(base_url=served.url, java_script_enabled=False) as context:
        context.set_default_timeout(TIMEOUT)
        tab = await context.new_page()
        await tab.goto("/")
        await tab.get_by_role("link", name="New job").click()
        await tab.get_by_label("Prompt", exact=True).fill("No scripts.")
        await tab.get_by_label("In", exact=True).check()
        await tab.get_by_label("How many").fill("2")
        await tab.get_by_role("button", name="Submit job").click()
        await expect(tab.locator(".headline")).to_contain_text("scheduled")
        [job] = (await queue.list()).jobs
        assert job.run_at - job.created_at == timedelta(minutes=2)
        await tab.get_by_label("Reason").fill("changed my mind")
        await tab.get_by_role("button", name="Cancel job").click()
        await expect(tab.locator(".headline")).to_contain_text("cancelled")
        await tab.get_by_role("link", name="Jobs", exact=True).click()
        await tab.get_by_label("State").select_option("cancelled")
        await tab.get_by_role("button", name="Filter").click()
        await expect(tab.locator("tbody tr")).to_have_count(1)
        await tab.get_by_role("link", name="Queues").click()
        await tab.get_by_role("button", name="Pause queue default").click()
        await expect(tab.get_by_role("button", name="Resume queue default")).to_be_visible()


@pytest.mark.parametrize("width", [360, 1280])
async def test_nothing_is_cut_off_and_targets_are_large(tab: Page, queue: Queue, width: int) -> None:
    submitted = await queue.submit("k" * 200, {"text": "w" * 3_000}, queue="q" * 200, tags=["t" * 100] * 3)
    await tab.set_viewport_size({"width": width, "height": 800})
    for path in (
        "/",
        "/console/jobs",
        f"/console/jobs/{submitted.id}",
        "/console/new",
        "/console/queues",
        "/console/workers",
    ):
        await live_less(tab, path)
        wide = "[...document.querySelectorAll('body *')].filter(each => !each.closest('table') && innerWidth + 1 <"
        wide += " each.getBoundingClientRect().right).map(each => each.outerHTML.slice(0, 200))"
        assert await tab.evaluate(wide) == [], path
        assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        small = "[...document.querySelectorAll('button, .button, nav a, td > a:not(.tag)')].filter(each =>"
        small += " each.offsetParent && each.getBoundingClientRect().height < 43.5).map(each => each.outerHTML)"
        assert await tab.evaluate(small) == [], path


async def test_an_outage_is_told_and_goes_by(tab: Page, queue: Queue) -> None:
    await queue.submit("chat")
    await live(tab, "/console/jobs")
    await tab.route("**/*part=*", lambda route: route.fulfill(status=503, body="Database unavailable"))
    await tab.keyboard.press("r")
    await expect(tab.locator("#notice")).to_contain_text("Database unavailable")
    await expect(tab.locator("tbody tr")).to_have_count(1)
    await tab.unroute("**/*part=*")
    await expect(tab.locator("#notice")).to_be_hidden()
