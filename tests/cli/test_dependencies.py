"""`submit --after` and what `get` shows of parents and children."""

from __future__ import annotations

import json
from typing import Any

import pytest

ABSENT = "018f0000-0000-7000-8000-000000000000"


def test_a_job_after_others_takes_what_they_made(cli: Any, work: Any) -> None:
    [a] = cli("submit", "chat").ids
    [b] = cli("submit", "chat").ids
    template = '{"a": "{{ parents.draft.output.text }}", "b": "{{ parents.1.state }}"}'
    done = cli("submit", "chat", template, "--after", f"{a}=draft", "--after", b)
    assert (done.code, done.err) == (0, "")
    [child] = done.ids
    shown = cli("get", child).out
    assert "state" in shown
    assert "waiting" in shown
    assert "parents (2)" in shown
    assert f"  {a}  queued  as draft\n" in shown
    assert f"  {b}  queued  as 1\n" in shown
    assert "The job waits for 2 of its 2 parent(s) to end." in cli("why", child).out
    work.complete()
    work.complete()
    assert cli("get", child, "--json").json["payload"] == {"a": "done", "b": "completed"}
    assert f"children (1)\n  {child}  queued  calls it draft\n" in cli("get", a).out


def test_what_an_unsuccessful_parent_means(cli: Any, work: Any) -> None:
    [parent] = cli("submit", "chat").ids
    [child] = cli("submit", "chat", "--after", parent, "--on-unsuccessful", "fail").ids
    assert "if unsuccessful: fail" in cli("get", child).out
    assert cli("cancel", parent).code == 0
    found = cli("get", child, "--json").json
    assert (found["state"], found["error"]["code"]) == ("failed", "parent_cancelled")
    assert found["dependencies"]["parents"] == [
        {"id": parent, "name": "0", "on_unsuccessful": "fail", "outcome": "cancelled", "state": "cancelled"}
    ]


def test_a_job_without_relatives_shows_none(cli: Any) -> None:
    [job] = cli("submit", "chat").ids
    assert "parents" not in cli("get", job).out
    assert "dependencies" not in cli("get", job, "--json").json


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--after", ABSENT), 2, ABSENT),
        (("--after", "nonsense"), 2, "nonsense"),
        (("--after", f"{ABSENT}=a b"), 2, "name"),
        (("--on-unsuccessful", "run"), 2, "--after"),
        (("--after", ABSENT, "--on-unsuccessful", "ignore"), 2, "cancel"),
    ],
)
def test_mistakes_are_named(cli: Any, options: tuple[str, ...], code: int, words: str) -> None:
    done = cli("submit", "chat", "{}", *options)
    assert done.code == code, done.err
    assert words in done.err
    assert cli("list").out == ""


def test_lines_take_neither(cli: Any) -> None:
    line = json.dumps({"kind": "chat", "depends_on": [ABSENT]}).encode()
    refused = cli("submit", "--jsonl", "-", stdin=line)
    assert refused.code == 2
    assert "depends_on" in refused.err
    refused = cli("submit", "--jsonl", "-", "--after", ABSENT, stdin=b'{"kind": "chat"}')
    assert (refused.code, "--after" in refused.err) == (2, True)
