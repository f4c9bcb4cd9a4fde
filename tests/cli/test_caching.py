"""Results shared from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_the_same_work_is_answered(cli: Any, work: Any) -> None:
    submit = ("submit", "chat", '{"prompt": "Hello"}')
    first = cli(*submit, "--cache").out.strip()
    second = cli(*submit, "--cache-for", "1h").out.strip()
    assert cli("why", second).out == f"shared: Job {first} does the same work. [{first}]\n"
    claimed = "select queue_pg.complete(id, lease_token, '{\"text\": \"Hi\"}') from queue_pg.claim('w', '{default}')"
    assert work.value(claimed) == "completed"
    shown = cli("get", second).out
    assert "cached from" in shown
    assert first in shown
    # At once: nothing works here.
    third = cli(*submit, "--cache", "--wait", "--json")
    assert (third.code, third.json["state"], third.json["cached_from"]) == (0, "completed", first)
    assert json.loads(cli(*submit, "--cache", "--wait").out) == {"text": "Hi"}
    other = cli(*submit, "--cache-version", "2", "--json").json
    assert (other["state"], other["cached_from"]) == ("queued", None)
    assert cli(*submit, "--no-cache", "--cache-for", "1h", "--json").json["state"] == "queued"


def test_lines_of_a_file(cli: Any, tmp_path: Path) -> None:
    line = {"kind": "chat", "payload": {"prompt": "Hello"}}
    lines = [{**line, "cache": True}, {**line, "cache_for_seconds": 60}, line]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    ids = cli("submit", "--jsonl", str(tmp_path / "jobs.jsonl")).out.split()
    assert [cli("get", job, "--json").json["state"] for job in ids] == ["queued", "waiting", "queued"]


def test_a_template(cli: Any) -> None:
    cli("templates", "put", "hello", "chat", '{"prompt": "Hello"}')
    states = [cli("templates", "submit", "hello", "--cache", "--json").json["state"] for _ in range(2)]
    assert states == ["queued", "waiting"]


@pytest.mark.parametrize(
    ("argv", "field"), [(["--cache-for", "soon"], "cache_for"), (["--cache-version", ""], "cache_version")]
)
def test_wrong_input_is_refused(cli: Any, argv: list[str], field: str) -> None:
    refused = cli("submit", "chat", "{}", *argv)
    assert refused.code == 2
    assert refused.err.startswith(f"error: {field}:")
