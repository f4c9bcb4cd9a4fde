"""How long the machine kept this process from running: a bound on time holds for the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

_NAP_SECONDS = 0.02
_USUAL_SECONDS = 0.05


class Stalls:
    """`seconds` so far in which a thread with nothing to do but to wake every 20 ms did not."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._woke_at = time.monotonic()
        self._over = threading.Event()

    @property
    def seconds(self) -> float:
        # Whoever asks may have got its turn first.
        return self._lost + self._late()

    def _late(self) -> float:
        late = time.monotonic() - self._woke_at - _NAP_SECONDS
        return late if late > _USUAL_SECONDS else 0.0

    def _run(self) -> None:
        while not self._over.wait(_NAP_SECONDS):
            self._lost += self._late()
            self._woke_at = time.monotonic()


@contextmanager
def stalled() -> Generator[Stalls]:
    """Measure while the block lasts."""
    stalls = Stalls()
    thread = threading.Thread(target=stalls._run, daemon=True)
    thread.start()
    try:
        yield stalls
    finally:
        stalls._over.set()
        thread.join()
