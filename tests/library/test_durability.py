"""What a server's settings may lose is said when a process starts."""

from __future__ import annotations

import asyncio
import logging

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from queue_pg.durability import weakness
from queue_pg.maintenance import MaintenanceLoop

SOUND = {"fsync": True, "full_page_writes": True, "synchronous_commit": "on"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"fsync": False}, "fsync is off: a crash of the machine can destroy the database."),
        ({"full_page_writes": False}, "full_page_writes is off: a crash of the machine can destroy the database."),
        (
            {"fsync": False, "full_page_writes": False, "synchronous_commit": "off"},
            "fsync and full_page_writes are off: a crash of the machine can destroy the database.",
        ),
        ({"synchronous_commit": "off"}, "synchronous_commit is off: a crash can lose the last commits."),
    ],
)
def test_each_weakness_is_named(settings: dict[str, object], text: str) -> None:
    found = weakness(**{**SOUND, **settings})  # type: ignore[arg-type]
    assert found is not None
    assert found.text == text


@pytest.mark.parametrize("synchronous_commit", ["on", "local", "remote_write", "remote_apply"])
def test_a_sound_server_has_none(synchronous_commit: str) -> None:
    assert weakness(fsync=True, full_page_writes=True, synchronous_commit=synchronous_commit) is None


async def test_a_process_that_maintains_says_so_once(
    dsn: str, conn: psycopg.AsyncConnection, caplog: pytest.LogCaptureFixture
) -> None:
    """As the server of the tests says that it is: some run on one that is durable."""
    cursor = await conn.execute("select current_setting('fsync'), current_setting('full_page_writes')")
    [(fsync, pages)] = await cursor.fetchall()
    options = f"{conninfo_to_dict(dsn).get('options') or ''} -c synchronous_commit=off".strip()
    loop = MaintenanceLoop(make_conninfo(dsn, options=options))
    ended = asyncio.Event()
    ended.set()
    with caplog.at_level(logging.WARNING, logger="queue_pg.durability"):
        await loop.step()
        await loop.step()
    await loop.run(ended)  # which gives its connection back
    off = [name for name, value in (("fsync", fsync), ("full_page_writes", pages)) if value == "off"]
    [record] = [record for record in caplog.records if record.name == "queue_pg.durability"]
    assert record.getMessage().startswith(" and ".join(off) if off else "synchronous_commit is off")
