"""The founding systems' acceptance lists, against a service behind a real socket, real workers and a real Postgres.

The service and the workers of most tests run in the test's own process, where the clock of the database can be moved
and what happens inside can be waited for; where processes matter (signals, `.env`), they are processes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from queue_pg_api.app import create_app
from queue_pg_api.server import Server, configure, listen

from queue_pg import Queue
from queue_pg.settings import Settings

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "workers"))  # for in_process, model_server, worker_process
PATIENCE_SECONDS = 60.0

Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def serve(dsn: str) -> Serve:
    """Serve the API on a free port while a block lasts; give a client of it. Settings come from the environment."""

    @asynccontextmanager
    async def serving(**changed: Any) -> AsyncGenerator[httpx.AsyncClient]:
        app = create_app(Settings.load(env_file=None, **{"database_url": dsn, **changed}))
        listener = listen("127.0.0.1", 0)
        port: int = listener.getsockname()[1]
        config = configure(app, host="127.0.0.1", port=port, log_level="WARNING", access_log=False, reload=False)
        server = Server(config)
        task = asyncio.create_task(server._serve([listener]))  # not serve(): signals belong to pytest
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS) as client:
                await client.get("/livez")
                yield client
        finally:
            server.should_exit = True
            await task

    return serving


@pytest.fixture
async def api(serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service with the settings as they come."""
    async with serve() as client:
        yield client


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as client:
        yield client
