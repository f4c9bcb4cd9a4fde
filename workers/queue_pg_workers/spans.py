"""Spans of OpenTelemetry for attempts, below those of the submissions and linked to them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from queue_pg.models import Cancel, Fail, Snooze
from queue_pg.tasks import current_job
from queue_pg.tracing import SYSTEM, context_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


def traced(tracer: Tracer, fn: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
    """Return a handler that makes a span of each attempt, below the span of the submission and linked to it."""
    if is_async:

        @functools.wraps(fn)
        async def run(**arguments: Any) -> Any:
            with _attempt(tracer) as span:
                return _told(span, await fn(**arguments))

        return run

    @functools.wraps(fn)
    def run_in_thread(**arguments: Any) -> Any:
        with _attempt(tracer) as span:
            return _told(span, fn(**arguments))

    return run_in_thread


@contextmanager
def _attempt(tracer: Tracer) -> Generator[Span]:
    from opentelemetry.trace import Link, SpanKind, get_current_span

    job = current_job()
    context = context_of(job.traceparent)
    links = [] if context is None else [Link(get_current_span(context).get_span_context())]
    attributes: dict[str, str | int] = {
        "messaging.system": SYSTEM,
        "messaging.operation.type": "process",
        "messaging.operation.name": "attempt",
        "messaging.destination.name": job.queue,
        "messaging.message.id": str(job.job_id),
        "queue_pg.kind": job.kind,
        "queue_pg.attempt": job.attempt,
    }
    with tracer.start_as_current_span(f"attempt {job.kind}", context, SpanKind.CONSUMER, attributes, links) as span:
        yield span


def _told(span: Span, value: Any) -> Any:
    """Say in the span what a returned outcome means; what is raised is recorded by the span itself."""
    from opentelemetry.trace import Status, StatusCode

    if isinstance(value, Fail):
        span.set_status(Status(StatusCode.ERROR, value.message))
    words = ((Fail, "fail"), (Snooze, "snooze"), (Cancel, "cancel"))
    outcome = next((word for kind, word in words if isinstance(value, kind)), "complete")
    span.set_attribute("queue_pg.outcome", outcome)
    return value
