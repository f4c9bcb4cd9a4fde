"""`/console/replay`: what failed is counted, and retried by a form."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from console_kit import BROWSER, post
from page_reader import read
from queue_pg_api.pages import replay

from queue_pg.client import Queue

HOSTILE = '<script>alert("1")</script>'


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as opened:
        yield opened


async def fail(queue: Queue, code: str, name: str = "default") -> None:
    await queue.submit("send", queue=name)
    for claimed in await queue.claim("w", ["default", "mail"]):
        await queue.fail(claimed.id, claimed.lease_token, {"code": code}, retry=False)


async def test_what_failed_is_retried(web: httpx.AsyncClient, prefix: str, queue: Queue) -> None:
    for code in ("timeout", "timeout", HOSTILE):
        await fail(queue, code)
    await fail(queue, "timeout", "mail")
    listed = await web.get(f"{prefix}/console/jobs?state=failed&queue=default", headers=BROWSER)
    [link] = [each for each in read(listed.text).all("a") if "Retry all that match" in each.text]
    address = link.attributes["href"]
    assert address == f"{prefix}/console/replay?state=failed&queue=default"
    shown = (await web.get(address, headers=BROWSER)).text
    assert "jobs match" in shown
    assert HOSTILE not in shown
    codes = [url for each in read(shown).all("a") if "error_code=" in (url := each.attributes["href"])]
    assert codes[0] == f"{address}&error_code=timeout"
    refused = await post(web, codes[0], max_attempts="none")
    assert (refused.status_code, "max_attempts" in refused.text) == (422, True)
    answer = await post(web, codes[0], max_attempts="7")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{codes[0]}&set=done")
    done = (await web.get(answer.headers["location"], headers=BROWSER)).text
    assert "They are back in their queues." in done
    jobs = (await queue.list(state="queued")).jobs
    assert [(job.queue, job.max_attempts) for job in jobs] == [("default", 7)] * 2
    assert len((await queue.list(state="failed")).jobs) == 2


async def test_a_long_one_says_that_there_is_more(
    web: httpx.AsyncClient, prefix: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "ACTION_SECONDS", 0.0)
    monkeypatch.setattr("queue_pg.acting.JOBS_AT_ONCE", 1)
    for _ in range(2):
        await fail(queue, "timeout")
    answer = await post(web, f"{prefix}/console/replay")
    assert answer.headers["location"] == f"{prefix}/console/replay?set=more"
    assert "Do it again to go on" in (await web.get(answer.headers["location"], headers=BROWSER)).text
    assert len((await queue.list(state="failed")).jobs) == 1


@pytest.mark.parametrize("wrong", ["state=running", "color=red", "batch=x", "error_code=" + "x" * 300, "queue=%00"])
async def test_what_makes_no_sense_is_refused(web: httpx.AsyncClient, prefix: str, wrong: str) -> None:
    assert (await web.get(f"{prefix}/console/replay?{wrong}", headers=BROWSER)).status_code == 422
    assert (await post(web, f"{prefix}/console/replay?{wrong}")).status_code == 422
