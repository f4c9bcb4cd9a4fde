"""`steps`, `signal`, `rerun`, and `retry --fresh`."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest

ABSENT = "018f0000-0000-7000-8000-000000000000"


@pytest.fixture
def waiting(work: Any) -> UUID:
    """A job that has finished a step and waits for an event."""
    work.value('select queue_pg.submit(\'chat\', \'{"prompt": "x", "deep": {"a": 1}}\')')
    job, token = work.claim()
    work.value("""select queue_pg.save_step(%s, %s, 'draft', '{"n": 1}')""", job, token)
    work.value("select queue_pg.wait_for_event(%s, %s, 'review')", job, token)
    work.value("select queue_pg.wait(%s, %s)", job, token)
    return UUID(str(job))


def test_steps_for_people_and_programs(cli: Any, waiting: UUID) -> None:
    shown = cli("steps", str(waiting))
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0].split()[:4] == ["step", "type", "state", "try"]
    assert lines[1].split()[:4] == ["draft", "step", "done", "1"]
    assert '{"n": 1}' in lines[1]
    assert lines[2].split()[:4] == ["review", "event", "waits", "1"]
    steps = cli("steps", str(waiting), "--json").json["steps"]
    assert [(step["name"], step["result"]) for step in steps] == [("draft", {"n": 1}), ("review", None)]


def test_a_job_without_steps(cli: Any, work: Any) -> None:
    job = work.value("select queue_pg.submit('chat')")
    shown = cli("steps", str(job))
    assert (shown.code, shown.out, shown.err.strip()) == (0, "", "No steps.")


def test_signal(cli: Any, work: Any, waiting: UUID) -> None:
    assert cli("signal", str(waiting), "review", '{"ok": true}').out == f"{waiting} review signalled\n"
    assert cli("signal", str(waiting), "review").out == f"{waiting} review was signalled before\n"
    assert cli("signal", str(waiting), "review", "--json").json == {
        "id": str(waiting),
        "name": "review",
        "created": False,
    }
    assert work.value("select state::text from queue_pg.job(%s)", waiting) == "queued"
    assert work.value("select payload from queue_pg.job_signals") == {"ok": True}


def test_a_signal_s_payload_from_standard_input(cli: Any, work: Any, waiting: UUID) -> None:
    assert cli("signal", str(waiting), "review", "-", stdin=b"[1, 2]").code == 0
    assert work.value("select payload from queue_pg.job_signals") == [1, 2]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["signal", ABSENT, "go"], 4, "No job"),
        (["signal", "x", "go"], 2, "not a job id"),
        (["signal", "JOB", ""], 2, "name: must have 1 to 200 characters"),
        (["signal", "JOB", "go", "{"], 2, "is not JSON"),
        (["steps", ABSENT], 4, "No job"),
        (["rerun", ABSENT], 4, "No job"),
        (["rerun", "JOB", "--set", "model"], 2, "is not KEY=VALUE"),
        (["rerun", "JOB", "--set", "=1"], 2, "is not KEY=VALUE"),
        (["rerun", "JOB", "--set", "a..b=1"], 2, "is not KEY=VALUE"),
        (["rerun", "JOB", "--set", "a=1", "--set", "a.b=2"], 2, "contradicts"),
        (["rerun", "JOB", "--set", "a.b=1", "--set", "a=2"], 2, "contradicts"),
        (["rerun", "JOB", "--set", "a=1", "--payload", "{}"], 2, "exclude each other"),
        (["rerun", "JOB", "--payload", "{"], 2, "is not JSON"),
        (["rerun", "JOB", "--priority", "urgent"], 2, "not a priority"),
        (["rerun", "JOB", "--delay", "soon"], 2, "not a duration"),
        (["rerun", "JOB", "--queue", ""], 2, "queue"),
        (["list", "--rerun-of", "x"], 2, "not a job id"),
    ],
)
def test_wrong_input(cli: Any, waiting: UUID, argv: list[str], code: int, said: str) -> None:
    shown = cli(*(str(waiting) if word == "JOB" else word for word in argv))
    assert shown.code == code, shown.err
    assert said in shown.err


def test_a_signal_to_an_ended_job_is_a_conflict(cli: Any, waiting: UUID) -> None:
    cli("cancel", str(waiting))
    shown = cli("signal", str(waiting), "review")
    assert (shown.code, "cancelled" in shown.err) == (6, True)


def test_rerun_with_changes(cli: Any, work: Any, waiting: UUID) -> None:
    done = cli(
        *("rerun", str(waiting), "--model", "large", "--set", "temperature=0.2", "--set", "deep.a=null"),
        *("--set", 'deep.b={"c": "d"}', "--set", "prompt=two words", "--queue", "q", "--priority", "high"),
        *("--delay", "1h", "--max-attempts", "9", "--timeout", "5s", "--tag", "t"),
    )
    assert done.code == 0, done.err
    [job_id] = done.ids
    job = cli("get", job_id, "--json").json
    assert job["payload"] == {
        "prompt": "two words",
        "model": "large",
        "temperature": 0.2,
        "deep": {"b": {"c": "d"}},
    }
    assert (job["rerun_of"], job["state"], job["queue"], job["priority"]) == (str(waiting), "scheduled", "q", 10)
    assert (job["max_attempts"], job["timeout_seconds"], job["tags"]) == (9, 5, ["t"])
    assert re.search(rf"^rerun of +{waiting}$", cli("get", job_id).out, re.MULTILINE)
    assert cli("list", "--rerun-of", str(waiting)).ids == [job_id]


def test_rerun_with_another_payload(cli: Any, waiting: UUID) -> None:
    job = cli("rerun", str(waiting), "--payload", '{"prompt": "y"}', "--json").json
    assert (job["payload"], job["rerun_of"]) == ({"prompt": "y"}, str(waiting))


def test_retry_fresh(cli: Any, work: Any, waiting: UUID) -> None:
    for options, left in (([], 2), (["--fresh", "--max-attempts", "9"], 0)):
        cli("cancel", str(waiting))
        assert cli("retry", str(waiting), *options).out == f"{waiting} queued\n"
        assert work.value("select count(*) from queue_pg.job_steps") == left
    assert work.value("select max_attempts from queue_pg.jobs") == 9


def test_a_completed_job_is_not_retried(cli: Any, work: Any) -> None:
    work.value("select queue_pg.submit('chat')")
    job = work.complete()
    shown = cli("retry", str(job), "--max-attempts", "5")
    assert (shown.code, "completed" in shown.err) == (6, True)
