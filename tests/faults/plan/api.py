"""Faults of the API: killed in the middle of what it is told (F40)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import httpx

from tests.faults.arena import Arena
from tests.faults.ledgers import ACKED, UNKNOWN, LineFile
from tests.faults.service import Service

BATCH: Final = 1_000
PIECES: Final = 10


class _Poster(threading.Thread):
    """Submits one batch by JSON lines, bit by bit, and writes down what it was told: once, or `keyed` until it is.

    The first time it stands still after `pieces` of the batch, until it may go on.
    """

    def __init__(self, arena: Arena, service: Service, group: int, *, pieces: int, keyed: bool) -> None:
        super().__init__(daemon=True)
        self.acked = False
        self.stands = threading.Event()
        self.may_go_on = threading.Event()
        self.failure: BaseException | None = None
        self._url = service.url
        self._numbers = [next(arena.numbers) for _ in range(BATCH)]
        self._group = group
        self._keyed = keyed
        self._pieces = pieces
        self._ledger = LineFile(arena.folder / f"submissions-batch-{group}.jsonl", durable=True)

    def run(self) -> None:
        try:
            # On disk before anything is said: whoever dies from here on has left them unknown.
            self._note(UNKNOWN, [None] * BATCH)
            while not self.acked:
                self._post()
                if not self._keyed:
                    break
                time.sleep(0.05)
        except BaseException as error:
            self.failure = error

    def _note(self, word: str, ids: Sequence[str | None]) -> None:
        self._ledger.write_all((number, word, job, self._group) for number, job in zip(self._numbers, ids, strict=True))

    def _post(self) -> None:
        headers = {"content-type": "application/x-ndjson"}
        if self._keyed:
            headers["idempotency-key"] = f"batch-{self._group}"
        with suppress(httpx.TransportError):
            answer = httpx.post(f"{self._url}/jobs", content=self._body(), headers=headers, timeout=60)
            if answer.status_code == 503:
                return
            if answer.status_code not in {200, 201}:
                raise RuntimeError(f"the API answered {answer.status_code} to a batch: {answer.text[:500]}")
            self._note(ACKED, answer.json()["ids"])
            self.acked = True

    def _body(self) -> Iterator[bytes]:
        for piece in range(PIECES):
            if piece == self._pieces:
                self._stand()
            numbers = self._numbers[piece * BATCH // PIECES :][: BATCH // PIECES]
            yield "".join(f"{json.dumps({'kind': 'work', 'payload': {'n': n}})}\n" for n in numbers).encode()
        if self._pieces == PIECES:
            self.stands.set()

    def _stand(self) -> None:
        self.stands.set()
        self.may_go_on.wait()


def kill_api(arena: Arena) -> None:
    """F40: the API is killed while it takes a batch of 1,000 jobs: all of them are there, or none."""
    service = arena.serve()
    arena.produce_over_http(service)
    arena.progress()
    for group in range(4 * arena.size.hits):
        # In the middle of the body, or somewhere between its end and the answer to it.
        pieces = arena.random.randrange(PIECES) if group % 4 < 2 else PIECES
        poster = _Poster(arena, service, group, pieces=pieces, keyed=group % 2 == 1)
        poster.start()
        poster.stands.wait()
        if pieces == PIECES:
            time.sleep(arena.random.uniform(0.0, 0.3))
        arena.hits["batches under way"] += not poster.acked
        service.kill()
        poster.may_go_on.set()
        arena.hits["API kills"] += 1
        service.start()
        poster.join(120)
        if poster.failure is not None:
            raise poster.failure
        arena.hits["batches acknowledged"] += poster.acked
    arena.progress()
