"""`submit`: every option arrives, many at once are all or nothing, mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest


def lines(*jobs: Any) -> bytes:
    return b"".join(json.dumps(job).encode() + b"\n" for job in jobs)


def test_the_id_is_all_that_is_printed(cli: Any, work: Any) -> None:
    done = cli("submit", "chat", '{"prompt": "Hello"}')
    assert (done.code, done.err) == (0, "")
    assert work.value("select payload->>'prompt' from queue_pg.jobs where id = %s", UUID(done.out.strip())) == "Hello"


def test_every_option_arrives(cli: Any) -> None:
    done = cli(
        *("submit", "chat", "{}", "--queue", "gpu", "--priority", "high", "--delay", "1h", "--max-attempts", "7"),
        *("--timeout", "5m", "--expires-at", "2999-01-01T00:00:00Z", "--unique-key", "k1", "--tag", "a", "--tag", "b"),
        *("--metadata", '{"user": "ada"}', "--json"),
    )
    job = done.json
    assert {name: job[name] for name in ("queue", "priority", "max_attempts", "unique_key", "tags", "metadata")} == {
        "queue": "gpu",
        "priority": 10,
        "max_attempts": 7,
        "unique_key": "k1",
        "tags": ["a", "b"],
        "metadata": {"user": "ada"},
    }
    assert (job["state"], job["timeout_seconds"], job["expires_at"]) == ("scheduled", 300.0, "2999-01-01T00:00:00Z")


def test_a_time_to_run_at(cli: Any) -> None:
    job = cli("submit", "chat", "--run-at", "2999-01-31T10:00:00+01:00", "--json").json
    assert (job["state"], job["run_at"]) == ("scheduled", "2999-01-31T09:00:00Z")


def test_the_payload_can_come_from_a_file_or_a_pipe(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text('{"prompt": "from a file"}')
    assert cli("submit", "chat", "@body.json", "--json").json["payload"] == {"prompt": "from a file"}
    piped = cli("submit", "chat", "-", "--json", stdin='{"prompt": "Grüße"}'.encode())
    assert piped.json["payload"] == {"prompt": "Grüße"}


def test_a_byte_order_mark_is_passed_over(cli: Any, tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "jobs.jsonl").write_bytes(mark + lines({"kind": "chat"}, {"kind": "chat"}))
    assert len(cli("submit", "--jsonl", "jobs.jsonl").ids) == 2
    assert len(cli("submit", "chat", "--jsonl", "-", stdin=mark + b"\r\n{}\r\n").ids) == 1
    assert cli("submit", "chat", "-", "--json", stdin=mark + b'{"n": 1}').json["payload"] == {"n": 1}
    refused = cli("submit", "--jsonl", "-", stdin=lines({"kind": "chat"}) + mark + lines({"kind": "chat"}))
    assert (refused.code, "line 2" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ("{prompt: 1}", "not JSON"),
        ("@absent.json", "No such file"),
        ('{"n": NaN}', "payload"),
        ('{"n": 1e999}', "payload"),
        ('{"text": "\\u0000"}', "payload.text"),
        ('{"text": "\\ud800"}', "payload.text"),
        ('{"a": 1, "a": 2}', "payload"),
        ("[" * 100 + "]" * 100, "payload"),
    ],
)
def test_a_payload_that_cannot_be_stored_is_refused(cli: Any, work: Any, payload: str, said: str) -> None:
    refused = cli("submit", "chat", payload)
    assert refused.code == 2
    assert said in refused.err
    assert refused.err.count("\n") == 1
    assert work.value("select count(*) from queue_pg.jobs") == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--delay", "1s", "--run-at", "2999-01-01T00:00:00Z"], "delay"),
        (["--metadata", "[]"], "metadata"),
        (["--expires-at", "2999-01-01"], "expires_at"),
        (["--timeout", "0"], "timeout"),
        (["--timeout", "900d"], "timeout"),
        (["--queue", ""], "queue"),
        (["--unique-key", "k" * 256], "unique_key"),
        (["--tag", ""] * 65, "tags"),
        (["--queue", "q\x1b[31m" * 60], "queue"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_wrong_option_names_its_field(cli: Any, work: Any, options: list[str], field: str) -> None:
    refused = cli("submit", "chat", "{}", *options)
    assert refused.code == 2, refused
    assert field in refused.err
    assert refused.err.count("\n") == 1
    assert "\x1b" not in refused.err
    assert work.value("select count(*) from queue_pg.jobs") == 0


def test_the_same_key_is_the_same_job_and_another_body_a_conflict(cli: Any) -> None:
    first = cli("submit", "chat", '{"n": 1}', "--unique-key", "k")
    assert cli("submit", "chat", '{"n": 1}', "--unique-key", "k").ids == first.ids
    refused = cli("submit", "chat", '{"n": 2}', "--unique-key", "k")
    assert refused.code == 6
    assert first.ids[0] in refused.err


def test_a_mistyped_kind_is_refused_with_the_right_one(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = cli("submit", "chatt")
    assert refused.code == 2
    assert "Did you mean 'chat'?" in refused.err
    assert json.loads(cli("submit", "chatt", "--json").err)["error"]["suggestions"] == ["chat"]
    assert cli("submit", "chatt", "--any-kind").code == 0
    assert cli("submit", "entirely-different").code == 0, "its worker may come later"
    monkeypatch.setenv("UNKNOWN_KINDS", "refuse")
    assert cli("submit", "entirely-different").code == 2
    monkeypatch.setenv("UNKNOWN_KINDS", "accept")
    assert cli("submit", "chatt").code == 0


def test_a_kind_that_no_live_worker_of_the_queue_knows_is_refused(cli: Any, work: Any) -> None:
    work.value("select queue_pg.register_worker('w', 'h', 1, '1', array['gpu'], array['chat'], 1)")
    assert cli("submit", "entirely-different", "--queue", "gpu").code == 2
    assert cli("submit", "entirely-different", "--queue", "other").code == 0


def test_many_lines_become_jobs_in_their_order(cli: Any, work: Any, tmp_path: Path) -> None:
    jobs = [{"kind": "chat", "payload": {"n": n}, "priority": "low" if n % 2 else 3} for n in range(1200)]
    (tmp_path / "jobs.jsonl").write_bytes(lines(*jobs))
    done = cli("submit", "--jsonl", "jobs.jsonl", "--tag", "bulk")
    assert done.code == 0
    assert "1,200 job(s) submitted" in done.err
    stored = work.database.execute(
        "select n, payload, priority, tags"
        " from unnest(%s::uuid[]) with ordinality u (id, n) join queue_pg.jobs using (id) order by n",
        [done.ids],
    ).fetchall()
    assert [(row[1]["n"], row[2], row[3]) for row in stored] == [
        (n, -10 if n % 2 else 3, ["bulk"]) for n in range(1200)
    ]


def test_a_line_overrides_the_options(cli: Any) -> None:
    body = lines(
        {"kind": "chat", "queue": "own", "delay_seconds": 60}, {"kind": "chat"}, {"kind": "chat", "payload": None}
    )
    done = cli("submit", "--jsonl", "-", "--queue", "given", "--run-at", "2999-01-01T00:00:00Z", "--json", stdin=body)
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [(answer["line"], answer["created"]) for answer in answers] == [(1, True), (2, True), (3, True)]
    jobs = [cli("get", answer["id"], "--json").json for answer in answers]
    assert [job["queue"] for job in jobs] == ["own", "given", "given"]
    assert [job["run_at"][:4] for job in jobs][1:] == ["2999", "2999"]
    assert jobs[0]["run_at"][:4] != "2999"
    assert [job["payload"] for job in jobs] == [{}, {}, {}]


def test_with_a_kind_each_line_is_a_payload(cli: Any, work: Any) -> None:
    done = cli("submit", "chat", "--jsonl", "-", stdin=b'{"prompt": "a"}\n\n  \n["b"]\n"c"')
    assert done.code == 0
    payloads = [work.value("select payload from queue_pg.jobs where id = %s::uuid", job_id) for job_id in done.ids]
    assert payloads == [{"prompt": "a"}, ["b"], "c"]


def test_a_unique_key_that_is_there_already_is_told(cli: Any) -> None:
    body = lines({"kind": "chat", "unique_key": "a"}, {"kind": "chat", "unique_key": "b"})
    cli("submit", "--jsonl", "-", stdin=lines({"kind": "chat", "unique_key": "a"}))
    done = cli("submit", "--jsonl", "-", stdin=body)
    assert "1 job(s) submitted; 1 were there already" in done.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 700: line: is not JSON"),
        (b"[]", "line 700: line: must be a JSON object"),
        (b"{}", "line 700: kind: missing"),
        (b'{"kind": "chat", "priorty": 1}', "line 700: priorty: is no field of a job"),
        (b'{"kind": "chat", "priority": "urgent"}', "line 700: priority: "),
        (b'{"kind": "chat", "priority": 99999}', "line 700: priority: "),
        (b'{"kind": "chat", "run_at": "2026-01-01T00:00:00"}', "line 700: run_at: "),
        (b'{"kind": "chat", "tags": [1]}', "line 700: tags.0: "),
        (b'{"kind": "chat", "metadata": []}', "line 700: metadata: "),
        (b'{"kind": "chat", "delay_seconds": -1}', "line 700: delay_seconds: "),
        (b'{"kind": "chat", "max_attempts": 0}', "line 700: max_attempts: "),
        (b'{"kind": "chat", "queue": ""}', "line 700: queue: "),
        (b'{"kind": "chat", "payload": {"n": 1e999}}', "line 700: "),
        (b'{"kind": "chatt"}', "line 700: kind: "),
        (b'{"kind": "chat", "payload": "\xff"}', "line 700: line: is not UTF-8"),
    ],
    ids=lambda value: value.decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_one_bad_line_is_named_and_nothing_is_stored(cli: Any, work: Any, line: bytes, said: str) -> None:
    good = lines({"kind": "chat"})
    refused = cli("submit", "--jsonl", "-", stdin=good * 699 + line + b"\n" + good * 10)
    assert refused.code == 2
    assert refused.err.startswith(f"error: {said}"), refused.err
    assert "Nothing was submitted." in refused.err
    assert (refused.out, refused.err.count("\n")) == ("", 1)
    assert work.value("select count(*) from queue_pg.jobs") == 0


def test_the_second_of_two_bodies_with_one_key_is_named(cli: Any, work: Any) -> None:
    body = lines(
        {"kind": "chat"}, {"kind": "chat", "unique_key": "k"}, {"kind": "chat", "unique_key": "k", "payload": 1}
    )
    refused = cli("submit", "--jsonl", "-", stdin=body)
    assert refused.code == 6
    assert "line 3: unique_key: 'k'" in refused.err
    assert work.value("select count(*) from queue_pg.jobs") == 0


@pytest.mark.parametrize("options", [["chat", "{}"], ["--unique-key", "k"], ["--wait"]], ids=" ".join)
def test_what_cannot_go_with_lines(cli: Any, options: list[str]) -> None:
    refused = cli("submit", *options, "--jsonl", "-")
    assert refused.code == 2
    assert "cannot be combined with --jsonl" in refused.err


def test_a_missing_file_is_named(cli: Any) -> None:
    refused = cli("submit", "--jsonl", "absent.jsonl")
    assert refused.code == 2
    assert "absent.jsonl" in refused.err


def test_waiting_prints_the_result(program: Any, work: Any) -> None:
    waiting = program.start("submit", "chat", "{}", "--wait")
    work.until("select bool_or(watched) from queue_pg.jobs")
    work.complete('{"text": "fine"}')
    out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 0
    assert json.loads(out) == {"text": "fine"}
    assert "submitted" in err


def test_waiting_for_a_job_that_fails_is_exit_code_1(program: Any, work: Any) -> None:
    waiting = program.start("submit", "chat", "{}", "--wait")
    work.until("select bool_or(watched) from queue_pg.jobs")
    work.fail('{"code": "boom", "message": "bad \\u001b[31m news"}')
    out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out) == (1, "")
    assert "boom: bad \\x1b[31m news" in err
