"""An API on the test's own database, called in-process or, where sockets matter, served by a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from queue_pg.settings import Settings
from queue_pg_api.app import create_app
from queue_pg_api.server import Server, configure, listen
from queue_pg_api.service import Service

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

    def stop(self) -> None:
        self.server.should_exit = True


@asynccontextmanager
async def serve(app: Starlette) -> AsyncGenerator[tuple[Served, asyncio.Task[None]]]:
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    config = configure(app, host="127.0.0.1", port=port, log_level="WARNING", access_log=False, reload=False)
    config.log_config = None
    server = Server(config)

    async def run() -> None:
        # Signals belong to pytest.
        await server._serve([listener])

    task = asyncio.create_task(run())
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as probe:
            await probe.get("/livez")
        yield Served(server, f"http://127.0.0.1:{port}", port, app.state.service), task
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def served(app: Starlette) -> AsyncIterator[Served]:
    async with serve(app) as (served, _):
        yield served


@pytest.fixture
def claim_one(client: httpx.AsyncClient) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Claim one job over HTTP and return it."""

    async def claim(**body: Any) -> dict[str, Any]:
        answer = await client.post("/jobs/claim", json={"worker": "w1", **body})
        assert answer.status_code == 200, answer.text
        [job] = answer.json()["jobs"]
        return job

    return claim
