"""`get`, `wait`, `list`, `cancel`, `retry`, `why`."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

ABSENT = "018f0000-0000-7000-8000-000000000000"


def submit(work: Any, *, kind: str = "chat", payload: str = "{}", queue: str = "default") -> UUID:
    found: UUID = work.value("select queue_pg.submit(%s, %s::jsonb, queue => %s)", kind, payload, queue)
    return found


def test_a_job_as_json_has_the_fields_of_the_http_api(cli: Any, work: Any) -> None:
    submit(work, payload='{"prompt": "Hello"}')
    job_id = work.complete('{"text": "Hi"}')
    job = cli("get", str(job_id), "--json").json
    assert job.keys() >= {
        *("id", "kind", "queue", "state", "priority", "payload", "result", "error", "attempt", "max_attempts"),
        *("created_at", "run_at", "started_at", "finished_at", "timeout_seconds", "tags", "metadata"),
    }
    assert (job["id"], job["state"], job["payload"], job["result"]) == (
        *(str(job_id), "completed"),
        *({"prompt": "Hello"}, {"text": "Hi"}),
    )
    assert job["finished_at"].endswith("Z")


def test_a_job_for_people(cli: Any, work: Any) -> None:
    submit(work, payload='{"prompt": "Hello"}')
    job_id = work.fail('{"code": "boom", "message": "it broke"}')
    shown = cli("get", str(job_id)).out
    for text in (str(job_id), "failed", '"prompt": "Hello"', '"message": "it broke"'):
        assert text in shown


def test_stored_text_does_not_drive_the_terminal(cli: Any, work: Any) -> None:
    evil = "\x1b]0;owned\x07\x9b31m"
    job_id = work.value(
        "select queue_pg.submit('chat', jsonb_build_object('p', %s::text), queue => %s, tags => array[%s])",
        evil,
        evil,
        evil,
    )
    for argv in (["get", str(job_id)], ["get", str(job_id), "--json"], ["why", str(job_id)], ["queues"], ["stats"]):
        shown = cli(*argv)
        assert shown.code == 0
        assert not set(shown.out + shown.err) & {"\x1b", "\x07", "\x9b"}
    assert cli("get", str(job_id), "--json").json["payload"] == {"p": evil}


@pytest.mark.parametrize("payload", ['{"n": 1e5000}', "[" * 3000 + "]" * 3000], ids=["number", "depth"])
def test_a_payload_that_python_cannot_hold_is_shown_as_text(cli: Any, work: Any, payload: str) -> None:
    job_id = submit(work, payload=payload)
    shown = cli("get", str(job_id), "--json")
    assert shown.code == 0
    assert shown.json["payload"].keys() == {"unreadable", "text"}
    assert "unreadable" in cli("get", str(job_id)).out
    assert cli("list").ids == [str(job_id)]


def test_error_and_metadata_that_python_cannot_hold(cli: Any, work: Any) -> None:
    job_id = work.value("select queue_pg.submit('chat', metadata => '{\"n\": 1e5000}')")
    work.fail('{"code": "boom", "n": 1e5000}')
    assert "unreadable" in cli("get", str(job_id)).out
    waited = cli("wait", str(job_id))
    assert (waited.code, waited.out) == (1, f"{job_id} failed\n")
    assert "unreadable" in waited.err


@pytest.mark.parametrize("command", ["get", "wait", "cancel", "retry", "why"])
def test_an_unknown_id_is_exit_code_4(cli: Any, command: str) -> None:
    refused = cli(command, ABSENT)
    assert refused.code == 4
    assert (refused.out, refused.err.count("\n")) == ("", 1)
    assert ABSENT in refused.err
    assert json.loads(cli(command, ABSENT, "--json").err)["error"]["code"] == "job_not_found"


def test_waiting_for_several_jobs(cli: Any, work: Any) -> None:
    for _ in range(2):
        submit(work)
    good, bad = work.complete(), work.fail()
    assert cli("wait", str(good)).code == 0
    shown = cli("wait", str(good), str(bad))
    assert shown.code == 1
    assert shown.out == f"{good} completed\n{bad} failed\n"
    assert "boom: it broke" in shown.err
    states = [json.loads(line)["state"] for line in cli("wait", str(good), str(bad), "--json").out.splitlines()]
    assert states == ["completed", "failed"]


def test_waiting_for_several_does_all_it_can(cli: Any, work: Any) -> None:
    for _ in range(2):
        submit(work)
    good, bad, live = work.complete(), work.fail(), submit(work)
    shown = cli("wait", "x", ABSENT, str(live), str(good), str(bad), "--timeout", "50ms")
    assert shown.code == 2, "the first refusal decides"
    assert shown.out == f"{good} completed\n{bad} failed\n"
    assert [line.startswith("error: ") for line in shown.err.splitlines()] == [True, True, True, False]
    assert f"{live} is still queued after 0.05 s" in shown.err
    assert cli("wait", ABSENT, "x", str(good)).code == 4
    late = cli("wait", str(live), str(good), "--timeout", "0", "--json")
    assert (late.code, json.loads(late.out)["state"]) == (1, "completed")
    assert json.loads(late.err)["error"]["code"] == "wait_timeout"


def test_waiting_gives_up_in_time(cli: Any, work: Any) -> None:
    job_id = submit(work)
    refused = cli("wait", str(job_id), "--timeout", "50ms")
    assert refused.code == 1
    assert "is still queued" in refused.err


def test_waiting_ends_with_the_job(program: Any, work: Any) -> None:
    job_id = submit(work)
    waiting = program.start("wait", str(job_id), "--timeout", "1m")
    work.until("select watched from queue_pg.jobs where id = %s", job_id)
    work.complete()
    out, _ = waiting.communicate(timeout=30)
    assert (waiting.returncode, out) == (0, f"{job_id} completed\n")


def test_ids_come_from_standard_input_too(cli: Any, work: Any) -> None:
    ids = [str(submit(work)) for _ in range(3)]
    done = cli("cancel", "-", stdin="\n".join(ids).encode())
    assert done.out == "".join(f"{job_id} cancelled\n" for job_id in ids)


def test_listing_is_one_id_per_line_in_a_pipe(cli: Any, work: Any) -> None:
    ids = [str(submit(work)) for _ in range(3)]
    assert cli("list").ids == ids[::-1]
    assert (cli("list", "--state", "running").out, cli("list", "--state", "running").code) == ("", 0)


def test_listing_filters(cli: Any, work: Any) -> None:
    gpu = str(submit(work, queue="gpu"))
    other = str(submit(work, kind="other"))
    tagged = str(work.value("select queue_pg.submit('chat', tags => array['t'])"))
    assert cli("list", "--queue", "gpu").ids == [gpu]
    assert cli("list", "--kind", "other").ids == [other]
    assert cli("list", "--tag", "t").ids == [tagged]
    done = str(work.complete())
    assert cli("list", "--state", "completed").ids == [done]


def test_listing_goes_on_where_a_page_ended(cli: Any, work: Any) -> None:
    ids = [str(submit(work)) for _ in range(5)]
    page = cli("list", "--limit", "3", "--json").json
    assert [job["id"] for job in page["jobs"]] == ids[:1:-1]
    rest = cli("list", "--limit", "3", "--cursor", page["next_cursor"])
    assert rest.ids == ids[1::-1]
    assert "--cursor" in cli("list", "--limit", "3").err
    assert cli("list", "--cursor", "nonsense").code == 2


def test_cancelling_what_has_ended_is_exit_code_6(cli: Any, work: Any) -> None:
    submit(work)
    done = str(work.complete())
    refused = cli("cancel", done)
    assert refused.code == 6
    assert "completed" in refused.err
    assert json.loads(cli("cancel", done, "--json").err)["error"]["state"] == "completed"


def test_one_refusal_does_not_keep_the_others_from_being_done(cli: Any, work: Any) -> None:
    submit(work)
    done = str(work.complete())
    live = str(submit(work))
    mixed = cli("cancel", done, live, "--reason", "no longer needed")
    assert mixed.code == 6
    assert mixed.out == f"{live} cancelled\n"
    assert done in mixed.err


def test_retrying(cli: Any, work: Any) -> None:
    live = str(submit(work))
    assert cli("retry", live).code == 6
    failed = str(work.fail())
    assert cli("retry", failed, "--max-attempts", "9").out == f"{failed} queued\n"
    assert cli("get", failed, "--json").json["max_attempts"] == 9


def test_why_a_job_does_not_run(cli: Any, work: Any) -> None:
    job_id = str(submit(work))
    assert "No live worker" in cli("why", job_id).out
    found = cli("why", job_id, "--json").json
    assert (found["state"], found["reasons"][0]["reason"]) == ("queued", "no_worker")
    cli("queues", "pause", "default")
    assert "paused" in cli("why", job_id).out


def test_another_priority(cli: Any, work: Any) -> None:
    first, second = str(submit(work)), str(submit(work))
    both = cli("reprioritize", first, second, "--priority", "high")
    assert both.err == ""
    assert both.out == f"{first} queued\n{second} queued\n"
    assert cli("get", first, "--json").json["priority"] == 10
    assert cli("reprioritize", second, "--priority", "-5", "--json").json["priority"] == -5
    assert cli("reprioritize", second, "--priority", "urgent").code == 2
    assert cli("reprioritize", second).code == 2
    done = str(work.complete())
    assert [cli("reprioritize", job, "--priority", "1").code for job in (done, ABSENT, "x")] == [6, 4, 2]
