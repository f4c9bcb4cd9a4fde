"""The migration runner against empty, current, changed and newer databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from queue_pg import schema
from queue_pg.errors import DatabaseUnavailable, MigrationBusy, MigrationDiverged, NotMigrated, SchemaTooNew


@pytest.fixture
def db(dsn: str) -> Iterator[schema.Connection]:
    with schema.connect(dsn) as connection:
        yield connection


def test_from_empty_all_is_applied_once(empty_dsn: str) -> None:
    applied = schema.migrate(empty_dsn)
    assert applied[0] == "0001_initial"
    assert applied == [migration.name for migration in schema.migrations()]
    assert schema.migrate(empty_dsn) == []


def test_operators_of_others_get_into_no_view(dsn: str, db: schema.Connection) -> None:
    assert db.execute("show search_path").fetchone() == ("pg_catalog,pg_temp",)
    mine = psycopg.conninfo.make_conninfo(dsn, options="-c search_path=public")
    with schema.connect(mine) as connection:
        assert connection.execute("show search_path").fetchone() == ("public",)


def test_migrations_equal_the_committed_snapshot(db: schema.Connection) -> None:
    # After a deliberate change: make snapshot
    assert schema.verify(db) == []


def test_verify_shows_what_somebody_changed_by_hand(db: schema.Connection) -> None:
    db.execute("drop index queue_pg.jobs_due")
    db.execute("alter table queue_pg.jobs alter column priority set default 3")
    differences = "\n".join(schema.verify(db))
    assert "-index CREATE INDEX jobs_due" in differences
    assert "+column jobs.priority smallint not null default 3" in differences


def test_many_starters_at_once_apply_everything_exactly_once(empty_dsn: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: schema.migrate(empty_dsn, lock_timeout_seconds=60), range(6)))
    assert sorted(len(result) for result in results) == [0, 0, 0, 0, 0, len(schema.migrations())]


def test_an_unmigrated_database_is_refused_with_the_command_to_run(empty_dsn: str) -> None:
    with schema.connect(empty_dsn) as connection, pytest.raises(NotMigrated) as refused:
        schema.check(connection)
    assert refused.value.exit_code == 3
    assert "queue-pg migrate" in str(refused.value.hint)


def test_a_changed_function_is_applied_again(dsn: str, db: schema.Connection) -> None:
    db.execute("update queue_pg.migrations set checksum = 'old' where name = 'functions/claim'")
    with pytest.raises(NotMigrated):
        schema.check(db)
    assert schema.migrate(dsn) == ["functions/claim"]
    schema.check(db)


def test_a_changed_migration_is_refused_by_name(dsn: str, db: schema.Connection) -> None:
    db.execute("update queue_pg.migrations set checksum = 'old' where name = '0001_initial'")
    for attempt in (lambda: schema.check(db), lambda: schema.migrate(dsn)):
        with pytest.raises(MigrationDiverged, match="0001_initial"):
            attempt()


def test_older_code_works_on_a_newer_schema_unless_it_broke_with_it(dsn: str, db: schema.Connection) -> None:
    insert = "insert into queue_pg.migrations (name, checksum, breaking, version) values (%s, 'x', %s, '999.0')"
    db.execute(insert, ("9000_more", False))
    schema.check(db)
    db.execute(insert, ("9001_other", True))
    for attempt in (lambda: schema.check(db), lambda: schema.migrate(dsn)):
        with pytest.raises(SchemaTooNew, match="9001_other"):
            attempt()


def test_older_code_does_not_put_its_functions_over_newer_ones(dsn: str, db: schema.Connection) -> None:
    db.execute("update queue_pg.migrations set checksum = 'newer', version = '999.0' where name = 'functions/claim'")
    schema.check(db)
    assert schema.migrate(dsn) == []


def test_a_transaction_in_the_way_is_not_waited_for_beyond_the_lock_timeout(dsn: str, db: schema.Connection) -> None:
    db.execute("update queue_pg.migrations set checksum = 'old' where name = 'functions/wake'")
    with psycopg.connect(dsn) as other:
        other.execute("select pg_advisory_xact_lock(7310579610401947744)")
        with pytest.raises(MigrationBusy):
            schema.migrate(dsn, lock_timeout_seconds=0.05)
    assert schema.migrate(dsn) == ["functions/wake"]


def test_a_failing_migration_leaves_nothing_behind(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (*schema.migrations(), schema.Migration("9000_broken", "create table queue_pg.half (id int); select 1/0;"))
    monkeypatch.setattr(schema, "migrations", lambda: broken)
    with pytest.raises(schema.SchemaError, match="9000_broken"):
        schema.migrate(empty_dsn)
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("select to_regnamespace('queue_pg')").fetchone() == (None,)


def test_the_printed_script_does_the_same_as_migrate(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(schema.render(schema.migrations()))
    with schema.connect(empty_dsn) as connection:
        assert schema.verify(connection) == []
    assert schema.migrate(empty_dsn) == []


def test_a_database_that_is_away_is_named_in_one_sentence() -> None:
    with pytest.raises(DatabaseUnavailable, match="Cannot connect"), schema.connect("postgresql://127.0.0.1:1/nowhere"):
        pass


def test_every_table_and_column_people_meet_is_explained(db: schema.Connection) -> None:
    bare = [
        line
        for line in schema.snapshot(db)
        if line.startswith(("table ", "partitioned table ", "view ")) and line.endswith(": -")
    ]
    assert [line for line in bare if "_default:" not in line] == []
    assert [
        line
        for line in schema.snapshot(db)
        if line.startswith("column jobs.") and line.endswith((": -",)) and "created_at" not in line
    ] == []
