"""An application that uses every part: retries, waits, parents, batches, limits, steps, artifacts, events, commands."""

from __future__ import annotations

import itertools
import os
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from queue_pg.client_sync import SyncQueue
from queue_pg.errors import DatabaseUnavailable, InvalidBatchTransition
from tests.faults import leftovers
from tests.faults.ledgers import ACKED, UNKNOWN, LineFile
from tests.faults.parts import COMMANDS
from tests.faults.producers import PAUSE_SECONDS, Producer

LIMIT: Final = "narrow"
MOST: Final = 2
CHILDREN: Final = 2
BATCH: Final = 4
# Writes down that it begins and that it ends, and leaves what a `maker` does.
SCRIPT: Final = """
echo "$QUEUE_PG_JOB_ID $$ begin" >> "$LEDGER"
sleep 0.05
echo done > "$QUEUE_PG_ARTIFACTS/out.txt"
echo "$QUEUE_PG_JOB_ID $$ end" >> "$LEDGER"
"""


class _Halted(Exception):
    """Peace has come in the middle of something."""


class Mixer(Producer):
    """Submits one form of work after the other, `rate` jobs a second, each with a unique key until it is acknowledged.

    What belongs together is written down when it was said in full: `["family", parent, child]` and
    `["batch", id, numbers..]`. `limited` are the numbers of the jobs that count against LIMIT.
    """

    def __init__(self, dsn: str, folder: Path, numbers: itertools.count[int], *, rate: float) -> None:
        super().__init__(dsn, folder, numbers, keyed=True, rate=rate)
        self.limited: set[int] = set()
        self._environment = {"LEDGER": str(folder.resolve() / COMMANDS), **leftovers.handed_on()}
        self._parts = LineFile(folder / f"parts-{os.getpid()}-{id(self)}.jsonl", durable=True)

    def _produce(self) -> None:
        with closing(self._open_queue()) as queue:
            try:
                while not self._halt.is_set():
                    for form in (self._alone, self._run, self._family, self._limited, self._batch):
                        form(queue)
            except _Halted:
                return

    def _alone(self, queue: SyncQueue) -> None:
        for kind in ("flaky", "nap", "stepped", "maker"):
            self._submit(queue, kind)

    def _run(self, queue: SyncQueue) -> None:
        number = next(self._numbers)
        # A command takes no parameters of its own.
        environment = {"N": str(number), **self._environment}
        self._submit(queue, "command", {"cmd": ["sh", "-c", SCRIPT], "env": environment}, number=number, numbered=False)

    def _family(self, queue: SyncQueue) -> None:
        parent, parent_id = self._submit(queue, "work", {"seconds": 0.02})
        for _ in range(CHILDREN):
            child, _ = self._submit(queue, "work", depends_on=[parent_id])
            self._parts.write("family", parent, child)

    def _limited(self, queue: SyncQueue) -> None:
        for _ in range(2 * MOST):
            number = next(self._numbers)
            # Before it can run.
            self.limited.add(number)
            self._submit(queue, "work", {"seconds": 0.01}, number=number, limit_key=LIMIT)

    def _batch(self, queue: SyncQueue) -> None:
        while True:
            try:
                batch = queue.create_batch("mixed", on_all="told")
                break
            except DatabaseUnavailable:
                self._pause()
        numbers = [self._submit(queue, "work", batch_id=batch.id)[0] for _ in range(BATCH)]
        while True:
            try:
                queue.close_batch(batch.id)
                break
            except InvalidBatchTransition:
                break  # by the try before, whose answer was lost
            except DatabaseUnavailable:
                self._pause()
        self._parts.write("batch", str(batch.id), *numbers)

    def _submit(
        self,
        queue: SyncQueue,
        kind: str,
        payload: dict[str, Any] | None = None,
        *,
        number: int | None = None,
        numbered: bool = True,
        **options: Any,
    ) -> tuple[int, UUID]:
        number = next(self._numbers) if number is None else number
        payload = {**({"n": number} if numbered else {}), **(payload or {})}
        while True:
            try:
                job = queue.submit(kind, payload, unique_key=f"key-{number}", **options)
            except DatabaseUnavailable:
                self._ledger.write(number, UNKNOWN, None)
                self._pause()
            else:
                self.acked += 1
                self._ledger.write(number, ACKED, str(job.id))
                self._halt.wait(1 / self._rate)
                return number, job.id

    def _pause(self) -> None:
        self.trouble += 1
        if self._halt.wait(PAUSE_SECONDS):
            raise _Halted
