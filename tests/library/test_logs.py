"""Log lines: what they belong to, in both formats, and what no line may break."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from queue_pg import logs
from queue_pg.tasks import JobContext, job_context

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
JOB_ID = UUID("019b7c1e-0a4e-7f3a-9d52-6f2b8f0c1d11")


def context(**given: Any) -> JobContext:
    about = {"metadata": {}, "tags": [], "traceparent": None, **given}
    return JobContext(
        job_id=JOB_ID, kind="k", queue="q", org="o", attempt=2, max_attempts=3, lease_token=1, link=None, **about
    )


class Written:
    def __init__(self, log_format: logs.LogFormat) -> None:
        self._stream = io.StringIO()
        self.log = logging.getLogger(f"test.{log_format}")
        self.log.propagate = False
        self.log.setLevel(logging.INFO)
        self.handler = logging.StreamHandler(self._stream)
        self.handler.setFormatter(logs.formatter(log_format))
        self.log.addHandler(self.handler)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def as_json() -> Iterator[Written]:
    written = Written("json")
    yield written
    written.log.removeHandler(written.handler)


@pytest.fixture
def as_text() -> Iterator[Written]:
    written = Written("text")
    yield written
    written.log.removeHandler(written.handler)


def test_a_line_is_an_object(as_json: Written) -> None:
    as_json.log.info("%d of %s", 3, "seven", extra={"characters": 5, "message_id": "m"})
    [line] = as_json.objects
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "test.json",
        "message": "3 of seven",
        "characters": 5,
        "message_id": "m",
    }


def test_a_line_of_a_handler_has_its_job(as_json: Written) -> None:
    with job_context(context(metadata={"request_id": "order-17"}, traceparent=TRACEPARENT)):
        as_json.log.info("x")
    as_json.log.info("y")
    inside, outside = as_json.objects
    assert {name: inside[name] for name in ("job_id", "kind", "queue", "attempt", "request_id", "trace_id")} == {
        "job_id": str(JOB_ID),
        "kind": "k",
        "queue": "q",
        "attempt": 2,
        "request_id": "order-17",
        "trace_id": TRACE,
    }
    assert not {"job_id", "request_id", "trace_id"} & set(outside)


async def test_requests_at_once_keep_their_ids(as_json: Written) -> None:
    async def request(name: str) -> None:
        with logs.correlated(request_id=name, traceparent=TRACEPARENT):
            await asyncio.sleep(0)
            await asyncio.to_thread(as_json.log.info, name)

    await asyncio.gather(*(request(f"r{n}") for n in range(5)))
    assert all(line["message"] == line["request_id"] and line["trace_id"] == TRACE for line in as_json.objects)
    assert len(as_json.objects) == 5


LONE_SURROGATE = chr(0xD800)
BREAKING = ("a\nlevel=ERROR forged", "\u2028\x85\x00", LONE_SURROGATE, "x" * 100_000, '"}', "\x1b[31mred")


@pytest.mark.parametrize("number", range(len(BREAKING)))
def test_no_text_breaks_a_line_of_json(number: int) -> None:
    text = BREAKING[number]
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), "levelname": "INFO", "value": text})
    with job_context(context(metadata={"request_id": text})):
        written = logs.formatter("json").format(record)
    line = json.loads(written)
    assert line["message"] == line["value"] == text
    assert len(line["request_id"]) <= 200
    assert written.isascii()
    assert written.isprintable()


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def _itself() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


VALUES = (object(), {1: {2}}, {(1, 2): 3}, b"x", Unprintable(), float("nan"), _itself())


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_what_json_cannot_hold_is_a_text_or_left_out(as_json: Written, number: int) -> None:
    as_json.log.info("x", extra={"value": VALUES[number]})
    assert [line["message"] for line in as_json.objects] == ["x"]
    assert "NaN" not in as_json.text


def test_an_exception_is_a_field(as_json: Written) -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        as_json.log.exception("failed", stack_info=True)
    [line] = as_json.objects
    assert "ValueError: no\nway" in line["exception"]
    assert "test_logs.py" in line["stack"]


def test_text_is_as_ever_and_ends_with_the_job_inside_a_handler(as_text: Written) -> None:
    as_text.log.info("plain")
    with job_context(context(metadata={"request_id": "order-17"})):
        as_text.log.info("inside")
    with job_context(context(metadata={"request_id": "forged\nINFO x"})):
        as_text.log.info("inside")
    with logs.correlated(request_id="r"):
        as_text.log.info("a request")
    plain, first, second, request = as_text.text.splitlines()
    assert plain.endswith(" INFO test.text: plain")
    assert first.endswith(f"inside [job={JOB_ID} attempt=2 request=order-17]")
    assert second.endswith(f"inside [job={JOB_ID} attempt=2]")
    assert request.endswith("a request")


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (TRACEPARENT, TRACE),
        (f"01-{TRACE}-00f067aa0ba902b7-01-more", TRACE),
        (TRACEPARENT.upper(), None),
        ("x" * 55, None),
        ("", None),
        (None, None),
        (f"00-{TRACE}-00f067aa0ba902b7-01\nx", None),
    ],
)
def test_the_id_of_a_trace(traceparent: str | None, trace_id: str | None) -> None:
    assert logs.trace_id_of(traceparent) == trace_id


def test_only_an_id_that_a_client_gave_is_kept_with_its_jobs() -> None:
    assert logs.with_request_id({"a": 1}) == {"a": 1}
    with logs.correlated(request_id="made"):
        assert logs.with_request_id({"a": 1}) == {"a": 1}
    with logs.correlated(request_id="theirs", given=True):
        assert logs.with_request_id({"a": 1}) == {"a": 1, "request_id": "theirs"}
        assert logs.with_request_id({"request_id": "of the submission"}) == {"request_id": "of the submission"}


def test_logging_that_is_set_up_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.Logger("root")
    monkeypatch.setattr(logs.logging, "getLogger", lambda: root)
    logs.configure("json", "WARNING")
    logs.configure("text", "DEBUG")
    [handler] = root.handlers
    assert (root.level, type(handler.formatter)) == (logging.WARNING, logs.JsonFormatter)
