"""Who may ask, and for which organisation a request acts.

Every endpoint goes through here before its handler runs; keys and scopes are checked in this place when there are
any. Until then everybody acts for the organisation that the service was started with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request

from queue_pg_api.errors import ApiError

if TYPE_CHECKING:
    from queue_pg_api.service import Service

SAFE_METHODS = frozenset({"GET", "HEAD"})


def acting_org(request: HTTPConnection, service: Service) -> str:
    """Return the organisation whose jobs this request may see and change."""
    del request  # nothing in a request can choose it yet
    return service.org


def refuse_cross_origin(request: Request) -> None:
    """Refuse writes that a browser sends for another site's page.

    The service listens on loopback without keys, where any page that a developer visits could otherwise submit or
    cancel jobs with a plain form post. Browsers always say where such a request comes from; other clients don't.
    """
    if request.method not in SAFE_METHODS:
        refuse_foreign_page(request)


def refuse_foreign_page(request: HTTPConnection) -> None:
    """Refuse what a browser sends for another site's page; of reads only WebSockets, which it lets that page read."""
    origin = request.headers.get("origin")
    if origin is None:
        return
    if origin == "null" or urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
        raise ApiError(403, "cross_origin", "Requests from pages of another origin are refused.")
