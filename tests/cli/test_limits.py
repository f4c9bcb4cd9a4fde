"""`limits`, and why a job waits."""

from __future__ import annotations

from typing import Any

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
