"""`load`: jobs at a rate against a service behind a socket, what it reports, and what it refuses to do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from queue_pg import load_test
from queue_pg.errors import InvalidJob
from queue_pg.load_test import LoadPlan, quantiles, run


class Service:
    """Answers as the API does, with the statuses and pauses that a test gives it in turn."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.pauses: list[float] = []
        self.bodies: list[dict[str, Any]] = []
        self.state = "completed"
        self.peak = 0
        self.open = 0
        self.lock = threading.Lock()


@contextmanager
def serving(service: Service) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with service.lock:
                service.open += 1
                service.peak = max(service.peak, service.open)
                status = service.statuses.pop(0) if service.statuses else 201
                pause = service.pauses.pop(0) if service.pauses else 0.0
                body = self.rfile.read(int(self.headers["content-length"]))
                service.bodies.append({"path": self.path, **json.loads(body)})
            threading.Event().wait(pause)
            with service.lock:
                service.open -= 1
                number = len(service.bodies)
            self._answer(status, {"id": f"job-{number}"})

        def do_GET(self) -> None:
            moments = {"created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:01Z"}
            ended = {"finished_at": "2026-01-01T00:00:03Z"} if service.state == "completed" else {}
            self._answer(200, {"state": service.state, **moments, **ended})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with serving(service) as address:
        yield address


def plan(url: str, **changed: Any) -> LoadPlan:
    given = {"url": url, "job": {"kind": "k"}, "rate": 500.0, "seconds": 0.04, "connections": 4, "wait_seconds": 5.0}
    return LoadPlan(**{**given, **changed})


def test_it_reports_latencies_and_ends(service: Service, url: str) -> None:
    report = run(plan(url))
    assert (report.sent, report.accepted, report.errors) == (20, 20, {})
    assert set(report.submit) == {"p50", "p90", "p95", "p99", "max"}
    assert (report.followed, report.ends) == (20, {"completed": 20})
    assert (report.waited["p50"], report.done["max"]) == (1.0, 3.0)
    assert report.rate > 0
    assert service.peak <= 4


def test_the_rate_is_kept(url: str) -> None:
    began = time.monotonic()
    run(plan(url, rate=50, seconds=0.2, wait_seconds=0))
    # The last of ten is due after 9/50 s.
    assert time.monotonic() - began >= 0.18


def test_what_waits_behind_a_stall_counts(service: Service, url: str) -> None:
    service.pauses = [0.5]
    report = run(plan(url, rate=100, seconds=0.05, connections=1, wait_seconds=0))
    # Only the first request took long, but those that were due meanwhile came late.
    assert report.submit["p50"] > 0.4


def test_errors_are_counted_by_what_they_are(service: Service, url: str) -> None:
    service.statuses = [503, 422, 201, 503]
    report = run(plan(url, seconds=0.008, connections=1, wait_seconds=0))
    assert (report.accepted, report.errors) == (1, {"503": 2, "422": 1})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        report = run(plan(nobody, seconds=0.004))
    assert (report.accepted, report.errors, report.submit, report.ends) == (0, {"ConnectionRefusedError": 2}, {}, {})


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"rate": 0}, "rate"),
        ({"rate": 5_001}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"seconds": 0}, "for"),
        ({"seconds": float("inf")}, "for"),
        ({"rate": 5_000, "seconds": 41}, "for"),
        ({"connections": 0}, "connections"),
        ({"connections": 201}, "connections"),
        ({"wait_seconds": -1}, "wait"),
        ({"url": "ftp://h"}, "url"),
        ({"url": "localhost:8000"}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": "http://u:p@h"}, "url"),
        ({"url": "http://h:no"}, "url"),
        ({"url": "http://h?a=1"}, "url"),
        ({"url": "http://h/\r\nx"}, "url"),
        ({"url": "http://[h"}, "url"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        plan(**{"url": "http://h", **changed})
    assert caught.value.field == field


def test_of_very_many_some_are_followed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_test, "FOLLOWED", 3)
    report = run(plan(url))
    assert (report.accepted, report.followed) == (20, 3)


def test_quantiles_are_values_that_were_there() -> None:
    assert quantiles([3, 1, 2]) == {"p50": 2, "p90": 3, "p95": 3, "p99": 3, "max": 3}
    assert quantiles(range(1, 101)) == {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    assert quantiles([]) == {}


def test_the_command(bare_cli: Any, service: Service, url: str) -> None:
    words = ("load", "k", '{"n": 1}', "--rate", "100", "--for", "0.1s", "--queue", "q", "--wait", "5s")
    done = bare_cli(*words, "--url", f"{url}/under/")
    assert done.code == 0, done.err
    assert "accepted  10 of 10" in done.out
    assert "10 completed" in done.out
    assert "10 jobs of kind k" in done.err
    expected = {"path": "/under/jobs", "kind": "k", "payload": {"n": 1}, "queue": "q", "tags": ["load-test"]}
    assert service.bodies == [expected] * 10
    found = bare_cli(*words, "--url", url, "--json").json
    assert (found["accepted"], found["ends"], found["errors"]) == (10, {"completed": 10}, {})


def test_it_ends_with_1_when_something_went_wrong(bare_cli: Any, service: Service, url: str) -> None:
    words = ("load", "k", "--rate", "100", "--for", "0.1s", "--wait", "1s", "--url", url)
    service.statuses = [503]
    failed = bare_cli(*words)
    assert (failed.code, "1 x 503" in failed.out) == (1, True)
    service.state = "queued"
    unfinished = bare_cli(*words)
    assert (unfinished.code, "10 queued" in unfinished.out) == (1, True)
    nobody = bare_cli(*words[:-1], "http://127.0.0.1:1")
    assert nobody.code == 1
    assert [line.split(maxsplit=1) for line in nobody.out.splitlines() if line.endswith("none")] == [
        ["submit", "none"], ["waited", "none"], ["done", "none"], ["ends", "none"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["load", "k", "--rate", "0"], "rate"),
        (["load", "k", "--for", "soon"], "for"),
        (["load", "k", "{"], "payload"),
        (["load", "k", "--url", "nowhere"], "url"),
        (["load"], "KIND"),
    ],
    ids=str,
)
def test_bad_words_are_named(bare_cli: Any, words: list[str], said: str) -> None:
    refused = bare_cli(*words)
    assert (refused.code, refused.out) == (2, "")
    assert said.lower() in refused.err.lower()
