"""What goes wrong, as a page: the same table from errors to statuses as the API's, in words for people."""

from __future__ import annotations

import logging
from http import HTTPStatus

from starlette.responses import HTMLResponse, Response

from queue_pg.errors import (
    BatchNotFound,
    DatabaseUnavailable,
    InvalidTransition,
    JobNotFound,
    LimitNotFound,
    QueuePgError,
    ScheduleNotFound,
    TemplateNotFound,
    TooSlow,
)
from queue_pg_api.errors import RETRY_AFTER_SECONDS, ApiError, translate
from queue_pg_api.pages.page import HEADERS, Visit

logger = logging.getLogger(__name__)


def error_page(visit: Visit, error: Exception) -> Response:
    """Turn any exception into its page; a region that is fetched alone gets the bare words."""
    if isinstance(error, TooSlow):
        refusal = ApiError(503, "too_slow", f"{error.message} Try again, or ask for less.")
    elif isinstance(error, ApiError):
        refusal = error
    elif isinstance(error, QueuePgError):
        refusal = translate(error)
    else:
        logger.exception("Unexpected error while drawing a page", exc_info=error)
        refusal = ApiError(500, "internal_error", "Internal error. The server's log has the reason.")
    headers = {**HEADERS, **refusal.headers}
    if refusal.status == 503:
        headers.setdefault("retry-after", str(RETRY_AFTER_SECONDS))
    if "part" in visit.request.query_params:
        return Response(refusal.detail, refusal.status, headers=headers, media_type="text/plain")
    again = visit.request.method == "GET" and refusal.status in {500, 503}
    return HTMLResponse(
        visit.markup("error.html", refusal=refusal, title=_title(error, refusal), again=again, page=None),
        refusal.status,
        headers=headers,
    )


def _title(error: Exception, refusal: ApiError) -> str:
    match error:
        case DatabaseUnavailable():
            return "The database is away"
        case TooSlow():
            return "This took too long"
        case JobNotFound():
            return "No such job"
        case BatchNotFound():
            return "No such batch"
        case ScheduleNotFound():
            return "No such schedule"
        case TemplateNotFound():
            return "No such template"
        case LimitNotFound():
            return "No such limit"
        case InvalidTransition():
            return "Not in this state"
        case _:
            return HTTPStatus(refusal.status).phrase
