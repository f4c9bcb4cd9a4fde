"""Applications that submit jobs and write down what they were told."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any, Final

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
        self._ledger = LineFile(folder / f"submissions-{id(self)}.jsonl", durable=True)

    def run(self) -> None:
        try:
            begin, made = time.monotonic(), 0
            with SyncQueue(self._dsn, notify=False) as queue:
                while not self._halt.is_set() and (self._jobs is None or made < self._jobs):
                    number = next(self._numbers)
                    if self._keyed:
                        self._until_acked(queue, number)
                    else:
                        self._once(number)
                    made += 1
                    self._halt.wait(max(0.0, begin + made / self._rate - time.monotonic()))
        except BaseException as error:
            self.failure = error
        finally:
            if self._connection is not None:
                self._connection.close()

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
                self._connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=5)
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
