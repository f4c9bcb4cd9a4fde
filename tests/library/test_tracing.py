"""Spans of OpenTelemetry: of submissions and attempts, linked through the job; nothing without a provider."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from queue_pg_workers.spans import traced

from queue_pg import Queue, SyncQueue, tracing
from queue_pg.errors import ConfigError, InvalidJob
from queue_pg.models import Cancel, Fail, NewJob, Snooze
from queue_pg.tasks import JobContext, job_context

THEIRS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans of this test; a process has one provider, and other tests are to have none."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as own:
        yield own


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


async def test_a_submission_is_a_span_whose_context_the_job_has(queue: Queue, spans: InMemorySpanExporter) -> None:
    with trace.get_tracer_provider().get_tracer("test").start_as_current_span("order"):
        job = await queue.submit("chat", queue="q")
    submit, order = spans.get_finished_spans()
    assert job.traceparent == traceparent(submit)
    assert (submit.name, submit.kind, submit.parent) == ("submit chat", SpanKind.PRODUCER, order.get_span_context())
    assert submit.attributes == {
        "messaging.system": "postgresql",
        "messaging.operation.type": "send",
        "messaging.operation.name": "submit",
        "messaging.destination.name": "q",
        "queue_pg.kind": "chat",
    }


async def test_a_context_that_is_given_is_where_the_span_belongs(queue: Queue, spans: InMemorySpanExporter) -> None:
    new = NewJob(kind="chat", traceparent=THEIRS)
    job, _ = await queue.submit_new(new)
    [span] = spans.get_finished_spans()
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == tuple(THEIRS.split("-")[1:3])
    assert job.traceparent == traceparent(span)
    # What the caller has is the caller's.
    assert new.traceparent == THEIRS


@pytest.mark.parametrize("given", ["x", "00-zz-1-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 255])
async def test_a_context_that_cannot_be_read_is_none(queue: Queue, spans: InMemorySpanExporter, given: str) -> None:
    job = await queue.submit("chat", traceparent=given)
    [span] = spans.get_finished_spans()
    assert span.parent is None
    assert job.traceparent == traceparent(span)


async def test_many_jobs_share_a_span(queue: Queue, spans: InMemorySpanExporter) -> None:
    async def later() -> AsyncIterator[NewJob]:
        yield NewJob(kind="chat")

    own = NewJob(kind="chat", traceparent=THEIRS)
    many = [
        await queue.submit_many(jobs) for jobs in ([NewJob(kind="chat"), own], iter([NewJob(kind="chat")]), later())
    ]
    many.append(await queue.submit_graph([NewJob(kind="a", key="a"), NewJob(kind="b", depends_on=["a"])]))
    made = spans.get_finished_spans()
    assert [span.name for span in made] == ["submit jobs"] * 4
    stored = [[(await queue.get(job.id)).traceparent for job in jobs] for jobs in many]
    told = [traceparent(span) for span in made]
    assert stored == [[told[0], THEIRS], [told[1]], [told[2]], [told[3], told[3]]]


def test_the_blocking_client_does_the_same(dsn: str, spans: InMemorySpanExporter) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        job = queue.submit("chat")
        [many] = queue.submit_many([NewJob(kind="chat")])
        first, second = spans.get_finished_spans()
        assert (job.traceparent, queue.get(many.id).traceparent) == (traceparent(first), traceparent(second))


async def test_a_refused_submission_is_a_span_with_an_error(queue: Queue, spans: InMemorySpanExporter) -> None:
    with pytest.raises(InvalidJob):
        await queue.submit("")
    [span] = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR


def context(traceparent: str | None) -> JobContext:
    from uuid import UUID

    return JobContext(
        job_id=UUID(int=7),
        kind="k",
        queue="q",
        org="o",
        attempt=2,
        max_attempts=3,
        lease_token=1,
        metadata={},
        tags=[],
        traceparent=traceparent,
        link=None,
    )


@pytest.mark.parametrize(
    ("value", "outcome", "status"),
    [
        (None, "complete", StatusCode.UNSET),
        (Fail("no", code="c"), "fail", StatusCode.ERROR),
        (Snooze(timedelta(1)), "snooze", StatusCode.UNSET),
        (Cancel("no more"), "cancel", StatusCode.UNSET),
    ],
    ids=["complete", "fail", "snooze", "cancel"],
)
async def test_an_attempt_says_what_came_of_it(
    spans: InMemorySpanExporter, value: Any, outcome: str, status: StatusCode
) -> None:
    async def handler() -> Any:
        return value

    tracer = tracing.find_tracer()
    assert tracer is not None
    with job_context(context(THEIRS)):
        assert await traced(tracer, handler, is_async=True)() is value
        assert traced(tracer, lambda: value, is_async=False)() is value
    for span in spans.get_finished_spans():
        assert (span.name, span.kind) == ("attempt k", SpanKind.CONSUMER)
        assert span.attributes is not None
        assert span.attributes["queue_pg.outcome"] == outcome
        assert (span.attributes["messaging.message.id"], span.attributes["queue_pg.attempt"]) == (
            "00000000-0000-0000-0000-000000000007",
            2,
        )
        assert span.status.status_code is status
        [link] = span.links
        assert link.context == span.parent


async def test_an_error_of_a_handler_is_in_its_span(spans: InMemorySpanExporter) -> None:
    async def handler() -> None:
        raise ValueError("no")

    tracer = tracing.find_tracer()
    assert tracer is not None
    with job_context(context(None)), pytest.raises(ValueError, match="no"):
        await traced(tracer, handler, is_async=True)()
    [span] = spans.get_finished_spans()
    assert (span.parent, list(span.links), span.status.status_code) == (None, [], StatusCode.ERROR)
    assert [event.name for event in span.events] == ["exception"]


async def test_without_a_provider_nothing_is_made(queue: Queue) -> None:
    assert tracing.find_tracer() is None
    assert (await queue.submit("chat")).traceparent is None
    assert (await queue.submit("chat", traceparent="as it is")).traceparent == "as it is"
    jobs = [NewJob(kind="chat")]
    with tracing.submitting_many(jobs) as same:
        assert same is jobs


def test_the_library_imports_none_of_it() -> None:
    code = "import sys, queue_pg, queue_pg_workers.worker, queue_pg_api.app; print('opentelemetry' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "False"


def configure(**environment: str) -> str:
    code = (
        "from queue_pg.tracing import configure_from_environment as c, find_tracer\n"
        "from queue_pg.errors import ConfigError\n"
        "try:\n    print(c('queue-pg-api'), find_tracer() is not None, end=' ')\n"
        "    from opentelemetry import trace\n"
        "    print(getattr(trace.get_tracer_provider(), 'resource', None) and"
        " trace.get_tracer_provider().resource.attributes['service.name'])\n"
        "except ConfigError as error: print(error.setting, error.message)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return ran.stdout.strip()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "False False None"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "False False None"),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, "False False None"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "True True queue-pg-api"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "True True queue-pg-api"),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "mine"}, "True True mine"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER OTEL_TRACES_EXPORTER=zipkin cannot be used."),
    ],
)
def test_the_variables_of_opentelemetry_are_heeded(environment: dict[str, str], said: str) -> None:
    assert configure(**environment) == said


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match="OpenTelemetry is not installed") as caught:
        tracing.configure_from_environment("queue-pg-api")
    assert caught.value.setting == "OTEL_TRACES_EXPORTER"
    assert caught.value.hint is not None
    assert "queue-pg[otel]" in caught.value.hint
