"""The ASGI application: `create_app()` for a server, or to mount into another Starlette app."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from queue_pg.client import Queue
from queue_pg.settings import Settings
from queue_pg_api.docs_page import docs_routes
from queue_pg_api.endpoints import Endpoint, routes_of
from queue_pg_api.errors import ApiError, error_response
from queue_pg_api.openapi import document
from queue_pg_api.pages.routes import FrontPage, console_routes
from queue_pg_api.routes import (
    actions,
    artifacts,
    batches,
    cerebro,
    events,
    jobs,
    limits,
    pull,
    queues,
    schedules,
    steps,
    system,
    tasks,
    templates,
)
from queue_pg_api.routes.sockets import socket_routes
from queue_pg_api.service import Service
from queue_pg_api.telemetry import Telemetry, route_templates

STATE_KEY = "queue_pg_service"


def all_endpoints() -> list[Endpoint]:
    """Return every documented endpoint; fixed paths stand before those with an id in the same place."""
    return [
        *pull.claims,
        *actions.endpoints[:1],
        *jobs.endpoints,
        *actions.endpoints[1:],
        *steps.endpoints,
        *pull.endpoints,
        *events.endpoints,
        *tasks.endpoints,
        *batches.endpoints,
        *templates.endpoints,
        *cerebro.endpoints,
        *artifacts.endpoints,
        *queues.endpoints,
        *schedules.endpoints,
        *limits.endpoints,
        *system.endpoints,
    ]


def create_app(settings: Settings | None = None, *, queue: Queue | None = None) -> Starlette:
    """Make the application.

    With `queue` given, the caller opens and closes it. Mounted into another app, whose lifespan does not reach it,
    the outer lifespan enters `app.state.service`. Starts and stays up while the database is away.
    """
    service = Service(settings or Settings.load(), queue)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[dict[str, Any]]:
        async with service:
            # The server finds it here to end its waits before it waits for requests (server.py).
            yield {STATE_KEY: service}

    endpoints = all_endpoints()
    service.openapi = document(endpoints)
    routes: Sequence[BaseRoute] = [
        FrontPage(service),
        *routes_of(endpoints, service),
        *socket_routes(service),
        *docs_routes(),
        *console_routes(service),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Telemetry, metrics=service.http_metrics, templates=route_templates(routes))],
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_refusal, ApiError: _refusal},
    )
    # "/jobs/" is not "/jobs": a redirect would be built from the Host header, which anybody may forge.
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _http_refusal(request: Request, error: Exception) -> Response:
    """Give what Starlette refuses (no such path, wrong method) the shape of all other refusals."""
    if not isinstance(error, HTTPException):
        return error_response(error)
    status = error.status_code
    code = {404: "not_found", 405: "method_not_allowed"}.get(
        status, HTTPStatus(status).phrase.lower().replace(" ", "_")
    )
    allowed = (error.headers or {}).get("Allow", "")
    detail = {
        404: "No such path. /docs lists what there is.",
        405: f"{request.method} is not allowed here; allowed: {allowed}.",
    }.get(status, error.detail)
    return error_response(ApiError(status, code, detail, headers=error.headers))


async def _refusal(_: Request, error: Exception) -> Response:
    return error_response(error)
