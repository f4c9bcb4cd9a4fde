"""`act` and `delete`."""

from __future__ import annotations

from typing import Any

import pytest

ABSENT = "018f0000-0000-7000-8000-000000000000"


def test_replay_what_failed(cli: Any, work: Any) -> None:
    [job] = cli("submit", "load", "--any-kind").ids
    work.fail()
    assert cli("list", "--error-code", "nothing").ids == []
    assert cli("act", "retry", "--state", "failed", "--dry-run").out == "1 job(s) match\n"
    assert cli("act", "retry", "--state", "failed", "--error-code", "nothing").out == "0 job(s) put back\n"
    assert cli("act", "retry", "--kind", "load", "--created-after", "2020-01-01T00:00:00Z").out == "1 job(s) put back\n"
    assert cli("get", job, "--json").json["state"] == "queued"
    assert cli("act", "reprioritize", "--all", "--priority", "high").out == "1 job(s) reprioritized\n"
    again = cli("act", "reprioritize", "--all", "--priority", "high")
    assert (again.out, again.err) == ("0 job(s) reprioritized\n", "1 skipped: same_priority\n")
    assert cli("act", "cancel", "--queue", "default", "--reason", "enough", "--json").json["changed"] == 1
    assert cli("act", "delete", "--all", "--yes").out == "1 job(s) deleted\n"
    assert cli("list").ids == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["act", "cancel"], "filter: is empty"),
        (["act", "explode", "--all"], "'explode' is not a action"),
        (["act", "cancel", "--all", "--queue", "q"], "filter.all"),
        (["act", "cancel", "--state", "failed"], "filter.state"),
        (["act", "cancel", "--created-after", "yesterday"], "created_after"),
        (["act", "cancel", "--batch", "x"], "filter.batch_id"),
        (["act", "reprioritize", "--all"], "priority"),
        (["act", "cancel", "--all", "--cursor", "x"], "cursor"),
    ],
)
def test_what_is_wrong_is_named(cli: Any, argv: list[str], said: str) -> None:
    result = cli(*argv)
    assert result.code == 2
    assert said in result.err


def test_deleting(cli: Any, work: Any) -> None:
    [first] = cli("submit", "load", "--any-kind").ids
    [second] = cli("submit", "load", "--any-kind").ids
    refused = cli("delete", first)
    assert (refused.code, "cancel it first" in refused.err) == (6, True)
    assert cli("delete", first, "--cancel").out == f"{first} deleted\n"
    assert cli("get", first).code == 4
    cli("cancel", second)
    several = cli("delete", ABSENT, second)
    assert (several.code, several.out) == (4, f"{second} deleted\n")
    assert cli("delete", "-", "--json", stdin=ABSENT.encode()).code == 4
