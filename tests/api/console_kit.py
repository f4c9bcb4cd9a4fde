"""What the tests of the console have in common: a browser's requests, and a browser."""

from __future__ import annotations

import os
import re
import shutil

import httpx
import pytest
from page_reader import Element, read
from playwright.async_api import Page as Tab
from playwright.async_api import expect
from queue_pg_api.pages.page import Page

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("QUEUE_PG_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

IN_CHROMIUM = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium: apt-get install chromium, or name one in QUEUE_PG_TEST_CHROMIUM"
    ),
    pytest.mark.xdist_group("chromium"),
]

TIMEOUT = 20_000
expect.set_options(timeout=TIMEOUT)


async def page_of(web: httpx.AsyncClient, address: str, prefix: str, status: int = 200) -> Element:
    answer = await web.get(address)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"
    root = read(answer.text, prefix)
    assert len(root.all("h1")) == 1
    assert root.all("title")[0].text.endswith("queue-pg")
    return root


async def regions_of(web: httpx.AsyncClient, address: str, prefix: str, page: Page) -> dict[str, Element]:
    """Fetch each region alone, which has to be drawn as it is in the page."""
    whole = await page_of(web, address, prefix)
    found: dict[str, Element] = {}
    for region in page.regions:
        separator = "&" if "?" in address else "?"
        answer = await web.get(f"{address}{separator}part={region.name}")
        assert answer.status_code == 200, answer.text
        [section] = read(answer.text, prefix).children
        [same] = whole.all("section", data_part=region.name)
        assert (section.tag, section.attributes) == ("section", same.attributes)
        assert steady(section) == steady(same)
        found[region.name] = section
    return found


def steady(section: Element) -> str:
    """Return the text without what time alone changes."""
    return re.sub(r"[\d.]+ (ms|s)|\d+", "", section.text)


async def post(web: httpx.AsyncClient, address: str, /, **fields: str) -> httpx.Response:
    return await web.post(address, data=fields or {"": ""}, headers={"origin": "http://web"})


async def shows(tab: Tab, how: str) -> None:
    """Wait until the page follows by stream, or polls. By attribute: the policy forbids waiting by a function."""
    await expect(tab.locator("html")).to_have_attribute("data-live", how)


async def live(tab: Tab, path: str) -> None:
    await tab.goto(path)
    await shows(tab, "stream")


async def live_less(tab: Tab, path: str) -> None:
    await tab.goto(path)
    await expect(tab.locator("html")).to_have_class("scripted")
