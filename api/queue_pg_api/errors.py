"""What goes wrong, as HTTP: one table from the library's errors to status codes, one JSON shape for all of them.

    {"detail": "what happened and what to do next", "code": "lease_lost", ...}

Beside these two, an answer carries what the error is about: `field`, `suggestions`, `state`, `line`, `index`, `job_id`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from queue_pg.errors import (
    ArtifactCorrupt,
    ArtifactNotFound,
    ArtifactTooLarge,
    BatchNotFound,
    ConfigError,
    DatabaseUnavailable,
    InvalidArtifact,
    InvalidJob,
    InvalidTransition,
    JobNotFound,
    LeaseLost,
    LimitNotFound,
    QueueDraining,
    QueuePgError,
    ScheduleExists,
    ScheduleNotFound,
    SchemaError,
    SubmitError,
    TemplateNotFound,
    TooSlow,
    UniqueKeyConflict,
    UnknownKind,
    WaitTimeout,
)

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2

# The most special class wins; `QueuePgError` itself is the fallback.
STATUS_BY_ERROR: dict[type[QueuePgError], int] = {
    JobNotFound: 404,
    ArtifactNotFound: 404,
    ArtifactTooLarge: 413,
    InvalidArtifact: 422,
    LimitNotFound: 404,
    ScheduleNotFound: 404,
    ScheduleExists: 409,
    BatchNotFound: 404,
    TemplateNotFound: 404,
    InvalidTransition: 409,
    LeaseLost: 409,
    QueueDraining: 409,
    SubmitError: 422,
    WaitTimeout: 504,
    DatabaseUnavailable: 503,
    TooSlow: 503,
    SchemaError: 503,
    ConfigError: 500,
    QueuePgError: 500,
}

# Lengths of time, which have another name over HTTP: there they are numbers, and say of what.
DURATIONS = {
    name: f"{name}_seconds" for name in ("ageing", "cache_for", "delay", "every", "jitter", "lease", "timeout")
}

# Sending the same request again can never help. The official OpenAI SDKs honour this header, and so should others.
NEVER_RETRY: tuple[type[QueuePgError], ...] = (LeaseLost, UniqueKeyConflict)


class ApiError(Exception):
    """A refusal that only HTTP knows: a status, a code, and what it is about."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **about: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.about = about


def invalid(field: str, reason: str, *, code: str = "invalid_request", **about: Any) -> ApiError:
    """Build the 422 that names one field."""
    return ApiError(422, code, f"{field}: {reason}", field=field, **about)


def not_found(detail: str, *, code: str = "not_found") -> ApiError:
    return ApiError(404, code, detail)


def json_response(content: Any, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON; `content` holds only what `json` can write."""
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return raw_json_response(body, status, headers=headers)


def raw_json_response(body: str, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with text that is JSON already."""
    # A job's payload may be shown by a browser at its URL: never let it be taken for anything but data.
    extra = {"x-content-type-options": "nosniff", "cache-control": "no-store", **(headers or {})}
    return Response(body.encode(), status, headers=extra, media_type="application/json")


def error_response(error: Exception) -> Response:
    """Turn any exception into its answer; what nobody foresaw is logged and becomes a bare 500."""
    if isinstance(error, ApiError):
        api_error = error
    elif isinstance(error, QueuePgError):
        api_error = translate(error)
    else:
        logger.exception("Unexpected error while answering a request", exc_info=error)
        api_error = ApiError(500, "internal_error", "Internal error. The server's log has the reason.")
    content = {"detail": api_error.detail, "code": api_error.code, **api_error.about}
    return json_response(content, api_error.status, headers=api_error.headers)


def translate(error: QueuePgError) -> ApiError:
    """Map an error of the library to its answer."""
    status = next(STATUS_BY_ERROR[cls] for cls in type(error).__mro__ if cls in STATUS_BY_ERROR)
    headers: dict[str, str] = {}
    if isinstance(error, NEVER_RETRY):
        headers["x-should-retry"] = "false"
    if status == 503:
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    if isinstance(error, DatabaseUnavailable):
        # The words of mission.md; the library's message names hosts and users, which are no client's business.
        return ApiError(503, error.code, "Database unavailable", headers=headers)
    if isinstance(error, ArtifactCorrupt):
        logger.error("%s", error.message)
    elif status == 500:
        logger.error("Unexpected error while answering a request", exc_info=error)
        return ApiError(500, "internal_error", "Internal error. The server's log has the reason.")
    message, about = error.message, _about(error)
    if (named := DURATIONS.get(str(about.get("field")))) is not None and message.startswith(f"{about['field']}: "):
        message = f"{named}: {message.removeprefix(about['field'] + ': ')}"
        about["field"] = named
    detail = f"{message} {error.hint}" if error.hint else message
    return ApiError(status, error.code, detail, headers=headers, **about)


def _about(error: QueuePgError) -> dict[str, Any]:
    match error:
        case ArtifactTooLarge():
            return {"field": error.field, "limit": error.limit}
        case InvalidArtifact():
            return {"field": error.field}
        case InvalidJob():
            return {"field": error.field}
        case UnknownKind():
            return {"field": error.field, "suggestions": error.suggestions}
        case QueueDraining():
            return {"field": error.field, "queue": error.queue}
        case UniqueKeyConflict():
            return {"field": error.field, "job_id": str(error.job_id) if error.job_id else None}
        case ScheduleExists():
            return {"field": "name"}
        case InvalidTransition():
            return {"state": error.state}
        case LeaseLost():
            return {"state": error.state}
        case _:
            return {}
