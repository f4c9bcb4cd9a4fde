"""`migrate`, `config`, `doctor`, `reaper`."""

from __future__ import annotations

import json
import signal
from typing import Any

import psycopg
import pytest

UNREACHABLE = "postgresql://nobody:secret-word@127.0.0.1:1/nowhere"


def test_migrating_an_empty_database(bare_cli: Any, empty_dsn: str) -> None:
    on = ["--database-url", empty_dsn]
    planned = bare_cli("migrate", "--plan", *on).out.split()
    assert planned[0] == "0001_initial"
    script = bare_cli("migrate", "--sql", *on).out
    assert script.startswith("begin;")
    assert bare_cli("migrate", "--plan", "--json", *on).json == {"pending": planned}
    assert bare_cli("migrate", "--verify", *on).code == 3
    assert bare_cli("migrate", *on).out.split() == planned
    again = bare_cli("migrate", *on)
    assert (again.code, again.out, again.err) == (0, "", "The schema is up to date.\n")
    assert bare_cli("migrate", "--verify", *on).code == 0
    assert bare_cli("migrate", "--sql", *on).out == "-- Nothing to apply.\n"


def test_the_printed_sql_does_what_migrate_does(bare_cli: Any, empty_dsn: str) -> None:
    script = bare_cli("migrate", "--sql", "--database-url", empty_dsn).out
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(script.encode())
    assert bare_cli("migrate", "--verify", "--database-url", empty_dsn).code == 0


def test_a_changed_schema_is_shown(cli: Any, work: Any) -> None:
    work.database.execute("alter table queue_pg.queues add column extra integer")
    shown = cli("migrate", "--verify")
    assert shown.code == 3
    assert "extra" in shown.out


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("drop function queue_pg.why_waiting(uuid)", "why_waiting"),
        ("drop trigger jobs_arrive on queue_pg.jobs", "jobs_arrive"),
        ("drop table queue_pg.partitions cascade", "partitions"),
    ],
)
def test_a_damaged_schema_is_found_everywhere(cli: Any, work: Any, damage: str, named: str) -> None:
    work.database.execute(damage)
    shown = cli("doctor", "--json")
    assert shown.code == 1
    found = next(item for item in shown.json["checks"] if item["status"] == "fail")
    assert found["check"] == "schema"
    assert named in found["message"]
    assert "migrate --verify" in found["hint"]
    probe = cli("doctor", "schema")
    assert (probe.code, len(probe.err.splitlines())) == (1, 1)
    assert named in probe.err
    migrated = cli("migrate")
    assert migrated.code == 3
    assert [line.startswith("error: ") for line in migrated.err.splitlines()] == [False, True]
    assert named in migrated.err
    assert "migrate --verify" in migrated.err


def test_what_somebody_added_is_a_warning(cli: Any, work: Any) -> None:
    work.database.execute("alter table queue_pg.queues add column extra integer")
    shown = cli("doctor", "--json")
    assert shown.code == 0
    [found] = [item for item in shown.json["checks"] if item["check"] == "schema"]
    assert found["status"] == "warn"
    assert "extra" in found["message"]
    migrated = cli("migrate")
    assert migrated.code == 0
    assert "warning: " in migrated.err
    assert "extra" in migrated.err


def test_the_documented_way_to_mend_functions_and_triggers(cli: Any, work: Any) -> None:
    work.database.execute("drop function queue_pg.why_waiting(uuid)")
    work.database.execute("drop trigger jobs_arrive on queue_pg.jobs")
    work.database.execute("delete from queue_pg.migrations where name like 'functions/%'")
    assert cli("migrate").code == 0
    assert cli("migrate", "--verify").code == 0


def test_an_older_release_does_not_find_fault_with_a_newer_schema(cli: Any, work: Any) -> None:
    work.database.execute("update queue_pg.migrations set version = '999.10.0' where name = 'functions/claim'")
    work.database.execute("drop function queue_pg.why_waiting(uuid)")
    assert cli("doctor", "schema").code == 0
    assert cli("migrate").code == 0


def test_config_masks_secrets_and_tells_where_values_came_from(bare_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql+asyncpg://u:secret-word@h/d")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-key")
    shown = bare_cli("config")
    assert shown.code == 0
    assert "secret" not in shown.out
    assert "environment DATABASE_URL" in shown.out
    found = bare_cli("config", "--json").json
    assert found["database_url"] == "postgresql://u:secret-word@h/d", "other programs connect with it"
    assert "sk-secret-key" not in json.dumps(found)
    assert found["sources"]["openai_api_key"] == "environment OPENAI_API_KEY"


def test_config_without_a_database(bare_cli: Any) -> None:
    assert bare_cli("config", "--json").json["database_url"] is None
    assert "DATABASE_URL is not set" in bare_cli("config").err


def test_a_setting_that_makes_no_sense_is_named(bare_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_CONCURRENCY", "many")
    refused = bare_cli("config")
    assert refused.code == 2
    assert "WORKER_CONCURRENCY=many" in refused.err


def test_doctor_finds_a_well_installation_well(cli: Any, work: Any) -> None:
    work.value("select queue_pg.register_worker('w', 'host-a', 1, '1', array['default'], array['chat'], 1)")
    shown = cli("doctor", "--json")
    assert shown.code == 0
    found = {item["check"]: item["status"] for item in shown.json["checks"]}
    assert shown.json["ok"] is True
    assert (
        found.items() >= dict.fromkeys(["database", "schema", "privileges", "notify", "workers", "clock"], "ok").items()
    )
    assert cli("doctor").code == 0
    for probe in ("db", "schema", "notify", "workers"):
        assert cli("doctor", probe) == type(shown)(0, "", "")
    assert cli("doctor", "workers", "--host", "host-a").code == 0
    assert cli("doctor", "workers", "--host", "host-b").code == 1


def test_doctor_names_what_is_broken_and_what_to_do(cli: Any, work: Any) -> None:
    work.value("select queue_pg.submit('chat')")
    work.claim()
    work.value("select queue_pg.submit('chat', delay => '1 hour')")
    work.database.execute(
        "update queue_pg.jobs set lease_expires_at = now() - interval '1 hour' where state = 'running'"
    )
    work.database.execute("update queue_pg.jobs set run_at = now() - interval '1 hour' where state = 'scheduled'")
    shown = cli("doctor", "--json")
    assert shown.code == 1
    found = {item["check"]: item for item in shown.json["checks"]}
    assert (found["leases"]["status"], found["due jobs"]["status"], found["workers"]["status"]) == (
        "fail",
        "fail",
        "warn",
    )
    assert "queue-pg reaper" in found["leases"]["hint"]
    probe = cli("doctor", "workers")
    assert (probe.code, probe.out, len(probe.err.splitlines())) == (1, "", 3)


def test_doctor_without_a_schema(bare_cli: Any, empty_dsn: str) -> None:
    shown = bare_cli("doctor", "--database-url", empty_dsn)
    assert shown.code == 1
    assert "queue-pg migrate" in shown.out
    assert bare_cli("doctor", "db", "--database-url", empty_dsn).code == 0
    probe = bare_cli("doctor", "schema", "--database-url", empty_dsn)
    assert (probe.code, len(probe.err.splitlines())) == (1, 1)


def test_doctor_without_a_server(bare_cli: Any) -> None:
    for probe in ("db", "schema", "notify", "workers"):
        found = bare_cli("doctor", probe, "--database-url", UNREACHABLE)
        assert (found.code, found.out, len(found.err.splitlines())) == (1, "", 1)
        assert "secret-word" not in found.err
    assert bare_cli("doctor").code == 1, "no database is set at all"


def test_doctor_for_a_role_without_privileges(cli: Any, bare_cli: Any, work: Any, dsn: str) -> None:
    role = f"visitor_{work.value('select pg_backend_pid()')}"
    work.database.execute(f"create role {role} login password 'x'".encode())
    try:
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
        visitor = psycopg.conninfo.make_conninfo("", **{**parts, "user": role, "password": "x"})
        shown = bare_cli("doctor", "--json", "--database-url", visitor)
        assert shown.code == 1
        assert [item for item in shown.json["checks"] if item["status"] == "fail"]
    finally:
        work.database.execute(f"drop role {role}".encode())


def test_the_reaper_takes_leases_back_and_ends_on_sigterm(program: Any, work: Any) -> None:
    job_id = work.value("select queue_pg.submit('chat')")
    work.claim()
    work.database.execute("update queue_pg.jobs set lease_expires_at = now() - interval '1 s' where state = 'running'")
    reaper = program.start("reaper")
    work.until("select state = 'queued' from queue_pg.jobs where id = %s", job_id)
    reaper.send_signal(signal.SIGTERM)
    _, err = reaper.communicate(timeout=30)
    assert reaper.returncode == 0
    assert "Traceback" not in err
    assert err.endswith("Stopped.\n")
