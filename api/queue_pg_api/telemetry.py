"""Around every request: how long it took, by route, and what ties its log lines together."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from queue_pg.logs import correlated
from queue_pg_api.metrics import HttpMetrics

REQUEST_ID_HEADER: Final = "x-request-id"
# What can stand in a log line and in a header as it is; any other id is replaced by one of ours.
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}", re.ASCII)
UNMATCHED: Final = "(none)"
NO_STATUS: Final = 499


def given_request_id(headers: Headers) -> str | None:
    """Return the id that a client has given its request; None for none, and for one that cannot be passed on."""
    value = headers.get(REQUEST_ID_HEADER, "")
    return value if _REQUEST_ID.fullmatch(value) else None


def route_templates(routes: Sequence[BaseRoute]) -> dict[Any, str]:
    """Return the template of the path for each endpoint."""
    return {route.endpoint: route.path for route in routes if isinstance(route, Route | WebSocketRoute)}


class Telemetry:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics, templates: dict[Any, str]) -> None:
        self._app = app
        self._metrics = metrics
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = given_request_id(headers)
        request_id = given or secrets.token_hex(8)
        status, streams = 0, False

        async def send_measured(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID_HEADER] = request_id
                self._metrics.answered(scope["method"], self._route(scope), status, time.perf_counter() - began)
                if answer.get("content-type", "").startswith("text/event-stream"):
                    streams = True
                    self._metrics.event_streams.inc()
            await send(message)

        try:
            traceparent = headers.get("traceparent")
            with correlated(request_id=request_id, traceparent=traceparent, given=given is not None):
                await self._app(scope, receive, send_measured)
        finally:
            if streams:
                self._metrics.event_streams.dec()
            if not status:
                # The client has gone before there was an answer.
                self._metrics.answered(scope["method"], self._route(scope), NO_STATUS, time.perf_counter() - began)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        opened = False

        async def send_counted(message: Message) -> None:
            nonlocal opened
            if message["type"] == "websocket.accept":
                opened = True
                self._metrics.sockets.inc()
            await send(message)

        try:
            request_id = given_request_id(headers) or secrets.token_hex(8)
            with correlated(request_id=request_id, traceparent=headers.get("traceparent")):
                await self._app(scope, receive, send_counted)
        finally:
            if opened:
                self._metrics.sockets.dec()

    def _route(self, scope: Scope) -> str:
        return self._templates.get(scope.get("endpoint"), UNMATCHED)
