"""The kind `webhook`: one HTTP POST of JSON, signed, tried again for about a day and a half."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from queue_pg.models import Fail
from queue_pg_workers.providers.base import asked_seconds
from queue_pg_workers.webhooks.sender import Answer, Delivery, Undelivered, WebhookSender

KIND = "webhook"
DESCRIPTION = "One HTTP POST of JSON, signed by the Standard Webhooks specification."
# Sixteen attempts, the last about 35 hours after the first: 5 s, 10 s, 20 s, ... between them, less up to a half.
MAX_ATTEMPTS = 16
RETRY_BASE_SECONDS = 5
RETRY_CAP_SECONDS = 86_400
MAX_RETRY_AFTER_SECONDS = 86_400.0

RETRYABLE_STATUSES = frozenset({408, 425, 429})
MOVED_FOR_GOOD = frozenset({301, 308})

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]{0,4000}")
# How the connection is used, and what proves that it is us, is not the payload's to say.
_OURS = frozenset(
    {"accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "webhook-id", "webhook-signature", "webhook-timestamp"}
)
MAX_HEADERS = 50


def _check_url(url: str) -> str:
    if not url.isprintable() or " " in url:
        raise ValueError("should be an http or https URL")
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError("should be an http or https URL")
    if "@" in parts.netloc:
        raise ValueError("should have no user and password; use a header")
    return url


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"should be at most {MAX_HEADERS}")
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is no name of a header")
        if name.lower() in _OURS or name.lower().startswith("proxy-"):
            raise ValueError(f"{name!r} cannot be set")
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"{name!r} should have at most 4,000 printable ASCII characters")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("has a name twice")
    return headers


class WebhookPayload(BaseModel):
    """Payload of a `webhook` job. With which secret it is signed is the worker's setting; a payload may name one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: Annotated[str, Field(min_length=1, max_length=2_048), AfterValidator(_check_url)]
    body: Any = Field(default_factory=dict[str, Any], description="Any JSON.")
    headers: Annotated[dict[str, str], AfterValidator(_check_headers)] = Field(default_factory=dict[str, str])
    secret_name: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        None, description="One of WEBHOOK_SECRETS; without it WEBHOOK_SECRET signs."
    )


async def run_webhook(sender: WebhookSender, payload: WebhookPayload, job_id: UUID) -> dict[str, Any] | Fail:
    """Deliver it; return {status, body, truncated}, or why it is not delivered."""
    body = json.dumps(payload.body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    delivery = Delivery(
        webhook_id=str(job_id), url=payload.url, body=body, headers=payload.headers, secret_name=payload.secret_name
    )
    try:
        answer = await sender.deliver(delivery)
    except Undelivered as undelivered:
        return Fail(undelivered.message, code=undelivered.code, retry=undelivered.retry)
    if 200 <= answer.status < 300:
        return {"status": answer.status, "body": answer.text, "truncated": answer.truncated}
    return _failure(answer)


def _failure(answer: Answer) -> Fail:
    details = {"status": answer.status, "body": answer.text}
    status = answer.status
    if 300 <= status < 400:
        return Fail(
            f"answered {status}: redirects are not followed",
            code="webhook_redirected",
            retry=status not in MOVED_FOR_GOOD,
            details=details,
        )
    if status < 300 or (status < 500 and status not in RETRYABLE_STATUSES):
        code = "webhook_gone" if status == 410 else "webhook_refused"
        return Fail(f"answered {status}", code=code, retry=False, details=details)
    asked = asked_seconds(answer.headers)
    # At once again is what nobody who is busy can mean.
    wait = None if asked is None else timedelta(seconds=min(max(asked, 1.0), MAX_RETRY_AFTER_SECONDS))
    return Fail(f"answered {status}", code="webhook_failed", delay=wait, details=details)
