"""`limits`, and why a job waits."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest


def test_limits_are_set_listed_paused_and_removed(cli: Any) -> None:
    assert "No limits" in cli("limits").err
    made = cli(
        "limits", "set", "key", "tenant-7", "--max-running", "5", "--rate", "60", "--per", "minute", "--json"
    ).json
    assert (made["name"], made["max_running"], made["rate"], made["per"]) == ("tenant-7", 5, 60, "minute")
    row = cli("limits").out.splitlines()[1]
    for text in ("key", "tenant-7", "open", "0/5", "60 per minute"):
        assert text in row
    assert cli("limits", "pause", "key", "tenant-7", "--until", "30m", "--json").json["status"] == "paused"
    assert cli("limits", "resume", "key", "tenant-7", "--json").json["status"] == "open"
    assert "0/5" in cli("limits", "show", "key", "tenant-7").out
    assert cli("limits", "remove", "key", "tenant-7").out == "tenant-7 removed\n"
    assert cli("limits", "list", "--json").json == {"limits": []}
    assert cli("limits", "show", "key", "tenant-7").code == 4


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["worker", "a", "--max-running", "1"], "scope"),
        (["key", "a"], "max_running"),
        (["key", "a", "--rate", "1", "--per", "week"], "per"),
    ],
)
def test_a_bad_limit_is_refused(cli: Any, argv: list[str], field: str) -> None:
    refused = cli("limits", "set", *argv)
    assert refused.code == 2
    assert refused.err.startswith(f"error: {field}:")


def test_why_and_get_say_which_limit_a_job_waits_for(cli: Any, work: Any) -> None:
    cli("limits", "set", "key", "k", "--max-running", "1")
    first = cli("submit", "chat", "--limit-key", "k", "--cost", "3").out.strip()
    second = cli("submit", "chat", "--limit-key", "k").out.strip()
    assert cli("get", first, "--json").json["cost"] == 3
    assert work.value("select count(*) from queue_pg.claim('w', array['default'], max_jobs => 5)") == 1
    told = cli("why", second).out
    assert told.startswith("limit_full: Key k lets 1 run at once")
    assert first in told
    assert "limit_full" in cli("get", second).out
    assert cli("get", second, "--json").json["waiting"]["reason"] == "limit_full"


def test_a_share_is_set_and_shown(cli: Any) -> None:
    made = cli("limits", "set", "queue", "default", "--weight", "2.5", "--ageing", "10m", "--json").json
    assert (made["weight"], made["ageing_seconds"]) == (2.5, 600)
    row = cli("limits").out.splitlines()[1]
    assert "2.5" in row
    assert "10 min" in row
    assert "10 min" in cli("limits", "show", "queue", "default").out
    for argv, field in ((["key", "a", "--weight", "0"], "weight"), (["key", "a", "--ageing", "1m"], "ageing")):
        refused = cli("limits", "set", *argv)
        assert refused.code == 2
        assert refused.err.startswith(f"error: {field}:")


def test_what_makes_jobs_carries_key_and_cost(cli: Any, work: Any) -> None:
    terms = ("--limit-key", "tenant-7", "--cost", "3")
    made = cli("schedules", "add", "s", "chat", "--every", "1m", *terms)
    assert made.code == 0, made.err
    found = cli("schedules", "show", "s", "--json").json
    assert (found["limit_key"], found["cost"]) == ("tenant-7", 3)
    assert "tenant-7" in cli("schedules", "show", "s").out
    job = cli("schedules", "run", "s").out.strip()
    assert cli("get", job, "--json").json["limit_key"] == "tenant-7"
    cli(
        "templates",
        "put",
        "t",
        "chat",
        "--variables",
        '{"user": "string"}',
        "--limit-key",
        "u:{{ variables.user }}",
        "--cost",
        "2",
    )
    assert "u:{{ variables.user }}" in cli("templates", "show", "t").out
    made = cli("templates", "submit", "t", "--var", "user=ann", "--json").json
    assert (made["limit_key"], made["cost"]) == ("u:ann", 2)
    made = cli("templates", "submit", "t", "--var", "user=ann", *terms, "--json").json
    assert (made["limit_key"], made["cost"]) == ("tenant-7", 3)
    assert cli("schedules", "add", "s", "chat", "--every", "1m", "--limit-key", "").err.startswith("error: limit_key:")


def test_doctor_finds_and_mends_a_count_that_is_wrong(cli: Any, work: Any) -> None:
    cli("limits", "set", "key", "k", "--max-running", "5")
    cli("submit", "chat", "--limit-key", "k")
    work.claim()
    found = {item["check"]: item for item in cli("doctor", "--json").json["checks"]}
    assert found["limits"]["status"] == "ok"
    work.database.execute("update queue_pg.limits set running = 5")
    shown = cli("doctor", "--json")
    assert shown.code == 1
    found = {item["check"]: item for item in shown.json["checks"]}
    assert found["limits"]["status"] == "fail"
    assert "key k of default counts 5, 1 run" in found["limits"]["message"]
    assert "doctor --fix" in found["limits"]["hint"]
    assert work.value("select running from queue_pg.limits") == 5
    fixed = cli("doctor", "--fix", "--json")
    assert fixed.code == 0
    found = {item["check"]: item for item in fixed.json["checks"]}
    assert (found["limits"]["status"], found["limits"]["message"]) == (
        "ok",
        "counted anew: key k of default counted 5, 1 run",
    )
    assert work.value("select running from queue_pg.limits") == 1


def test_why_tells_of_a_locked_row(cli: Any, work: Any, dsn: str) -> None:
    work.value("select queue_pg.register_worker('w', 'h', 1, '0', array['default'], array['chat'], 2)")
    job = cli("submit", "chat").out.strip()
    with psycopg.connect(dsn) as other:
        other.execute("select from queue_pg.jobs for update")
        assert cli("why", job).out.startswith("locked: A transaction has locked its row: pid ")
        assert cli("get", job, "--json").json["waiting"]["reason"] == "locked"
