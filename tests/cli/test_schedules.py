"""`schedules`."""

from __future__ import annotations

import json
from typing import Any

import pytest


def test_made_listed_shown_and_removed(cli: Any, work: Any) -> None:
    assert "queue-pg schedules add" in cli("schedules").err
    made = cli(
        "schedules", "add", "report", "chat", '{"prompt": "hi"}', "--cron", "0 9 * * mon-fri", "--time-zone",
        "Europe/Berlin", "--missed", "all", "--queue", "texts", "--priority", "high", "--timeout", "2m", "--tag", "x",
    )  # fmt: skip
    assert made.code == 0
    assert len(made.out.splitlines()) == 5
    row = cli("schedules").out.splitlines()[1]
    assert row.split()[:6] == ["report", "0", "9", "*", "*", "mon-fri"]
    assert "(Europe/Berlin)" in row
    [found] = cli("schedules", "list", "--json").json["schedules"]
    assert (found["queue"], found["priority"], found["timeout_seconds"], found["tags"]) == ("texts", 10, 120, ["x"])
    assert (found["payload"], found["missed"]) == ({"prompt": "hi"}, "all")
    shown = cli("schedules", "show", "report").out
    for text in ("0 9 * * mon-fri (Europe/Berlin)", "next fires", "texts", "all"):
        assert text in shown
    assert cli("schedules", "show", "report", "--json").json == found
    assert cli("schedules", "remove", "report").out == "report removed\n"
    assert work.value("select count(*) from queue_pg.schedules") == 0


def test_paused_resumed_and_run(cli: Any, work: Any) -> None:
    cli("schedules", "add", "ping", "chat", "--every", "90s", "--jitter", "5s")
    assert cli("schedules", "pause", "ping").out == "ping paused\n"
    assert "paused" in cli("schedules").out
    job_id = cli("schedules", "run", "ping").out.strip()
    assert work.value("select metadata #>> '{schedule,name}' from queue_pg.jobs where id = %s", job_id) == "ping"
    assert cli("schedules", "resume", "ping", "--json").json["paused"] is False
    assert "every 1 min 30 s" in cli("schedules").out
    assert cli("schedules", "--json", "run", "ping").json["id"]


def test_adding_again_changes_it_unless_it_has_to_be_new(cli: Any, work: Any) -> None:
    cli("schedules", "add", "ping", "chat", "--every", "1m")
    assert cli("schedules", "add", "ping", "chat", "--at", "2999-01-01T00:00:00Z").code == 0
    refused = cli("schedules", "add", "ping", "chat", "--every", "1m", "--new")
    assert (refused.code, refused.out) == (6, "")
    assert "'ping' already" in refused.err
    assert work.value("select at is not null from queue_pg.schedules")


def test_when_it_would_fire(cli: Any) -> None:
    asked = ("schedules", "next", "30 2 * * *", "--time-zone", "Europe/Berlin", "--after", "2026-03-28T12:00:00Z")
    assert cli(*asked, "--count", "2", "--json").json == {
        "next_fires": ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
    }
    assert len(cli(*asked).out.splitlines()) == 5
    assert len(cli("schedules", "next", "--every", "1h").out.splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["add", "x", "chat"], 2, "exactly one"),
        (["add", "x", "chat", "--every", "1m", "--cron", "@daily"], 2, "exactly one"),
        (["add", "x", "chat", "--cron", "0 25 * * *"], 2, "cron: its hour '25'"),
        (["add", "x", "chat", "--cron", "@daily", "--time-zone", "Nowhere/X"], 2, "time_zone"),
        (["add", "x", "chat", "--every", "soon"], 2, "every"),
        (["add", "x", "chat", "--every", "100ms"], 2, "every"),
        (["add", "x", "chat", "--at", "2030-01-01"], 2, "at"),
        (["add", "x", "chat", "--every", "1m", "--missed", "twice"], 2, "missed"),
        (["add", "a/b", "chat", "--every", "1m"], 2, "name"),
        (["add", "x", "chatt", "--every", "1m"], 2, "Did you mean 'chat'"),
        (["next", "nonsense"], 2, "cron"),
        (["next"], 2, "exactly one"),
        (["show", "nothing"], 4, "No schedule 'nothing'"),
        (["remove", "nothing"], 4, "No schedule 'nothing'"),
        (["pause", "nothing"], 4, "No schedule 'nothing'"),
        (["run", "nothing"], 4, "No schedule 'nothing'"),
    ],
)
def test_refusals(cli: Any, work: Any, arguments: list[str], code: int, words: str) -> None:
    refused = cli("schedules", *arguments)
    assert (refused.code, refused.out) == (code, "")
    assert words in refused.err
    assert len(refused.err.splitlines()) == 1
    assert work.value("select count(*) from queue_pg.schedules") == 0


def test_a_lost_fire_is_shown(cli: Any, work: Any) -> None:
    cli("schedules", "add", "ping", "chat", "--every", "1m")
    work.database.execute('update queue_pg.schedules set error = \'{"code": "23514", "message": "no room"}\'')
    assert "no room" in cli("schedules").out


def test_lines_take_scheduled_for(cli: Any, work: Any) -> None:
    line = json.dumps({"kind": "chat", "scheduled_for": "2999-01-01T00:00:00Z"})
    assert cli("submit", "--jsonl", "-", stdin=line.encode()).code == 0
    assert work.value("select run_at = '2999-01-01Z' from queue_pg.jobs")
    both = json.dumps({"kind": "chat", "scheduled_for": "2999-01-01T00:00:00Z", "run_at": "2999-01-01T00:00:00Z"})
    refused = cli("submit", "--jsonl", "-", stdin=both.encode())
    assert refused.code == 2
    assert "line 1: scheduled_for" in refused.err
