"""`templates`."""

from __future__ import annotations

from typing import Any

import pytest


def test_from_a_template_to_a_job(cli: Any, work: Any) -> None:
    assert "No job templates" in cli("templates").err
    variables = '{"who": "string", "n": {"type": "integer", "default": 1}, "x": {"type": "any", "default": null}}'
    put = ["templates", "put", "greeting", "greet", '{"text": "Hi {{ variables.who }}", "n": "{{ variables.n }}"}']
    assert cli(*put, "--variables", variables, "--timeout", "5s").out == "greeting version 1\n"
    assert cli(*put, "--variables", variables, "--queue", "a", "--json").json["version"] == 2
    assert cli("templates").out.splitlines()[1].split()[:4] == ["greeting", "2", "greet", "a"]
    assert "Hi {{ variables.who }}" in cli("templates", "show", "greeting").out
    assert cli("templates", "show", "greeting", "--version", "1", "--json").json["timeout_seconds"] == 5
    [job] = cli("templates", "submit", "greeting", "--var", "who=7", "--var", "n=3", "--priority", "high").ids
    found = cli("get", job, "--json").json
    assert (found["payload"], found["priority"], found["queue"]) == ({"text": "Hi 7", "n": 3}, 10, "a")
    made = cli("templates", "submit", "greeting", "--version", "1", "--var", "who=a=b", "--var", "x=text", "--json")
    assert (made.json["payload"]["text"], made.json["queue"]) == ("Hi a=b", "default")


def test_a_template_that_shares_results(cli: Any) -> None:
    terms = ["--cache-for", "1h", "--cache-version", "2"]
    assert cli("templates", "put", "note", "k", *terms).out == "note version 1\n"
    assert cli("templates", "put", "note", "k", "--cache").out == "note version 2\n"
    found = cli("templates", "show", "note", "--version", "1", "--json").json
    assert (found["cache"], found["cache_for_seconds"], found["cache_version"]) == (None, 3600, "2")
    # A duration has one name, whether there is one or not.
    assert (found["timeout_seconds"], "timeout" in found) == (None, False)
    shown = cli("templates", "show", "note", "--version", "1").out
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith("cache")] == [
        ["cache", "for"],
        ["cache", "version"],
    ]
    [first] = cli("templates", "submit", "note").ids
    assert cli("templates", "submit", "note", "--json").json["state"] == "waiting"
    assert cli("templates", "submit", "note", "--no-cache", "--json").json["state"] == "queued"
    assert cli("get", first, "--json").json["state"] == "queued"


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["show", "absent"], 4, "No template 'absent'"),
        (["submit", "absent"], 4, "No template 'absent'"),
        (["show", "t", "--version", "2"], 4, "Template 't' has no version 2"),
        (["submit", "t"], 2, "variables.who: must be given"),
        (["submit", "t", "--var", "who"], 2, "'who' is no NAME=VALUE"),
        (["submit", "t", "--var", "who=[1]", "--var", "n=x"], 2, "variables.n: is no variable"),
        (["submit", "t", "--var", "who={}"], 2, "variables.who: must be of type integer"),
        (["put", "a/b", "k"], 2, "name: must have"),
        (["put", "t", "k", "--variables", "[]"], 2, "variables: must be a JSON object"),
        (["put", "t", "k", '"{{ x }}"'], 2, "payload: {{ x }} is no path"),
        (["put", "t", "k", "--cache-for", "soon"], 2, "cache_for"),
        (["put", "t", "k", "--cache-version", ""], 2, "cache_version: must have 1 to 255 characters"),
    ],
)
def test_refusals(cli: Any, argv: list[str], code: int, said: str) -> None:
    cli("templates", "put", "t", "k", "--variables", '{"who": "integer"}')
    refused = cli("templates", *argv)
    assert (refused.code, refused.out) == (code, "")
    assert said in refused.err
