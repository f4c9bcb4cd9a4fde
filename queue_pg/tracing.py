"""Spans of OpenTelemetry: one for each submission, whose context is stored with the jobs.

Workers make those of attempts (spans.py). Nothing is imported here that the application has not imported: without
OpenTelemetry, or without a tracer provider, a submission costs a look into a dict more and an attempt nothing.
`pip install 'queue-pg[otel]'` brings what `configure_from_environment` needs (docs/metrics.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterable, AsyncIterator, Collection, Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from queue_pg.errors import ConfigError
from queue_pg.models import NewJob

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

SYSTEM: Final = "postgresql"
# What makes `serve` and `worker` send spans: the variables of OpenTelemetry itself.
VARIABLES: Final = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def find_tracer() -> Tracer | None:
    """Return a tracer when the process has a tracer provider."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(provider := trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    found: Tracer = provider.get_tracer("queue_pg")
    return found


def submitting(job: NewJob) -> _Submitting:
    """Make the span of a submission; entered, it gives the job to store, which carries the span's context."""
    return _Submitting(find_tracer(), job)


class _Submitting:
    """A context manager by hand: `contextmanager` would cost those who do not trace a microsecond."""

    __slots__ = ("_job", "_span", "_tracer")

    def __init__(self, tracer: Tracer | None, job: NewJob) -> None:
        self._tracer = tracer
        self._job = job
        self._span: Any = None

    def __enter__(self) -> NewJob:
        if self._tracer is None:
            return self._job
        # What the caller has given is where the span belongs, as what is current is otherwise.
        context = context_of(self._job.traceparent)
        self._span = _sending(self._tracer, self._job.kind, self._job.queue, context)
        return replace(self._job, traceparent=_traceparent(self._span.__enter__()))

    def __exit__(self, *raised: Any) -> None:
        if self._span is not None:
            self._span.__exit__(*raised)


@contextmanager
def submitting_many(jobs: Any) -> Generator[Any]:
    """Make one span for a submission of many jobs; those without a context of their own carry it."""
    tracer = find_tracer()
    if tracer is None:
        yield jobs
        return
    with _sending(tracer, "jobs", None, None) as span:
        yield _carrying(jobs, _traceparent(span))


def _sending(tracer: Tracer, what: str, queue: str | None, context: Context | None) -> Any:
    from opentelemetry.trace import SpanKind

    attributes = {"messaging.system": SYSTEM, "messaging.operation.type": "send", "messaging.operation.name": "submit"}
    if queue is not None:
        attributes |= {"messaging.destination.name": queue, "queue_pg.kind": what}
    return tracer.start_as_current_span(f"submit {what}", context, SpanKind.PRODUCER, attributes)


def _carrying(jobs: Any, traceparent: str | None) -> Any:
    def carry(job: NewJob) -> NewJob:
        return replace(job, traceparent=traceparent) if job.traceparent is None else job

    async def carried(found: AsyncIterable[NewJob]) -> AsyncIterator[NewJob]:
        async for job in found:
            yield carry(job)

    if isinstance(jobs, AsyncIterable):
        return carried(cast("AsyncIterable[NewJob]", jobs))
    found = map(carry, cast("Iterable[NewJob]", jobs))
    return list(found) if isinstance(jobs, Collection) else found


def context_of(traceparent: str | None) -> Context | None:
    """Return the context that a W3C traceparent names; None for none, and for one that cannot be read."""
    if traceparent is None:
        return None
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    return context if get_current_span(context).get_span_context().is_remote else None


def _traceparent(span: Span) -> str | None:
    context = span.get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def configure_from_environment(service: str) -> bool:
    """Send spans by OTLP when OpenTelemetry's own variables ask for it; return whether they do.

    A provider that the process has already stays. Raises ConfigError when what is needed is not installed.
    """
    asked = next((name for name in VARIABLES if os.environ.get(name, "").strip()), None)
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() or "otlp"
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if asked is None or exporter == "none" or disabled or find_tracer() is not None:
        return find_tracer() is not None
    if exporter not in ("otlp", "console"):
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER={exporter} cannot be used.",
            setting="OTEL_TRACES_EXPORTER",
            hint="Give otlp, console or none; for another one set up OpenTelemetry in your own module.",
        )
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError:
        raise ConfigError(
            f"{asked} is set, and OpenTelemetry is not installed.",
            setting=asked,
            hint="Install it, pip install 'queue-pg[otel]', or unset the variable.",
        ) from None
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {SERVICE_NAME: service}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter(out=sys.stderr))
    )
    trace.set_tracer_provider(provider)
    return True
