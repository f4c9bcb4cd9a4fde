"""Leases that the database has given and the loop has not heard of, because a handler blocks it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

import psycopg

from queue_pg import store_sync
from queue_pg.surroundings import Surroundings
from queue_pg_workers.leases import Held


def unheard(
    connection: psycopg.Connection[Any],
    worker_id: str,
    known: Collection[Held],
    *,
    claim_asked_at: float,
    surroundings: Surroundings,
) -> list[tuple[UUID, int]]:
    """Return id and token of what the claim under way, asked for at `claim_asked_at` (monotonic), has brought.

    Nothing older: what a claim left behind whose answer was lost, or a process that had our id before, is nobody's and
    has to run out. How long a lease has been given is measured by one clock and since when we wait by another, which
    need not agree on the time.
    """
    found = store_sync.leases_of(connection, worker_id)
    waited_seconds = surroundings.monotonic() - claim_asked_at
    keys = {held.key for held in known}
    return [(id_, token) for id_, token, age in found if age <= waited_seconds and (str(id_), token) not in keys]
