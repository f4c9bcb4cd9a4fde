"""One route that does one INSERT: what Starlette, uvicorn and a pool cost without a queue around them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import uvicorn
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from queue_pg_api.server import listen
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.statements import statement

POOL_SIZE = 10  # as many as queue-pg's API has

pool = AsyncConnectionPool(
    os.environ["DATABASE_URL"], min_size=POOL_SIZE, max_size=POOL_SIZE, open=False, kwargs={"autocommit": True}
)


async def post(request: Request) -> JSONResponse:
    """Store one job and answer with its id."""
    job = await request.json()
    async with pool.connection() as connection:
        cursor = await connection.execute(statement("plain_insert"), (job["kind"], Jsonb(job["payload"])))
        row = await cursor.fetchone()
    assert row is not None
    return JSONResponse({"id": str(row[0])}, status_code=201)


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
    """Open and close the pool."""
    async with pool:
        await pool.wait()
        yield


def main() -> None:
    """Serve on a free port, with uvicorn's settings as queue-pg's API has them."""
    app = Starlette(routes=[Route("/jobs", post, methods=["POST"])], lifespan=lifespan)
    listener = listen("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, lifespan="on", ws="none", log_level="warning", access_log=False, proxy_headers=False, server_header=False
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
