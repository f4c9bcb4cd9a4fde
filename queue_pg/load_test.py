"""A load test of a running service over HTTP: jobs at a fixed rate, whatever it answers, and what came of them.

Each request has a moment at which it is due, and its latency counts from that moment: a service that stalls delays the
requests behind, and that is part of what its users would feel. Bounded in rate, time, connections and jobs.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast
from urllib.parse import SplitResult, urlsplit

from queue_pg.errors import InvalidJob

MAX_RATE: Final = 5_000.0
MAX_SECONDS: Final = 3_600.0
MAX_JOBS: Final = 200_000
MAX_CONNECTIONS: Final = 200
TIMEOUT_SECONDS: Final = 30.0
# Of so many jobs, spread over the test, the end is waited for.
FOLLOWED: Final = 200
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What to send: `rate` jobs a second for `seconds`, and for how long to wait for the ends of some of them."""

    url: str
    job: dict[str, Any]
    rate: float
    seconds: float
    connections: int
    wait_seconds: float

    def __post_init__(self) -> None:
        bounds = (
            ("rate", self.rate, 0.01, MAX_RATE),
            ("for", self.seconds, 0.001, MAX_SECONDS),
            ("connections", self.connections, 1, MAX_CONNECTIONS),
            ("wait", self.wait_seconds, 0, MAX_SECONDS),
        )
        for name, value, least, most in bounds:
            if not least <= value <= most:
                raise InvalidJob(name, f"must be from {least:g} to {most:g}")
        if self.count > MAX_JOBS:
            raise InvalidJob("for", f"makes {self.count:,} jobs at this rate; at most {MAX_JOBS:,} are sent")
        split_url(self.url)

    @property
    def count(self) -> int:
        return max(1, round(self.rate * self.seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What came of it. Latencies are in seconds, by QUANTILES, and empty when there was nothing to measure.

    `errors` counts what was no 2xx by status, and what was no answer by the name of its error. Of the `followed` jobs
    `ends` counts the states; `waited` is from submission to the last start, `done` to the end.
    """

    sent: int
    accepted: int
    seconds: float
    errors: dict[str, int]
    submit: dict[str, float]
    followed: int
    ends: dict[str, int]
    waited: dict[str, float]
    done: dict[str, float]

    @property
    def rate(self) -> float:
        return self.accepted / self.seconds if self.seconds else 0.0


def split_url(url: str) -> SplitResult:
    """Take the address of a service apart. Raises InvalidJob."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise InvalidJob("url", "must be an http or https URL") from None
    if not fine or not url.isprintable() or " " in url or parts.query or parts.fragment:
        raise InvalidJob("url", "must be an http or https URL, with a host and no query")
    if "@" in parts.netloc:
        raise InvalidJob("url", "must have no user and password")
    return parts


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return the nearest-rank quantiles of values, in any order."""
    ordered = sorted(values)
    return {name: ordered[math.ceil(q * len(ordered)) - 1] for name, q in QUANTILES.items()} if ordered else {}


def run(plan: LoadPlan, *, on_second: Callable[[int, int], None] | None = None) -> LoadReport:
    """Send the jobs and wait for the ends of some. `on_second` is told how many were accepted, and how many errors."""
    sending = _Sending(plan)
    began = time.monotonic()
    try:
        sending.start()
        while not sending.finished(1.0):
            if on_second is not None:
                on_second(len(sending.accepted), sending.errors.total())
        took = time.monotonic() - began
        ends = _follow(plan, sending)
    finally:
        sending.stopped.set()
    return LoadReport(
        sent=sending.sent,
        accepted=len(sending.accepted),
        seconds=took,
        errors=dict(sending.errors),
        submit=quantiles(sending.latencies),
        followed=len(ends.states),
        ends=dict(Counter(ends.states)),
        waited=quantiles(ends.waited),
        done=quantiles(ends.done),
    )


class _Sending:
    """Threads with a connection each, which take the next job that is due."""

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._body = json.dumps(plan.job, allow_nan=False).encode()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._send_all, daemon=True) for _ in range(min(plan.connections, plan.count))
        ]
        self._next = 0
        self._began = 0.0
        self.stopped = threading.Event()
        self.sent = 0
        self.accepted: list[str] = []
        self.latencies: list[float] = []
        self.errors: Counter[str] = Counter()

    def start(self) -> None:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def finished(self, seconds: float) -> bool:
        """Wait for the end, at most so long; return whether it has come."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _send_all(self) -> None:
        client = Client(self._plan.url)
        while not self.stopped.is_set():
            with self._lock:
                number, self._next = self._next, self._next + 1
            if number >= self._plan.count:
                break
            due_at = self._began + number / self._plan.rate
            if self.stopped.wait(max(due_at - time.monotonic(), 0)):
                break
            job_id, error = self._submit(client)
            took = time.monotonic() - due_at
            with self._lock:
                self.sent += 1
                if job_id is not None:
                    self.accepted.append(job_id)
                    self.latencies.append(took)
                else:
                    self.errors[error] += 1
        client.close()

    def _submit(self, client: Client) -> tuple[str | None, str]:
        try:
            status, answer = client.request("POST", "/jobs", self._body)
        except (OSError, http.client.HTTPException) as error:
            return None, type(error).__name__
        job_id = answer.get("id")
        return (job_id, "") if 200 <= status < 300 and isinstance(job_id, str) else (None, str(status))


@dataclass(slots=True)
class _Ends:
    states: list[str] = field(default_factory=list[str])
    waited: list[float] = field(default_factory=list[float])
    done: list[float] = field(default_factory=list[float])


def _follow(plan: LoadPlan, sending: _Sending) -> _Ends:
    """Wait for the ends of some of the accepted jobs, one after the other: they end in about the order they came."""
    ends = _Ends()
    if not plan.wait_seconds or not sending.accepted:
        return ends
    step = max(1, len(sending.accepted) // FOLLOWED)
    client, until = Client(plan.url), time.monotonic() + plan.wait_seconds
    for job_id in sending.accepted[::step][:FOLLOWED]:
        left = max(until - time.monotonic(), 0)
        try:
            status, job = client.request("GET", f"/jobs/{job_id}?wait={min(left, TIMEOUT_SECONDS / 2):.3f}")
        except (OSError, http.client.HTTPException) as error:
            ends.states.append(type(error).__name__)
            continue
        ends.states.append(str(job.get("state")) if status == 200 else str(status))
        created, started, finished = (_moment(job.get(name)) for name in ("created_at", "started_at", "finished_at"))
        if created is not None and started is not None:
            ends.waited.append((started - created).total_seconds())
        if created is not None and finished is not None:
            ends.done.append((finished - created).total_seconds())
    client.close()
    return ends


def _moment(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


class Client:
    """One connection that is kept, and made anew after an error."""

    def __init__(self, url: str) -> None:
        parts = split_url(url)
        made = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = made(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
        self._path = parts.path.rstrip("/")

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        """Return status and answer; what is no JSON object is an empty one. Raises OSError, HTTPException."""
        try:
            self._connection.request(method, self._path + path, body, {"content-type": "application/json"})
            response = self._connection.getresponse()
            text = response.read()
        except BaseException:
            self._connection.close()
            raise
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {}
        return response.status, cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}

    def close(self) -> None:
        self._connection.close()
