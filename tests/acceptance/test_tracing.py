"""One trace from the request to the attempt, through the job."""

from __future__ import annotations

import threading

import httpx
import pytest
from in_process import finished, running
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from queue_pg import Queue
from queue_pg.tasks import Tasks

THEIRS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_the_spans_of_a_request_its_job_and_its_attempts_are_one_trace(
    dsn: str, api: httpx.AsyncClient, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    tasks, threads = Tasks(), set[str]()

    @tasks.task(max_attempts=2)
    async def flaky() -> str:
        if not threads:
            threads.add("once")
            raise ValueError
        return (await queue.submit("in_a_thread")).traceparent or ""

    @tasks.task
    def in_a_thread() -> str:
        threads.add(threading.current_thread().name)
        return format(trace.get_current_span().get_span_context().trace_id, "032x")

    async with running(dsn, tasks):
        made = await api.post("/jobs", json={"kind": "flaky"}, headers={"traceparent": THEIRS})
        job = await finished(queue, made.json()["id"])
        [child] = (await queue.list(kind="in_a_thread")).jobs
        assert (await finished(queue, child.id)).result == THEIRS.split("-")[1]
    spans = exporter.get_finished_spans()
    assert {format(span.get_span_context().trace_id, "032x") for span in spans} == {THEIRS.split("-")[1]}
    [submit] = [span for span in spans if span.name == "submit flaky"]
    attempts = [span for span in spans if span.name == "attempt flaky"]
    assert [span.attributes["queue_pg.attempt"] for span in attempts if span.attributes] == [1, 2]
    for attempt in attempts:
        assert attempt.links[0].context.span_id == submit.get_span_context().span_id
    [second] = [span for span in spans if span.name == "submit in_a_thread"]
    assert second.parent is not None
    assert second.parent.span_id == attempts[1].get_span_context().span_id
    assert job.result.split("-")[1] == THEIRS.split("-")[1]
