"""`queue-pg attempts`."""

from __future__ import annotations

from typing import Any

import pytest

ABSENT = "018f0000-0000-7000-8000-000000000000"


@pytest.fixture
def tried(work: Any) -> str:
    """A job that has failed once, was released, and runs."""
    work.value("select queue_pg.submit('chat')")
    job, token = work.claim()
    error = '{"code": "up", "message": "no\\u001b[31m luck"}'
    work.value("select queue_pg.fail(%s, %s, %s, delay => '0')", job, token, error)
    job, token = work.claim()
    work.value("select queue_pg.release(%s, %s)", job, token)
    work.claim()
    return str(job)


def test_for_people(cli: Any, tried: str) -> None:
    shown = cli("attempts", tried)
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0].split() == ["try", "worker", "started", "waited", "ran", "outcome", "again", "at", "error"]
    assert [line.split()[:2] for line in lines[1:]] == [["1", "w"], ["2", "w"], ["2", "w"]]
    for line, word in zip(lines[1:], ("failed", "released", "running"), strict=True):
        assert word in line.split()
    assert "up: no" in lines[1]
    assert "\x1b" not in shown.out


def test_for_programs(cli: Any, tried: str) -> None:
    page = cli("attempts", tried, "--json").json
    assert [each["outcome"] for each in page["attempts"]] == ["failed", "released", "running"]
    assert (page["forgotten_to"], page["next_after"]) == (None, None)
    first = cli("attempts", tried, "--json", "--limit", "1").json
    rest = cli("attempts", tried, "--json", "--after", str(first["next_after"])).json
    assert [each["seq"] for each in first["attempts"] + rest["attempts"]] == [each["seq"] for each in page["attempts"]]


def test_more_and_forgotten_are_said(cli: Any, work: Any, tried: str) -> None:
    shown = cli("attempts", tried, "--limit", "2")
    assert (len(shown.out.splitlines()), shown.err) == (3, f"More: queue-pg attempts {tried} --after 5\n")
    work.value("with gone as (delete from queue_pg.job_events where seq <= 3 returning 1) select count(*) from gone")
    shown = cli("attempts", tried)
    assert len(shown.out.splitlines()) == 3
    assert shown.err == "Events up to number 3 are forgotten; attempts that ended by then are missing.\n"


def test_none_yet(cli: Any, work: Any) -> None:
    job = work.value("select queue_pg.submit('chat')")
    shown = cli("attempts", str(job))
    assert (shown.code, shown.out, shown.err.strip()) == (0, "", "No attempts.")


@pytest.mark.parametrize(
    "arguments", [(ABSENT,), ("nonsense",), (ABSENT, "--limit", "0"), (ABSENT, "--after", "-1"), ()], ids=str
)
def test_wrong_input(cli: Any, arguments: tuple[str, ...]) -> None:
    shown = cli("attempts", *arguments)
    assert shown.code != 0
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
