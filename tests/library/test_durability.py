"""What a server's settings may lose is said when a process starts."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import threading

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from queue_pg import NewJob, Queue
from queue_pg.bulk import COPY_JOBS
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


@pytest.mark.parametrize("command", [["worker"], ["serve", "--port", "0"], ["reaper"]], ids=lambda words: words[0])
def test_each_process_that_users_start_says_so(dsn: str, command: list[str]) -> None:
    options = f"{conninfo_to_dict(dsn).get('options') or ''} -c synchronous_commit=off".strip()
    process = subprocess.Popen(
        [sys.executable, "-m", "queue_pg.cli", *command, "--database-url", make_conninfo(dsn, options=options)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        said = re.compile(r"WARNING.*(fsync|full_page_writes|synchronous_commit) (is|and .* are|are) off: a crash")
        assert any(said.search(line) for line in process.stdout), "it ended without a word"
    finally:
        watchdog.cancel()
        process.terminate()
        process.communicate(timeout=60)


# What the session's setting is at the moment of the commit, which is when it counts.
WITNESS = """
create table public.commits (what text, kind text, synchronous_commit text);
create function public.note_commit() returns trigger language plpgsql as $$
begin
  insert into public.commits
  values (tg_op, coalesce(new.kind, old.kind)::text, pg_catalog.current_setting('synchronous_commit'));
  return null;
end
$$;
create constraint trigger note_commit after insert or update or delete on queue_pg.jobs
  deferrable initially deferred for each row execute function public.note_commit();
"""


async def test_every_way_to_submit_and_to_finish_is_on_disk_when_it_is_acknowledged(
    dsn: str, conn: psycopg.AsyncConnection
) -> None:
    name = str(conninfo_to_dict(dsn)["dbname"])
    await conn.execute(sql.SQL("alter database {} set synchronous_commit = off").format(sql.Identifier(name)))
    await conn.execute(WITNESS)
    async with Queue(dsn, notify=False) as queue:
        await queue.put_template("t", "template", {})
        await queue.submit("one")
        await queue.submit("keyed", unique_key="k")
        await queue.submit_many([NewJob(kind="few") for _ in range(3)])
        await queue.submit_many([NewJob(kind="copied") for _ in range(COPY_JOBS)])
        parent = await queue.submit("parent", queue="other")
        await queue.submit("child", queue="other", depends_on=[parent.id])
        await queue.submit_template("t")
        await asyncio.gather(*(queue.submit("at once") for _ in range(5)))
        done, failed, snoozed, released = await queue.claim("w", ["default"], max_jobs=4)
        await queue.complete(done.id, done.lease_token, {})
        await queue.fail(failed.id, failed.lease_token, {"code": "x", "message": "y"})
        await queue.snooze(snoozed.id, snoozed.lease_token, 60)
        await queue.release(released.id, released.lease_token)
        await queue.cancel(parent.id)
    # Theirs is theirs: docs/guarantees.md.
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as application:
        await application.execute("insert into queue_pg.jobs (kind) values ('inserted')")
    rows = await (await conn.execute("select what, kind, synchronous_commit from public.commits")).fetchall()
    assert {kind for what, kind, _ in rows if what == "INSERT"} == {
        "one", "keyed", "few", "copied", "parent", "child", "template", "at once", "inserted",
    }  # fmt: skip
    assert {what for what, _, _ in rows} == {"INSERT", "UPDATE", "DELETE"}
    assert {kind for _, kind, setting in rows if setting != "on"} == {"inserted"}
