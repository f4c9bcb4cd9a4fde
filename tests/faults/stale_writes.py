"""All that a worker can say with a lease that is over, said while another worker has the job (F3)."""

from __future__ import annotations

from contextlib import closing
from typing import Any, Final
from uuid import UUID

import psycopg

LEASE_LOST: Final = "QP003"
_END: Final = (
    "select accepted from queue_pg.finish(array[%(job)s::uuid], array[%(token)s::bigint], array['{outcome}'], null,"
    " null, array[interval '1 s'])"
)
# Each answers with true when it was accepted; otherwise with false, nothing, or LEASE_LOST.
STATEMENTS: Final = {
    **{
        outcome: _END.format(outcome=outcome)
        for outcome in ("complete", "fail", "discard", "snooze", "wait", "release", "cancel")
    },
    "plan": (
        "select accepted from queue_pg.finish(array[%(job)s::uuid], array[%(token)s::bigint], array['plan'],"
        """ array['{"subtasks": ["a"]}'::jsonb])"""
    ),
    "heartbeat": "select true from queue_pg.heartbeat(array[%(job)s::uuid], array[%(token)s::bigint])",
    "event": "select true from queue_pg.append_event(%(job)s, %(token)s, 'stale')",
    "step": "select true from queue_pg.save_step(%(job)s, %(token)s, 'stale')",
    "sleep": "select true from queue_pg.sleep(%(job)s, %(token)s, 'stale sleep', '1 s')",
    "wait for an event": "select true from queue_pg.wait_for_event(%(job)s, %(token)s, 'stale event')",
    "artifact": "select true from queue_pg.put_artifact(%(job)s, 'stale', 'x', null, %(token)s)",
    "large artifact": "select true from queue_pg.begin_artifact(%(job)s, 'stale', null, %(token)s)",
}
# Leases that were lost, and those of the workers who have the jobs now.
_HELD: Final = """
select e.job, e.token, j.lease_token
from faults.edges e join queue_pg.jobs j on j.id = e.job
where e.what = 'changed' and e.before = 'running' and e.after = 'queued' and e.losses > 0
  and j.state = 'running' and j.lease_token > e.token
"""


def accepts(connection: psycopg.Connection[Any], name: str, job: UUID, token: int) -> bool:
    """Say one thing with this lease; return whether it was accepted. Raises what is no refusal of a lease."""
    try:
        row = connection.execute(STATEMENTS[name].encode(), {"job": job, "token": token}).fetchone()
    except psycopg.Error as error:
        if error.sqlstate != LEASE_LOST:
            raise
        return False
    return row is not None and row[0] is True


class StaleWriter:
    """Says each thing once with each lease that was lost. `tried` counts what was said while another had the job."""

    def __init__(self, dsn: str) -> None:
        self.tried = 0
        self.accepted: list[tuple[str, str]] = []
        self._dsn = dsn
        self._done: set[tuple[UUID, int]] = set()

    def write(self) -> None:
        """Try everything with what was lost since the last time."""
        with closing(psycopg.connect(self._dsn, autocommit=True)) as connection:
            for job, token, holder in connection.execute(_HELD).fetchall():
                if (job, token) in self._done:
                    continue
                self._done.add((job, token))
                for name in STATEMENTS:
                    if accepts(connection, name, job, token):
                        self.accepted.append((name, str(job)))
                    # It may have ended while this was said: then it shows less.
                    self.tried += connection.execute(_HOLDS, (job, holder)).fetchone() is not None


_HOLDS: Final = "select 1 from queue_pg.jobs where id = %s and state = 'running' and lease_token = %s"
