"""From the release before this one to this one: what was there goes on working, on the schema that comes."""

from __future__ import annotations

import re
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from queue_pg import SyncQueue, schema
from queue_pg.errors import DatabaseUnavailable, MigrationBusy, NotMigrated, SchemaError
from tests.faults import releases
from tests.faults.releases import Release

ROOT = Path(__file__).parents[2]
# As in library/test_statements.py.
UNPREPARABLE = re.compile(r"^(listen|unlisten|copy|create|do|lock|set|vacuum)\b|testing_clock", re.MULTILINE)
Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return releases.unpack(tmp_path_factory.mktemp("previous") / "release")


@pytest.fixture
def old_dsn(previous: Release, empty_dsn: str) -> str:
    """A database as the previous release has made it."""
    previous.migrate(empty_dsn)
    return empty_dsn


@pytest.fixture
def old(old_dsn: str) -> Iterator[Connection]:
    with psycopg.connect(old_dsn, autocommit=True) as connection:
        yield connection


def described(connection: Connection, statements: dict[str, str]) -> dict[str, object]:
    """Return what each statement takes and answers, or why Postgres refuses it."""
    found: dict[str, object] = {}
    for name, text in statements.items():
        for number, parameter in enumerate(dict.fromkeys(re.findall(r"%\((\w+)\)[sb]", text)), 1):
            text = re.sub(rf"%\({parameter}\)[sb]", f"${number}", text)
        made = connection.pgconn.prepare(b"described", text.encode())
        if made.status != pq.ExecStatus.COMMAND_OK:
            found[name] = made.error_message.decode()
            continue
        answer = connection.pgconn.describe_prepared(b"described")
        found[name] = (
            [_type(connection, answer.param_type(n)) for n in range(answer.nparams)],
            [(answer.fname(n), _type(connection, answer.ftype(n))) for n in range(answer.nfields)],
        )
        connection.execute("deallocate described")
    return found


def _type(connection: Connection, oid: int) -> str:
    row = connection.execute("select format_type(%s, null)", (oid,)).fetchone()
    assert row is not None
    return str(row[0])


def test_every_statement_of_the_previous_release_takes_and_answers_the_same(
    previous: Release, old_dsn: str, old: Connection
) -> None:
    statements = {name: text for name, text in previous.statements().items() if not UNPREPARABLE.search(text)}
    assert len(statements) > 100
    before = described(old, statements)
    assert [name for name, what in before.items() if isinstance(what, str)] == []
    schema.migrate(old_dsn)
    assert described(old, statements) == before


def test_applied_migrations_are_frozen(previous: Release) -> None:
    ours = {path.name: path.read_bytes() for path in (ROOT / "migrations").glob("*.sql")}
    theirs = {path.name: path.read_bytes() for path in (previous.folder / "migrations").glob("*.sql")}
    assert f"{previous.newest_migration}.sql" in theirs
    assert {name: ours.get(name) for name in theirs} == theirs


def test_an_upgraded_schema_is_the_released_one_and_no_table_that_grows_was_rewritten(
    old_dsn: str, old: Connection
) -> None:
    files = (
        "select relname, pg_relation_filenode(oid) from pg_class"
        " where relnamespace = 'queue_pg'::regnamespace and relkind = 'r' order by relname"
    )
    old.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 50)")
    old.execute("select queue_pg.cancel(id) from (select id from queue_pg.jobs limit 20) j")
    before = dict(old.execute(files).fetchall())
    assert {"jobs", "settings"} <= set(before)
    schema.migrate(old_dsn)
    after = dict(old.execute(files).fetchall())
    # A row for each of what people have set up, of which there are few.
    few = {"limits", "schedules", "job_templates", "queues", "kinds", "settings"}
    assert {name for name in before if after.get(name) != before[name]} <= few
    with schema.connect(old_dsn) as connection:
        assert schema.verify(connection) == []
    counts = old.execute("select state::text, count(*) from queue_pg.all_jobs group by state").fetchall()
    assert dict(counts) == {"queued": 30, "cancelled": 20}


def test_the_previous_release_starts_on_the_new_schema_and_leaves_it_alone(previous: Release, old_dsn: str) -> None:
    schema.migrate(old_dsn)
    checked = previous.run("doctor", "schema", DATABASE_URL=old_dsn)
    assert checked.returncode == 0, checked.stderr
    migrated = previous.run("migrate", DATABASE_URL=old_dsn)
    assert (migrated.returncode, migrated.stdout) == (0, ""), migrated.stderr
    with schema.connect(old_dsn) as connection:
        schema.check(connection)


def test_this_release_refuses_the_old_schema_with_the_command_to_run(old_dsn: str) -> None:
    with schema.connect(old_dsn) as connection, pytest.raises(NotMigrated) as refused:
        schema.check(connection)
    assert "queue-pg migrate" in str(refused.value.hint)
    with SyncQueue(old_dsn, notify=False) as queue, pytest.raises(SchemaError) as failed:
        queue.submit("k")
    assert "queue-pg migrate" in str(failed.value.hint)


def test_a_role_that_could_submit_still_can(old_dsn: str, old: Connection) -> None:
    """The functions that a role may call are made anew, and so may be its rights; those of docs/security.md stay."""
    role = sql.Identifier(f"app_{uuid4().hex}")
    page = (ROOT / "docs" / "security.md").read_text()
    [granted] = re.findall(r"```sql\n(grant usage .*?)```", page, re.DOTALL)
    old.execute(sql.SQL("create role {} nologin").format(role))
    try:
        for grant in granted.split(";\n")[:-1]:
            old.execute(sql.SQL(grant.replace(" to app", " to {}")).format(role))
        submit = "insert into queue_pg.jobs (kind, payload) values ('k', '{}')"
        old.execute(sql.SQL("set role {}").format(role))
        old.execute(submit)
        schema.migrate(old_dsn)
        old.execute(submit)
    finally:
        old.execute("reset role")
        old.execute(sql.SQL("drop owned by {0}; drop role {0}").format(role))


# --- locks ------------------------------------------------------------------------------------------------------------

WAITS = (
    "select count(*) from pg_locks"
    " where relation = 'queue_pg.{}'::regclass and not granted and mode = 'AccessExclusiveLock'"
)


def wait_until(connection: Connection, statement: str, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while connection.execute(statement.encode()).fetchone() == (0,):
        assert time.monotonic() < deadline, statement
        time.sleep(0.002)


def test_whoever_is_in_the_way_is_named_and_waited_for_again(old_dsn: str) -> None:
    said: list[str] = []
    named = make_conninfo(old_dsn, application_name="a report")
    with psycopg.connect(named) as holder:
        holder.execute("select count(*) from queue_pg.jobs")
        with pytest.raises(
            MigrationBusy, match=rf"process {holder.info.backend_pid}, a report, idle in transaction for"
        ):
            schema.migrate(old_dsn, lock_timeout_seconds=0.05)

        def busy(text: str) -> None:
            said.append(text)
            holder.rollback()

        assert "0014_caching" in schema.migrate(old_dsn, lock_timeout_seconds=0.05, wait_seconds=60, on_busy=busy)
    assert "Trying again in" in said[0]


def test_a_table_in_the_middle_does_not_hold_up_those_who_wait_behind_the_first(old_dsn: str) -> None:
    """With jobs locked, a migration that waits for another table for as long as it may would stop all submissions."""
    with psycopg.connect(old_dsn) as holder:
        holder.execute("select count(*) from queue_pg.schedules")
        began = time.monotonic()
        with pytest.raises(MigrationBusy):
            schema.migrate(old_dsn, lock_timeout_seconds=60)
        assert time.monotonic() - began < 40


def test_who_takes_tables_in_another_order_is_not_ended_for_it(old_dsn: str, old: Connection) -> None:
    """A transaction has a table that the migration wants last, and then submits, while the migration has jobs."""
    with ThreadPoolExecutor(1) as pool, psycopg.connect(old_dsn) as app:
        app.execute("select count(*) from queue_pg.schedules")
        migrating = pool.submit(schema.migrate, old_dsn, lock_timeout_seconds=5, wait_seconds=60)
        wait_until(old, WAITS.format("schedules"))
        app.execute("insert into queue_pg.jobs (kind) values ('k')")
        app.commit()
        assert "0015_fair_shares" in migrating.result(90)
    assert old.execute("select count(*) from queue_pg.jobs").fetchone() == (1,)


def test_a_submission_that_the_schema_changes_under_stores_nothing_and_may_be_repeated(dsn: str) -> None:
    """Postgres has read the statement and waits; then functions answer with more columns than it was read to give."""
    with psycopg.connect(dsn) as migration, psycopg.connect(dsn, autocommit=True) as look, SyncQueue(dsn) as queue:
        text = look.execute("select pg_get_viewdef('queue_pg.all_jobs'::regclass)").fetchone()
        assert text is not None
        migration.execute("lock table queue_pg.jobs in access exclusive mode")
        outcome: list[BaseException | None] = []
        submitting = threading.Thread(target=lambda: outcome.append(_outcome(lambda: queue.submit("k"))))
        submitting.start()
        wait_until(
            look,
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%queue_pg:submit%'",
        )
        body = str(text[0]).rstrip().rstrip(";")
        migration.execute(f"create or replace view queue_pg.all_jobs as select v.*, 1 as more from ({body}) v".encode())
        migration.commit()
        submitting.join(20)
        assert isinstance(outcome[0], DatabaseUnavailable), outcome
        assert "The schema was changed while the statement ran" in str(outcome[0])
        assert look.execute("select count(*) from queue_pg.jobs").fetchone() == (0,)
        queue.submit("k")


def _outcome(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        return error
    return None


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_what_is_kept_of_the_previous_release_is_what_the_history_has(previous: Release) -> None:
    commit = releases.described()["commit"]
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", commit, "migrations"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("there is no such history here")
    for name in listed.stdout.split():
        shown = subprocess.run(["git", "show", f"{commit}:{name}"], cwd=ROOT, capture_output=True, check=True)
        assert (previous.folder / name).read_bytes() == shown.stdout, name


def test_a_spoilt_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.tar.xz"
    with tarfile.open(other, "w:xz"):
        pass
    monkeypatch.setattr(releases, "ARCHIVE", other)
    with pytest.raises(ValueError, match="is not what"):
        releases.unpack(tmp_path / "release")
