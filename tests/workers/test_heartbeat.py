"""When the heartbeat does what, by a clock that moves only while it waits."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from queue_pg_workers.heartbeat import CHECK_SECONDS, Heartbeat, Report
from queue_pg_workers.signals import Signals

from queue_pg.surroundings import Surroundings


class Scripted(Surroundings):
    """Waits take no time: the clock jumps to their end, or to the next moment at which something is to happen."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.script: list[tuple[float, Callable[[], object]]] = []
        self.run: Callable[[], object] | None = None

    def monotonic(self) -> float:
        return self.now

    def thread(self, target: Callable[[], object], *, name: str) -> Any:
        del name
        self.run = target
        return SimpleNamespace(join=lambda _: None, is_alive=lambda: False)

    def event(self) -> Any:
        return SimpleNamespace(wait=self._wait, set=lambda: None, clear=lambda: None)

    def _wait(self, seconds: float) -> None:
        if self.script and self.script[0][0] <= self.now + seconds:
            self.now, happen = self.script.pop(0)
            happen()
        else:
            self.now += seconds


def test_a_lease_taken_puts_off_no_check(dsn: str) -> None:
    checked: list[float] = []
    machine = Scripted()
    begun_at = machine.now

    def told(held: object, standing: object) -> None:
        del held, standing
        checked.append(round(machine.now - begun_at, 3))
        if len(checked) == 3:
            heartbeat.stop()

    held = SimpleNamespace(job=SimpleNamespace(id=uuid4(), lease_token=1, lease_seconds=30.0))
    leases = SimpleNamespace(all=lambda: [held], extended=lambda *_, **__: None, looked_at=begun_at, checked=told)
    heartbeat = Heartbeat(
        dsn,
        application="queue-pg test",
        worker_id="w",
        leases=leases,  # type: ignore[arg-type]
        claim_asked_at=lambda: None,
        listening=lambda: False,
        report=lambda: Report(active=1, processed=0, failed=0, stopping=False),
        on_fleet=lambda _: None,
        register=lambda _: None,
        lease_seconds=None,
        signals=Signals(),
        surroundings=machine,
    )
    # Each is due sooner than the one before, and wakes the thread between two checks.
    machine.script = [
        (begun_at + 0.8, lambda: heartbeat.cover(27.0)),
        (begun_at + 1.7, lambda: heartbeat.cover(24.0)),
    ]
    assert machine.run is not None
    machine.run()
    assert checked == [round(n * CHECK_SECONDS, 3) for n in (1, 2, 3)]
