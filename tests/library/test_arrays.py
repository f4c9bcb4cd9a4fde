"""Array literals: whatever text goes in comes out of Postgres."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queue_pg.arrays import plain_array, sparse_interval_array, sparse_text_array, text_array

HOSTILE = ["", "NULL", "null", " ", "a,b", "{}", '"', "\\", '\\"', "\n\t", "it's", "%s", "$1", "\u00e9\U0001f600", None]
TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))


async def test_hostile_texts_survive(conn: psycopg.AsyncConnection) -> None:
    cursor = await conn.execute("select %s::text[]", [text_array(HOSTILE)])
    assert await cursor.fetchone() == (HOSTILE,)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS | st.none(), min_size=1))
def test_any_texts_survive(dsn: str, texts: list[str | None]) -> None:
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select %s::text[]", [text_array(texts)]).fetchone() == (texts,)


async def test_json_survives_the_way_through_text(conn: psycopg.AsyncConnection) -> None:
    cursor = await conn.execute(
        "select %s::text[]::jsonb[]", [sparse_text_array(['{"a": "b\\"\\\\,{}"}', None, "null", '"NULL"'])]
    )
    assert await cursor.fetchone() == ([{"a": 'b"\\,{}'}, None, None, "NULL"],)


async def test_plain_values_and_durations(conn: psycopg.AsyncConnection) -> None:
    ids = [uuid4(), uuid4()]
    delays = [timedelta(0), None, timedelta(days=365, microseconds=1)]
    cursor = await conn.execute(
        "select %s::uuid[], %s::bigint[], %s::interval[]",
        [plain_array(ids), plain_array([1, 2**62]), sparse_interval_array(delays)],
    )
    assert await cursor.fetchone() == (ids, [1, 2**62], delays)


def test_nothing_at_all_is_no_array() -> None:
    assert sparse_text_array([None, None]) is None
    assert sparse_interval_array([None]) is None
    assert text_array([]) == plain_array([]) == "{}"
