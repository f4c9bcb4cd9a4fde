"""How many workers a queue needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How many workers a queue needs, and by what.

    `queued` and `running` are counted as far as it matters, `startable` of those that are queued are let start by their
    limits and by pauses, `slots_per_worker` is how many a worker runs at once, and `seconds_per_job` how long one
    takes, None when nothing is known.
    """

    queue: str
    desired_workers: int
    state: str
    queued: int
    running: int
    startable: int
    slots_per_worker: int
    seconds_per_job: float | None
