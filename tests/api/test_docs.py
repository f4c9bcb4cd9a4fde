"""docs/http.md says what is served, and the app works where it is mounted."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from queue_pg_api.app import all_endpoints, create_app
from starlette.applications import Starlette
from starlette.routing import Mount

from queue_pg.client import Queue
from queue_pg.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "http.md").read_text("utf-8")


@pytest.mark.parametrize("endpoint", all_endpoints(), ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
def test_the_page_names_every_route(endpoint: Any) -> None:
    path = endpoint.path.replace(":path", "")
    last = "/" + path.rpartition("/")[2]
    assert f"`{endpoint.method} {path}" in PAGE or f"`{last}`" in PAGE or f"`{path}`" in PAGE or path == "/"


def test_the_page_names_every_code() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "api" / "queue_pg_api").rglob("*.py"))
    codes = set(re.findall(r'(?:code=|ApiError\(\s*\d+,\s*)"(\w+)"', sources))
    assert {"body_too_large", "queue_not_found", "unknown_field"} <= codes
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()


async def test_mounted_into_another_app(dsn: str) -> None:
    inner = create_app(Settings.load(env_file=None, database_url=dsn))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with inner.state.service:
            yield

    outer = Starlette(routes=[Mount("/queue", inner)], lifespan=lifespan)
    transport = httpx.ASGITransport(app=outer)
    async with (
        outer.router.lifespan_context(outer),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        created = await client.post("/queue/jobs", json={"kind": "chat"})
        assert created.headers["location"] == f"/queue/jobs/{created.json()['id']}"
        assert (await client.get(created.headers["location"])).status_code == 200
        assert (await client.get("/queue/")).headers["location"] == "/queue/docs"
        assert (await client.get("/queue/docs/start.js")).status_code == 200
        assert (await client.get("/queue/nothing")).json()["code"] == "not_found"


async def test_a_queue_of_the_caller_stays_open(dsn: str) -> None:
    async with Queue(dsn) as queue:
        app = create_app(Settings.load(env_file=None), queue=queue)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            job = (await client.post("/jobs", json={"kind": "chat"})).json()
            claimed = await client.post("/jobs/claim", json={"worker": "w", "wait": 10})
            assert [each["id"] for each in claimed.json()["jobs"]] == [job["id"]]
        assert str((await queue.get(job["id"])).id) == job["id"]
