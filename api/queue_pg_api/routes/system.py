"""Probes and the API's own description."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from queue_pg_api.answers import AliveAnswer, HealthAnswer, ReadyAnswer
from queue_pg_api.endpoints import Call, Endpoints
from queue_pg_api.errors import json_response
from queue_pg_api.metrics import write
from queue_pg_api.schemas import NoBody, NoQuery

endpoints = Endpoints("System")


@endpoints.get("/", answers={307: None})
async def root(call: Call[NoQuery, NoBody]) -> Response:
    """Go to /docs; a browser, which asks for text/html, gets the console."""
    return RedirectResponse(call.url("/docs"), 307, headers={"vary": "accept"})


@endpoints.get("/health", answers={200: HealthAnswer})
async def get_health(call: Call[NoQuery, NoBody]) -> Response:
    """Say that the service is up, and whether it reaches its database. Always 200."""
    connected = await call.service.database_connected()
    database = "connected" if connected else "disconnected"
    return json_response({"status": "healthy", "service": "queue-pg", "database": database})


@endpoints.get("/livez", answers={200: AliveAnswer})
async def get_livez(call: Call[NoQuery, NoBody]) -> Response:
    """Say that the process answers; asks nothing else. For a liveness probe."""
    del call
    return json_response({"status": "alive"})


@endpoints.get("/readyz", answers={200: ReadyAnswer}, refuses=(503,))
async def get_readyz(call: Call[NoQuery, NoBody]) -> Response:
    """Say whether requests can be served: the database answers and its schema fits. For a readiness probe."""
    await call.service.check_ready()
    return json_response({"status": "ready"})


@endpoints.get("/metrics", answers={200: None})
async def get_metrics(call: Call[NoQuery, NoBody]) -> Response:
    """Read the figures for Prometheus, in its text format or in OpenMetrics.

    Always 200: while the database is away, without its figures.
    """
    service = call.service
    families = await service.database_metrics.families()
    body, media_type = write(call.request.headers.get("accept", ""), families, service.http_metrics.registry)
    return Response(body, headers={"content-type": media_type, "cache-control": "no-store"})


@endpoints.get("/openapi.json", answers={200: None})
async def get_openapi(call: Call[NoQuery, NoBody]) -> Response:
    """Read this description."""
    return json_response(call.service.openapi)
