"""Applications that submit jobs and write down what they were told."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
from psycopg.types.json import Jsonb

from queue_pg.client_sync import SyncQueue
from queue_pg.errors import DatabaseUnavailable, QueuePgError
from tests.faults.ledgers import ACKED, FAILED, UNKNOWN, LineFile

PAUSE_SECONDS: Final = 0.05
INSERT: Final = "insert into queue_pg.jobs (kind, payload) values (%s, %s) returning id::text"


class Producer(threading.Thread):
    """Submits one job after another, at most `rate` a second, until it is stopped or has made `jobs`.

    `keyed`: through the library, each with a unique key, tried again until it is acknowledged. Otherwise by a plain
    INSERT, tried once: if the connection breaks, nobody knows.
    """

    # How it speaks to the queue, when it does so by the library.
    queue_class: type[SyncQueue] = SyncQueue

    def __init__(
        self,
        dsn: str,
        folder: Path,
        numbers: itertools.count[int],
        *,
        keyed: bool,
        rate: float,
        payload: dict[str, Any] | None = None,
        kind: str = "work",
        jobs: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(daemon=True)
        self.acked = 0
        self.trouble = 0
        self.answers: Counter[int] = Counter()
        self.failure: BaseException | None = None
        self._dsn = dsn
        self._numbers = numbers
        self._keyed = keyed
        self._rate = rate
        self._payload = payload or {}
        self._kind = kind
        self._jobs = jobs
        self._options = options
        self._halt = threading.Event()
        self._ledger = LineFile(folder / f"submissions-{os.getpid()}-{id(self)}.jsonl", durable=True)

    def run(self) -> None:
        try:
            self._produce()
        except BaseException as error:
            self.failure = error
        finally:
            if self._connection is not None:
                self._connection.close()

    def _produce(self) -> None:
        with closing(self._open_queue()) as queue:
            self._repeat(lambda number: self._until_acked(queue, number) if self._keyed else self._once(number))

    def _open_queue(self) -> SyncQueue:
        """Connect as often as it takes; once stopped, whoever asks for anything finds out."""
        queue = self.queue_class(self._dsn, notify=False)
        while not self._halt.is_set():
            try:
                queue.open(check=True)
            except DatabaseUnavailable:
                self.trouble += 1
                self._halt.wait(PAUSE_SECONDS)
            else:
                break
        return queue

    def _repeat(self, submit: Callable[[int], None]) -> None:
        due, made = time.monotonic(), 0
        while not self._halt.is_set() and (self._jobs is None or made < self._jobs):
            submit(next(self._numbers))
            made += 1
            # Whoever was held up does not make up for it: a burst would be the measure of what comes after it.
            due = max(due + 1 / self._rate, time.monotonic() - PAUSE_SECONDS)
            self._halt.wait(max(0.0, due - time.monotonic()))

    def stop(self) -> None:
        """Let the submission under way come to its end; raises what went wrong here."""
        self._halt.set()
        self.join(60)
        if self.failure is not None:
            raise self.failure
        if self.is_alive():
            raise RuntimeError("a producer does not end")

    def _until_acked(self, queue: SyncQueue, number: int) -> None:
        while True:
            try:
                job = queue.submit(
                    self._kind, {"n": number, **self._payload}, unique_key=f"key-{number}", **self._options
                )
            except DatabaseUnavailable:
                self.trouble += 1
                self._ledger.write(number, UNKNOWN, None)
                if self._halt.wait(PAUSE_SECONDS):
                    return
            else:
                self.acked += 1
                self._ledger.write(number, ACKED, str(job.id))
                return

    _connection: psycopg.Connection[Any] | None = None

    def _once(self, number: int) -> None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(
                    self._dsn, autocommit=True, connect_timeout=5, prepare_threshold=None
                )
        except psycopg.OperationalError:
            self.trouble += 1
            self._ledger.write(number, FAILED, None)
            self._halt.wait(PAUSE_SECONDS)
            return
        try:
            row = self._connection.execute(INSERT, (self._kind, Jsonb({"n": number, **self._payload}))).fetchone()
        except (psycopg.Error, QueuePgError) as error:
            self.trouble += 1
            # What the server has refused is not there; when the line broke it may be.
            refused = isinstance(error, psycopg.Error) and error.sqlstate is not None and not self._connection.broken
            self._ledger.write(number, FAILED if refused else UNKNOWN, None)
            self._connection.close()
        else:
            assert row is not None
            self.acked += 1
            self._ledger.write(number, ACKED, row[0])


class HttpProducer(Producer):
    """Submits over HTTP, each job with a unique key, again until it is acknowledged. `answers` counts the statuses.

    An API may say that it cannot, by 503; any other refusal is a failure of the run.
    """

    def _produce(self) -> None:
        with httpx.Client(base_url=self._dsn, timeout=60) as client:
            self._repeat(lambda number: self._until_answered(client, number))

    def _until_answered(self, client: httpx.Client, number: int) -> None:
        job = {"kind": self._kind, "payload": {"n": number, **self._payload}, "unique_key": f"key-{number}"}
        while True:
            status = 0
            with suppress(httpx.TransportError):
                answer = client.post("/jobs", json=job)
                status = answer.status_code
                self.answers[status] += 1
                if status in {200, 201}:
                    self.acked += 1
                    self._ledger.write(number, ACKED, answer.json()["id"])
                    return
            if status not in {0, 503}:
                raise RuntimeError(f"the API answered {status} to job {number}")
            self.trouble += 1
            self._ledger.write(number, UNKNOWN, None)
            if self._halt.wait(PAUSE_SECONDS):
                return
