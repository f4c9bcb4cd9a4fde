"""Under which names the service may be addressed.

A page of any site can have its own name lead to this machine (DNS rebinding). Its requests then come from what the
browser takes for one origin, so that it may read the answers too, and nothing but the Host header tells. Only a name
can be made to lead elsewhere: addresses are always right, and so are names without a dot, which nobody can register.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from queue_pg.settings import Settings
from queue_pg_api.app import create_app
from queue_pg_api.errors import ApiError, error_response

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
EVERY = "*"
POLICY_VIOLATION = 1008


def allowed_hosts(settings: Settings) -> list[str]:
    """Return the names that API_HOSTS says, else none on loopback and all elsewhere."""
    if settings.api_hosts is not None:
        return settings.api_hosts
    return [] if settings.api_host in LOOPBACK_HOSTS else [EVERY]


def host_of(header: str) -> str:
    """Return the host of a Host header, without its port."""
    host = header.strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].rstrip(".")


def is_allowed(header: str, allowed: Sequence[str]) -> bool:
    """Tell whether a request with this Host header may be answered. No browser leaves it out."""
    host = host_of(header)
    if EVERY in allowed or host in allowed or "." not in host or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class HostGuard:
    """The application as `queue-pg serve` serves it: requests under other names are answered 421."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self.app = app
        self.allowed = [host_of(name) if name != EVERY else name for name in allowed]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_allowed(Headers(scope=scope).get("host", ""), self.allowed):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        else:
            refused = ApiError(
                421,
                "host_not_allowed",
                "This service is not addressed by this name. API_HOSTS lists the names by which it is.",
            )
            await error_response(refused)(scope, receive, send)


def served_app(settings: Settings | None = None) -> ASGIApp:
    """Make the application that `queue-pg serve` serves."""
    found = settings or Settings.load()
    return HostGuard(create_app(found), allowed_hosts(found))
