"""Lists: their filters are the query string, so that an address is a view, and they go on page by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from queue_pg_api.errors import ApiError, invalid
from queue_pg_api.pages.page import Context, Page, Visit

# No filters: what page of the list, and what a form on it is filled in with.
PAGING = frozenset({"part", "cursor", "limit", "set"})
DEFAULT_LIMIT = 50
# Enough to offer; nobody reads on in a list of names.
MAX_OFFERED = 100


async def _nothing(_: Visit) -> Context:
    return {}


def filters(visit: Visit, known: Sequence[str]) -> dict[str, str]:
    """Return what the query string asks for; a field of the form that is left empty asks for nothing."""
    given: dict[str, str] = {}
    for name, value in visit.request.query_params.multi_items():
        if name in PAGING or not value.strip():
            continue
        if name not in known:
            raise invalid(name, f"is no filter; there are {', '.join(known)}" if known else "is no filter of this page")
        if name in given:
            raise invalid(name, "is given more than once")
        if "\x00" in value:
            raise invalid(name, "holds a NUL character, which Postgres cannot store")
        given[name] = value.strip()
    return given


def asked(visit: Visit, known: Sequence[str]) -> dict[str, Any]:
    """Return the filters, the cursor and the limit, for the API's model of this list to check."""
    query = visit.request.query_params
    values: dict[str, Any] = {**filters(visit, known)}
    for name in ("cursor", "limit"):
        value = query.get(name)
        if value and "\x00" in value:
            raise invalid(name, "holds a NUL character, which Postgres cannot store")
        if value:
            values[name] = value
    return {"limit": DEFAULT_LIMIT, **values}


def pages(visit: Visit, known: Sequence[str], limit: int, next_cursor: str | None) -> Context:
    """Return what the links to older and to the newest entries ask for; None: there is no such link."""
    given = filters(visit, known)
    kept = given if limit == DEFAULT_LIMIT else {**given, "limit": str(limit)}
    return {
        "filters": given,
        "older": {**kept, "cursor": next_cursor} if next_cursor else None,
        "newest": kept if visit.request.query_params.get("cursor") else None,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage(Page):
    """A list with a form for its filters; `offer` loads what that may be asked for."""

    filters: Sequence[str] = ()
    offer: Callable[[Visit], Awaitable[Context]] = field(default=_nothing)

    async def show(self, visit: Visit, status: int = 200, **context: Any) -> Response:
        """Answer with the whole page; when a filter makes no sense, with the form alone, for it to be put right."""
        offered = {**await self.offer(visit), **context}
        try:
            given = filters(visit, self.filters)
            parts = await self.parts(visit)
        except ApiError as error:
            if error.status != 422:
                raise
            query = visit.request.query_params
            typed = {name: query.get(name, "")[:300] for name in self.filters}
            return visit.render(
                self.template,
                422,
                page=self,
                parts={region.name: "" for region in self.regions},
                filters=typed,
                fault=error.detail,
                **offered,
            )
        return visit.render(self.template, status, page=self, parts=parts, filters=given, fault=None, **offered)
