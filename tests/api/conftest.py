"""An API on the test's own database, called in-process or, where sockets matter, served by a real uvicorn."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from queue_pg_api import observing
from queue_pg_api.app import create_app
from queue_pg_api.server import Server, configure, listen
from queue_pg_api.service import Service
from starlette.applications import Starlette
from starlette.routing import Mount

from queue_pg.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))  # for tcp_proxy, page_reader and console_kit

from console_kit import BROWSER, CHROMIUM, TIMEOUT

MakeClient = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def settings_for(dsn: str, **changed: Any) -> Settings:
    return Settings.load(env_file=None, database_url=dsn, **changed)


@asynccontextmanager
async def client_of(app: Starlette) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api", timeout=30) as client,
    ):
        yield client


@pytest.fixture
def app(dsn: str) -> Starlette:
    return create_app(settings_for(dsn, block_timeout_seconds=0.05))


@pytest.fixture
def service(app: Starlette) -> Service:
    return app.state.service


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture
def make_client(dsn: str) -> MakeClient:
    """Make a client of an API with other settings."""

    def make(database_url: str = dsn, **changed: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        return client_of(create_app(settings_for(database_url, **changed)))

    return make


@dataclass(frozen=True, slots=True)
class Served:
    """An API behind a real socket."""

    server: Server
    url: str
    port: int
    service: Service
    task: asyncio.Task[None]

    async def stop(self) -> None:
        self.server.should_exit = True
        await self.task


@pytest.fixture
async def served(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """Serve the API on a free port; `server_task` ends when the server has stopped."""
    # On a busy machine it may take longer than anybody would wait until the first notification can come.
    monkeypatch.setattr(observing, "START_SECONDS", 20.0)
    listener = listen("127.0.0.1", 0)
    port: int = listener.getsockname()[1]
    config = configure(app, host="127.0.0.1", port=port, log_level="WARNING", access_log=False, reload=False)
    server = Server(config)
    # Not serve(): signals belong to pytest.
    task = asyncio.create_task(server._serve([listener]))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as probe:
            await probe.get("/livez")
        yield Served(server, f"http://127.0.0.1:{port}", port, app.state.service, task)
    finally:
        server.should_exit = True
        await task


@pytest.fixture
def claim_one(client: httpx.AsyncClient) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Claim one job over HTTP and return it."""

    async def claim(**body: Any) -> dict[str, Any]:
        answer = await client.post("/jobs/claim", json={"worker": "w1", **body})
        assert answer.status_code == 200, answer.text
        [job] = answer.json()["jobs"]
        return job

    return claim


@pytest.fixture(params=["", "/a/b"], ids=["at the root", "under a prefix"])
def prefix(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def inner(dsn: str) -> Starlette:
    return create_app(Settings.load(env_file=None, database_url=dsn, block_timeout_seconds=0.05))


@pytest.fixture
async def web(inner: Starlette, prefix: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser's requests to the console, mounted or not; addresses are complete paths."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with inner.state.service:
            yield

    outer = Starlette(routes=[Mount(prefix, inner)], lifespan=lifespan)
    async with (
        outer.router.lifespan_context(outer),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=outer), base_url="http://web", headers=BROWSER) as client,
    ):
        yield client


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        await opened.close()


@pytest.fixture
async def context(browser: Browser, served: Any) -> AsyncIterator[BrowserContext]:
    made = await browser.new_context(base_url=served.url, timezone_id="Asia/Tokyo", color_scheme="dark")
    made.set_default_timeout(TIMEOUT)
    yield made
    await made.close()


@pytest.fixture
async def tab(context: BrowserContext) -> AsyncIterator[Page]:
    """A tab; a fault in a script, or anything the policy forbids, fails the test."""
    faults: list[str] = []
    page = await context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
    yield page
    await page.close()
    assert faults == []
