"""`tasks`."""

from __future__ import annotations

from typing import Any

import pytest

NOBODY = "018f0000-0000-7000-8000-000000000000"


def test_a_task_from_its_description_to_its_end(cli: Any, work: Any) -> None:
    assert "No tasks" in cli("tasks").err
    [task] = cli("tasks", "submit", "Build an API", "--name", "api", "--priority", "high").ids
    found = cli("tasks", "show", task, "--json").json
    assert (found["id"], found["name"], found["status"], found["priority"]) == (task, "api", "queued", 10)
    assert found["subtasks"][0] == "Define API endpoints and routes"
    assert found["subtask_ids"] == [f"{task}-{n}" for n in range(4)]
    shown = cli("tasks", "show", task).out
    assert f'"{task}-3": "Write API documentation"' in shown
    assert cli("tasks", "--json", "show", f"{task}-1").json["description"] == "Implement request validation"
    for _ in range(4):
        job, token = work.claim("work_queue")
        work.database.execute('select queue_pg.complete(%s, %s, \'{"text": "done"}\')', [job, token])
    assert cli("wait", task).code == 0
    assert cli("tasks", "show", task, "--json").json["output"] == [{"text": "done"}] * 4
    assert cli("tasks", "--state", "completed", "--parent", task, "--limit", "2").out.count("completed") == 2
    [chained] = cli("tasks", "chain", f"{task}-0", "Sum up:", "--name", "sum").ids
    assert cli("tasks", "show", chained, "--json").json["prompt"] == "Sum up:\n\ndone"
    assert [each["id"] for each in cli("tasks", "--limit", "1", "--json").json["tasks"]] == [chained]


def test_the_other_ways(cli: Any) -> None:
    made = cli("tasks", "submit", "--prompt", "Hi", "--scheduled-for", "2999-01-01T00:00:00Z", "--json").json
    assert (made["prompt"], made["status"], made["scheduled_for"]) == ("Hi", "scheduled", "2999-01-01T00:00:00Z")
    ways = [
        (["--type", "resize", "--payload", '{"n": 1}'], "resize", {"n": 1}),
        (["--cmd", '["ls"]'], "command", {"cmd": ["ls"]}),
        (
            ["--messages", '[{"role": "user", "content": "Hi"}]'],
            "chat",
            {"messages": [{"role": "user", "content": "Hi"}]},
        ),
        (["Any", "--planner", "llm"], "plan", {"description": "Any", "planner": "llm", "subtask_queue": "work_queue"}),
    ]
    for argv, kind, payload in ways:
        [task] = cli("tasks", "submit", *argv).ids
        job = cli("get", task, "--json").json
        assert (job["kind"], job["payload"]) == (kind, payload)
    assert len(cli("tasks").out.splitlines()) == 6


def test_settings(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANNER", "llm")
    monkeypatch.setenv("SUBTASK_QUEUE", "parts")
    [task] = cli("tasks", "submit", "Any").ids
    assert cli("get", task, "--json").json["payload"] == {
        "description": "Any",
        "planner": "llm",
        "subtask_queue": "parts",
    }


def test_cancel_and_retry(cli: Any) -> None:
    [task] = cli("tasks", "submit", "Any").ids
    assert cli("tasks", "cancel", f"{task}-0", "--reason", "no", "--json").json["error"]["message"] == "no"
    assert cli("tasks", "show", task, "--json").json["error"]["code"] == "subtask_cancelled"
    assert cli("tasks", "retry", task, "--max-attempts", "2", "--json").json["status"] == "queued"
    assert "cancelled" in cli("tasks", "cancel", task).out
    refused = cli("tasks", "retry", task)
    assert (refused.code, refused.out) == (6, "")
    assert "only a failed task is retried" in refused.err


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["submit"], 2, "give exactly one of description, prompt, messages, type, cmd; none is given"),
        (["submit", "a", "--prompt", "b"], 2, "description and prompt are given"),
        (["submit", "a", "--planner", "guess"], 2, "planner: must be one of rules, llm"),
        (["submit", "--prompt", "a", "--payload", "{}"], 2, "payload: belongs to type"),
        (["submit", "--type", "caht"], 2, "chat"),
        (["submit", "--cmd", '"ls"'], 2, "cmd: must be a list"),
        (["submit", "--messages", "[]"], 2, "messages: must be a list"),
        (["submit", "--prompt", "a", "--parent", NOBODY], 4, f"No job {NOBODY}"),
        (["--state", "done"], 2, "state"),
        (["show", NOBODY], 4, f"No job {NOBODY}"),
        (["show", f"{NOBODY}-1"], 4, f"No job {NOBODY}-1"),
        (["retry", "x"], 4, "No job x"),
        (["cancel", "x"], 4, "No job x"),
        (["chain", NOBODY, "a"], 4, f"No job {NOBODY}"),
    ],
)
def test_refusals(cli: Any, argv: list[str], code: int, said: str) -> None:
    refused = cli("tasks", *argv)
    assert (refused.code, refused.out) == (code, "")
    assert said in refused.err


def test_pages_of_tasks(cli: Any) -> None:
    ids = [cli("tasks", "submit", "--prompt", str(number)).ids[0] for number in range(3)]
    first = cli("tasks", "--limit", "2", "--json").json
    assert [task["id"] for task in first["tasks"]] == ids[:0:-1]
    assert f"There are more: --cursor {first['next_cursor']}" in cli("tasks", "--limit", "2").err
    rest = cli("tasks", "--limit", "2", "--cursor", first["next_cursor"])
    assert (ids[0] in rest.out, rest.err) == (True, "")
    refused = cli("tasks", "--cursor", "x")
    assert (refused.code, "cursor: is not a cursor of this list" in refused.err) == (2, True)


def test_a_kind_that_looks_mistyped(cli: Any, work: Any) -> None:
    [done] = cli("tasks", "submit", "--prompt", "Hi").ids
    work.complete()
    work.value("select queue_pg.register_kinds(%s::jsonb)", '[{"kind": "resize"}]')
    for words in (("submit",), ("chain", done)):
        refused = cli("tasks", *words, "--type", "resiez")
        assert (refused.code, "Did you mean 'resize'?" in refused.err, "--any-kind" in refused.err) == (2, True, True)
        [task] = cli("tasks", *words, "--type", "resiez", "--any-kind").ids
        assert cli("get", task, "--json").json["kind"] == "resiez"


def test_only_completed_tasks_are_chained_to(cli: Any) -> None:
    [task] = cli("tasks", "submit", "--prompt", "Hi").ids
    refused = cli("tasks", "chain", task, "Go on")
    assert (refused.code, refused.out) == (6, "")
