"""What is tried with stale leases in F3 is what a worker may say with one that it has."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.faults.stale_writes import STATEMENTS, accepts


@pytest.mark.parametrize("name", STATEMENTS)
def test_only_the_newest_lease_may_say_it(dsn: str, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select queue_pg.submit('k')")

        def claim() -> tuple[Any, ...]:
            row = connection.execute("select id, lease_token from queue_pg.claim('w', array['default'])").fetchone()
            assert row is not None
            return row

        job, stale = claim()
        connection.execute("select queue_pg.finish(array[%s::uuid], array[%s::bigint], array['release'])", (job, stale))
        assert claim() == (job, 2)
        assert not accepts(connection, name, job, 1)
        assert accepts(connection, name, job, 2)
