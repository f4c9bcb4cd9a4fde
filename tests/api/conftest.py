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
from queue_pg_api.app import create_app
from queue_pg_api.server import Server, configure, listen
from queue_pg_api.service import Service
from starlette.applications import Starlette

from queue_pg.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))  # for tcp_proxy

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
async def served(app: Starlette) -> AsyncIterator[Served]:
    """Serve the API on a free port; `server_task` ends when the server has stopped."""
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
