"""The main flow of each page of the console in a real Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from console_kit import IN_CHROMIUM, TIMEOUT, live, live_less, shows
from playwright.async_api import Browser, Page, expect
from queue_pg_api.pages.figures import Figures

from queue_pg.client import Queue
from queue_pg.errors import TooSlow
from queue_pg.models import ClaimedJob, JobState, NewJob

pytestmark = IN_CHROMIUM


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as opened:
        yield opened


async def suspended(queue: Queue, event: str) -> ClaimedJob:
    """Return a job that waits for an event."""
    await queue.submit("publish")
    [claimed] = await queue.claim("w", ["default"])
    pair = (claimed.id, claimed.lease_token)
    async with queue.connection() as conn:
        await conn.execute("select queue_pg.wait_for_event(%s, %s, %s)", (*pair, event))
        await conn.execute("select queue_pg.wait(%s, %s)", pair)
    return claimed


async def test_schedules(tab: Page, queue: Queue) -> None:
    await live(tab, "/console/schedules")
    await tab.get_by_role("link", name="New schedule").click()
    await tab.get_by_label("Name").fill("morning report")
    cron = tab.get_by_label("Cron expression")
    await cron.fill("61 * * * *")
    preview = tab.locator("[data-part=preview]")
    await expect(preview).to_contain_text("cron")
    await cron.fill("0 9 * * mon-fri")
    await tab.get_by_label("Time zone").fill("Europe/Berlin")
    await expect(preview.locator("li")).to_have_count(5)
    await expect(preview.locator("li").first).to_contain_text("09:00 CE")
    # Whoever fills in another way chooses it, and sees what that means.
    await tab.get_by_label("How many").fill("90")
    await expect(tab.get_by_label("Every")).to_be_checked()
    await expect(preview.locator("li").first).to_contain_text("1 h 30 min")
    await cron.press("End")
    await cron.press_sequentially(" ")
    await expect(tab.get_by_label("Cron", exact=True)).to_be_checked()
    await tab.get_by_label("Prompt", exact=True).fill("Report.")
    await tab.get_by_role("button", name="Make schedule").click()
    await tab.wait_for_url("**/console/schedules/morning%20report")
    made = await queue.get_schedule("morning report")
    assert (made.cron, made.time_zone, made.payload) == ("0 9 * * mon-fri", "Europe/Berlin", {"prompt": "Report."})

    await live(tab, "/console/schedules")
    row = tab.locator("tbody tr")
    await row.get_by_role("button", name="Pause").click()
    await expect(row).to_contain_text("paused")
    await shows(tab, "stream")
    await queue.resume_schedule("morning report")
    await expect(row).not_to_contain_text("paused")
    await row.get_by_role("button", name="now").click()
    await expect(tab.locator(".headline")).to_contain_text("queued")
    await live(tab, "/console/schedules/morning%20report")
    await expect(tab.get_by_role("button", name="Delete schedule")).to_be_hidden()
    await tab.locator("summary", has_text="Delete").click()
    # The second step stays open while the page is kept up to date.
    await queue.pause_schedule("morning report")
    await expect(tab.locator(".headline")).to_contain_text("paused")
    await tab.get_by_role("button", name="Delete schedule").click()
    await tab.wait_for_url("**/console/schedules")
    assert await queue.schedules() == []


async def test_a_schedule_once_at_a_time_of_the_visitors_clock(tab: Page, queue: Queue) -> None:
    await live_less(tab, "/console/new/schedule")
    await tab.get_by_label("Name").fill("once")
    await tab.get_by_label("Time", exact=True).fill("2999-01-02T03:04")
    await expect(tab.locator("[data-part=preview] li")).to_contain_text("2999-01-01 18:04:00 UTC")
    await tab.get_by_label("Prompt", exact=True).fill("x")
    await tab.get_by_role("button", name="Make schedule").click()
    await tab.wait_for_url("**/console/schedules/once")
    assert (await queue.get_schedule("once")).at == datetime(2999, 1, 1, 18, 4, tzinfo=UTC)


async def test_a_batch_is_followed_and_retried(tab: Page, queue: Queue) -> None:
    await live(tab, "/console/batches")
    await expect(tab.locator("[data-part=batches]")).to_contain_text("No batches yet")
    batch = await queue.create_batch("import")
    for _ in range(4):
        await queue.submit("load", batch_id=batch.id)
    row = tab.locator(f'tr[data-key="{batch.id}"]')
    await expect(row).to_contain_text("0 %")
    await row.get_by_role("link", name="import").click()
    await shows(tab, "stream")
    bar = tab.locator("progress")
    for number, claimed in enumerate(await queue.claim("w", ["default"], max_jobs=4), 1):
        if number % 2:
            await queue.complete(claimed.id, claimed.lease_token, {})
        else:
            await queue.fail(claimed.id, claimed.lease_token, {"code": "boom", "message": "no"}, retry=False)
        await expect(bar).to_have_attribute("value", str(number))
    await expect(tab.locator("[data-part=batch_failures] tbody tr")).to_have_count(2)
    await tab.get_by_role("button", name="Retry failed").click()
    await expect(bar).to_have_attribute("value", "2")
    assert len((await queue.list(batch_id=batch.id, state="queued")).jobs) == 2
    await tab.locator("summary", has_text="Cancel batch").click()
    await tab.get_by_label("Reason").fill("enough of i")
    await shows(tab, "stream")
    [claimed] = await queue.claim("w", ["default"])
    await queue.complete(claimed.id, claimed.lease_token, {})
    await expect(bar).to_have_attribute("value", "3")
    await tab.get_by_label("Reason").press_sequentially("t")
    await tab.get_by_role("button", name="Cancel all").click()
    await expect(bar).to_have_attribute("value", "4")
    [job] = (await queue.list(batch_id=batch.id, state="cancelled")).jobs
    assert job.error is not None
    assert job.error["message"] == "enough of it"
    await tab.get_by_role("link", name="All failed jobs").or_(tab.locator("li[data-key=cancelled] a")).last.click()
    await expect(tab.locator("tbody tr")).to_have_count(1)


async def test_limits(tab: Page, queue: Queue) -> None:
    await live(tab, "/console/limits")
    await tab.keyboard.press("/")
    await tab.keyboard.type("gpu")
    await tab.get_by_label("Running at once").fill("no")
    await tab.get_by_role("button", name="Set limit").click()
    await expect(tab.get_by_role("alert")).to_contain_text("max_running")
    await expect(tab.get_by_label("Name")).to_have_value("gpu")
    await expect(tab.get_by_label("Running at once")).to_be_focused()
    # The page of a refused form goes on following.
    await shows(tab, "stream")
    await queue.set_limit("queue", "other", max_running=1)
    await expect(tab.locator("tbody tr")).to_contain_text("other")
    await queue.remove_limit("queue", "other")
    await expect(tab.locator("tbody tr")).to_have_count(0)
    await expect(tab.locator("#notice")).to_be_hidden()
    await expect(tab.get_by_label("Running at once")).to_have_value("no")
    await tab.get_by_label("Running at once").fill("2")
    await tab.get_by_role("button", name="Set limit").click()
    row = tab.locator("tbody tr")
    await expect(row).to_contain_text("0 of 2")
    await shows(tab, "stream")
    for _ in range(3):
        await queue.submit("chat", queue="gpu")
    await queue.claim("w", ["gpu"], max_jobs=3)
    await expect(row).to_contain_text("2 of 2")
    await expect(row).to_contain_text("full")
    await row.get_by_label("Pause queue gpu for").select_option("60")
    await row.get_by_role("button", name="Pause").click()
    await expect(row).to_contain_text("paused")
    await tab.get_by_role("link", name="Keys").click()
    await expect(tab.locator("[data-part=limits]")).to_contain_text("No limits of this sort")
    await tab.go_back()
    await shows(tab, "stream")
    await row.locator("summary").click()
    await row.get_by_role("button", name="Remove queue gpu").click()
    await expect(tab.locator("[data-part=limits]")).to_contain_text("No limits yet")
    assert await queue.limits() == []


async def test_a_job_made_from_a_template(tab: Page, queue: Queue) -> None:
    variables: dict[str, Any] = {
        "text": "string",
        "words": {"type": "integer", "default": 50, "maximum": 500},
        "loud": {"type": "boolean", "default": False},
    }
    payload = {name: f"{{{{ variables.{name} }}}}" for name in variables}
    await queue.put_template("summary", "chat", {"old": 1})
    await queue.put_template("summary", "chat", payload, variables=variables)
    await live_less(tab, "/console/templates")
    await tab.keyboard.press("j")
    await tab.keyboard.press("Enter")
    await tab.wait_for_url("**/console/templates/summary")
    await tab.get_by_label("text").fill("All of it.")
    await tab.get_by_label("words").fill("501")
    await tab.get_by_label("loud").select_option("true")
    await tab.get_by_role("button", name="Submit job").click()
    await expect(tab.get_by_role("alert")).to_contain_text("variables.words")
    await expect(tab.get_by_label("text")).to_have_value("All of it.")
    await expect(tab.get_by_label("loud")).to_have_value("true")
    await tab.get_by_label("words").fill("7")
    await tab.get_by_role("button", name="Submit job").click()
    await expect(tab.locator(".headline")).to_contain_text("queued")
    [job] = (await queue.list(with_payload=True)).jobs
    assert job.payload == {"text": "All of it.", "words": 7, "loud": True}
    await live_less(tab, "/console/templates/summary")
    await tab.get_by_role("link", name="version 1").click()
    await expect(tab.locator("main")).to_contain_text("This is an older version")


async def test_an_event_is_approved(tab: Page, queue: Queue) -> None:
    claimed = await suspended(queue, "review")
    await live(tab, f"/console/jobs/{claimed.id}")
    steps = tab.locator("[data-part=steps]")
    await expect(steps).to_contain_text("waits for this event")
    await steps.locator("summary", has_text="Another payload").click()
    field = steps.get_by_label("As JSON")
    await field.fill('{"by": ')
    # A refresh of the region leaves alone what is open and half written.
    async with tab.expect_response(lambda response: "part=steps" in response.url):
        await queue.signal(claimed.id, "other", None)
    await expect(field).to_have_value('{"by": ')
    await steps.get_by_role("button", name="Signal review").click()
    await expect(tab.get_by_role("alert")).to_contain_text("payload")
    # Nor does it ask for what was refused, while the rest of its page is kept up to date.
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    await shows(tab, "stream")
    await queue.signal(claimed.id, "a third", None)
    signals = tab.locator("[data-part=timeline] li", has_text="signalled")
    await expect(signals).to_have_count(2)
    assert [url for url in asked if "part=timeline" in url]
    assert [url for url in asked if "part=steps" in url] == []
    await expect(tab.get_by_role("alert")).to_contain_text("payload")
    await expect(field).to_have_value('{"by": ')
    await field.fill('{"by": "ada"}')
    await steps.get_by_role("button", name="Signal review").click()
    await expect(tab.locator(".headline")).to_contain_text("queued")
    async with queue.connection() as conn:
        cursor = await conn.execute("select payload from queue_pg.job_signals where name = 'review'")
        assert await cursor.fetchone() == ({"by": "ada"},)
    await queue.cancel(claimed.id)
    other = await suspended(queue, "review")
    await live(tab, f"/console/jobs/{other.id}")
    await tab.get_by_role("button", name="Approve").click()
    await expect(tab.locator(".headline")).to_contain_text("queued")


async def test_chain_and_run_again(tab: Page, queue: Queue) -> None:
    first = await queue.submit("chat", {"prompt": "one"})
    await live(tab, f"/console/jobs/{first.id}")
    await tab.locator("summary", has_text="Chain a prompt").click()
    prompt = tab.get_by_label("Prompt, which takes")
    await prompt.fill("Shorter: {{ parents.parent.output.text }}")
    # The job goes on meanwhile; the form is not touched by that.
    [claimed] = await queue.claim("w", ["default"])
    await expect(tab.locator(".headline")).to_contain_text("running")
    await expect(prompt).to_have_value("Shorter: {{ parents.parent.output.text }}")
    await expect(prompt).to_be_focused()
    await tab.get_by_role("button", name="Submit follower").click()
    await expect(tab.locator(".headline")).to_contain_text("waiting")
    await shows(tab, "stream")
    family = tab.locator("[data-part=family]")
    await expect(family).to_contain_text("running chat")
    await queue.complete(claimed.id, claimed.lease_token, {"text": "the answer"})
    # Another job's end: the region follows it, and this one's payload has become whole.
    await expect(family).to_contain_text("completed chat")
    await family.get_by_role("link", name="chat").first.click()
    await tab.wait_for_url(f"**/console/jobs/{first.id}")
    await tab.locator("summary", has_text="Run again").click()
    await tab.get_by_label("Another model").fill("large")
    await tab.get_by_role("button", name="Run as a new job").click()
    await expect(tab.locator("[data-part=details]")).to_contain_text("Rerun of")
    [again, *_] = (await queue.list(with_payload=True, rerun_of=first.id)).jobs
    assert again.payload == {"prompt": "one", "model": "large"}


async def test_a_family_that_comes_to_be_is_followed(tab: Page, queue: Queue) -> None:
    first = await queue.submit("chat")
    await live(tab, f"/console/jobs/{first.id}")
    child = await queue.chain(first.id, NewJob(kind="report", queue="later"))
    await tab.keyboard.press("r")
    family = tab.locator("[data-part=family]")
    await expect(family).to_contain_text("waiting report")
    await queue.cancel(child.id)
    await expect(family).to_contain_text("cancelled report")


async def test_artifacts_come_live_and_are_fetched(tab: Page, queue: Queue) -> None:
    submitted = await queue.submit("chat")
    await live(tab, f"/console/jobs/{submitted.id}")
    await queue.put_artifact(submitted.id, "notes/a b.md", b"# Notes", content_type="text/markdown")
    async with tab.expect_download() as found:
        await tab.get_by_role("link", name="notes/a b.md").click()
    path = await (await found.value).path()
    assert path.read_bytes() == b"# Notes"


async def test_the_log_by_stream_stays_live(tab: Page, queue: Queue) -> None:
    await queue.submit("chat")
    [claimed] = await queue.claim("w", ["default"])
    pair = (claimed.id, claimed.lease_token)
    await queue.append_events(
        *pair, [("log", {"stream": name, "line": f"{name} one"}) for name in ("stdout", "stderr")]
    )
    await live(tab, f"/console/jobs/{claimed.id}")
    await tab.get_by_role("link", name="stderr").click()
    await tab.wait_for_url("**stream=stderr**")
    await shows(tab, "stream")
    await queue.append_events(
        *pair, [("log", {"stream": name, "line": f"{name} two"}) for name in ("stdout", "stderr")]
    )
    log = tab.get_by_role("log")
    await expect(log).to_contain_text("stderr two")
    await expect(log).not_to_contain_text("stdout")


async def test_without_scripts(browser: Browser, served: Any, queue: Queue) -> None:
    await queue.put_template("summary", "chat", {"text": "{{ variables.text }}"}, variables={"text": "string"})
    claimed = await suspended(queue, "review")
    async with await browser.new_context(
        base_url=served.url, java_script_enabled=False, viewport={"width": 390, "height": 800}
    ) as context:
        context.set_default_timeout(TIMEOUT)
        tab = await context.new_page()
        await tab.goto("/")
        # The menu is a popover: it opens without scripts too.
        await expect(tab.get_by_role("link", name="Schedules")).to_be_hidden()
        await tab.get_by_role("button", name="Menu").click()
        await tab.get_by_role("link", name="Schedules").click()
        await tab.get_by_role("link", name="New schedule").click()
        await tab.get_by_label("Name").fill("ping")
        await tab.get_by_label("Cron expression").fill("0 0 1 1 *")
        await tab.get_by_label("Prompt", exact=True).fill("Ping.")
        await tab.get_by_role("button", name="Show the next fires").click()
        await expect(tab.locator("[data-part=preview] li")).to_have_count(5)
        await expect(tab.get_by_role("textbox", name="Prompt")).to_have_value("Ping.")
        await tab.get_by_role("button", name="Make schedule").click()
        await tab.locator("summary", has_text="Delete").click()
        await tab.get_by_role("button", name="Delete schedule").click()
        await tab.wait_for_url("**/console/schedules")
        assert await queue.schedules() == []
        await tab.goto("/console/templates/summary")
        await tab.get_by_label("text").fill("x")
        await tab.get_by_role("button", name="Submit job").click()
        await expect(tab.locator(".headline")).to_contain_text("queued")
        await tab.goto(f"/console/jobs/{claimed.id}")
        await tab.get_by_role("button", name="Approve").click()
        await expect(tab.locator(".headline")).to_contain_text("queued")
        await tab.locator("summary", has_text="Chain a prompt").click()
        await tab.get_by_role("button", name="Submit follower").click()
        await expect(tab.locator(".headline")).to_contain_text("waiting")


@pytest.mark.parametrize("width", [390, 1280])
async def test_nothing_is_cut_off_and_targets_are_large(tab: Page, queue: Queue, width: int) -> None:
    long = "k" * 100
    await queue.schedule(long, long, {"text": "w" * 3_000}, cron="0 9 * * mon-fri", time_zone="Europe/Berlin")
    batch = await queue.create_batch(long)
    failed = await queue.submit(long, queue="gone", batch_id=batch.id)
    await queue.cancel(failed.id)
    await queue.set_limit("key", long, rate=1_000_000, per="minute")
    variables: dict[str, Any] = {long: {"type": "string", "description": "d" * 300, "default": "x" * 300}}
    await queue.put_template(long, long, {"text": "w" * 3_000}, variables=variables, description="d" * 2_000)
    claimed = await suspended(queue, "e" * 200)
    await queue.put_artifact(claimed.id, long, b"x", content_type="text/plain")
    await queue.chain(claimed.id, NewJob(kind=long, queue="q" * 200))
    await queue.chain(claimed.id, NewJob(kind=long))
    await tab.set_viewport_size({"width": width, "height": 800})
    for path in (
        "/console/schedules",
        f"/console/schedules/{long}",
        "/console/new/schedule?cron=*+*+*+*+*",
        "/console/batches",
        f"/console/batches/{batch.id}",
        "/console/limits",
        "/console/templates",
        f"/console/templates/{long}",
        f"/console/jobs/{claimed.id}",
    ):
        await live_less(tab, path)
        for summary in await tab.locator(".more > summary").all():
            await summary.click()
        # What is wider than the screen can be scrolled to in its own box: tables and the picture.
        wide = (
            "[...document.querySelectorAll('body *')].filter(each => !each.closest('table, .picture') && innerWidth + 1"
        )
        wide += " < each.getBoundingClientRect().right).map(each => each.outerHTML.slice(0, 200))"
        assert await tab.evaluate(wide) == [], path
        assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        small = (
            "[...document.querySelectorAll('button, .button, nav a, .more > summary, td > a:not(.tag)')].filter(each"
        )
        small += " => each.offsetParent && each.getBoundingClientRect().height < 43.5).map(each => each.outerHTML)"
        assert await tab.evaluate(small) == [], path


async def test_the_menu_on_a_narrow_screen(tab: Page, queue: Queue) -> None:
    await tab.set_viewport_size({"width": 390, "height": 800})
    await live(tab, "/")
    await tab.get_by_role("button", name="Menu").click()
    await expect(tab.get_by_role("link", name="Limits")).to_be_visible()
    await tab.keyboard.press("Escape")
    await expect(tab.get_by_role("link", name="Limits")).to_be_hidden()
    for keys, path in (("gb", "batches"), ("gs", "schedules"), ("gt", "tasks"), ("ge", "templates"), ("gl", "limits")):
        for key in keys:
            await tab.keyboard.press(key)
        await tab.wait_for_url(f"**/console/{path}")
        await expect(tab.locator("html")).to_have_class("scripted")


async def test_a_look_that_takes_too_long_leaves_what_is_shown(
    tab: Page, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row in focus, live switched off: what is shown, and where the reader is, stays, and is made good later."""
    submitted = await queue.submit("chat")
    await live(tab, "/console/jobs")
    await tab.get_by_role("button", name="Live").click()
    await tab.keyboard.press("j")
    looking = Figures.looking

    def slow(self: Figures) -> Any:
        raise TooSlow("The database did not have the answer within 2 s.")

    monkeypatch.setattr(Figures, "looking", slow)
    await tab.keyboard.press("r")
    await expect(tab.locator("#notice")).to_contain_text("did not have the answer")
    assert await tab.evaluate("document.activeElement.closest('tr')?.dataset.key") == str(submitted.id)
    monkeypatch.setattr(Figures, "looking", looking)
    await queue.submit("chat")
    await expect(tab.locator("tbody tr")).to_have_count(2)
    await expect(tab.locator("#notice")).to_be_hidden()
    assert await tab.evaluate("document.activeElement.closest('tr')?.dataset.key") == str(submitted.id)
    assert (await queue.get(submitted.id)).state is JobState.QUEUED
