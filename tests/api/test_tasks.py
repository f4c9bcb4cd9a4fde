"""/tasks: the routes of the Orchestrator and of Vinci4D."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from queue_pg_api import answers
from test_outage import UNREACHABLE, assert_unavailable

ClaimOne = Callable[..., Awaitable[dict[str, Any]]]

NOBODY = "018f0000-0000-7000-8000-000000000000"
SUPERSET = {
    "task_id", "id", "name", "description", "prompt", "status", "priority", "created_at", "scheduled_for", "subtasks",
    "subtask_ids", "output", "error", "attempts", "max_attempts", "parent_task_id",
}  # fmt: skip
AUTHENTICATION = [
    "Design user database schema",
    "Implement JWT token generation",
    "Create login/logout endpoints",
    "Add password hashing with bcrypt",
]
API = [
    "Define API endpoints and routes",
    "Implement request validation",
    "Add error handling middleware",
    "Write API documentation",
]


async def submit(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/tasks", json=body)
    assert answer.status_code == 200, answer.text
    answers.TaskAnswer.model_validate(answer.json())
    assert set(answer.json()) == SUPERSET
    assert answer.headers["location"] == f"/tasks/{answer.json()['task_id']}"
    assert (await client.get(answer.headers["location"])).json() == answer.json()
    return answer.json()


async def end(client: httpx.AsyncClient, claim_one: ClaimOne, *, fail: bool = False, result: Any = None) -> str:
    """Run the next subtask to its end."""
    job = await claim_one(queues=["work_queue"])
    body = {"lease_token": job["lease_token"]}
    body |= {"error": "it broke", "retry": False} if fail else {"result": result}
    answer = await client.post(f"/jobs/{job['id']}/{'fail' if fail else 'complete'}", json=body)
    assert answer.status_code == 200
    return job["id"]


async def status(client: httpx.AsyncClient, task: str) -> str:
    return (await client.get(f"/tasks/{task}")).json()["status"]


@pytest.mark.parametrize(
    ("description", "subtasks"),
    [
        ("Add user authentication", AUTHENTICATION),
        ("AUTHENTICATION of an API", AUTHENTICATION),
        ("Create a Rest Api", API),
        (
            "Sort the mail",
            [
                "Research requirements for: Sort the mail",
                "Implement core logic for: Sort the mail",
                "Test and validate: Sort the mail",
            ],
        ),
    ],
)
async def test_the_three_splits(client: httpx.AsyncClient, description: str, subtasks: list[str]) -> None:
    task = await submit(client, description=description, priority=1)
    assert task["task_id"] == task["id"]
    assert (task["description"], task["status"], task["priority"]) == (description, "queued", 1)
    assert task["subtasks"] == subtasks
    assert task["subtask_ids"] == [f"{task['id']}-{n}" for n in range(len(subtasks))]
    assert task["created_at"].endswith("Z")
    assert (await client.get("/queues/work_queue")).json()["queued"] == len(subtasks)


async def test_a_subtask_is_a_job_of_the_work_queue(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    task = await submit(client, description="Build an API", priority="high")
    job = await claim_one(queues=["work_queue"])
    assert (job["kind"], job["payload"]) == (
        "subtask",
        {"task_id": task["id"], "subtask_id": f"{task['id']}-0", "description": API[0], "priority": 10},
    )
    part = (await client.get(f"/tasks/{task['id']}-0")).json()
    assert set(part) == SUPERSET
    assert (part["id"], part["name"], part["parent_task_id"]) == (job["id"], f"{task['id']}-0", task["id"])
    assert (part["description"], part["status"], part["subtasks"]) == (API[0], "running", [])
    assert (await client.get(f"/jobs/{job['id']}")).json()["parent_id"] == task["id"]


async def test_a_task_follows_its_subtasks(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    task = (await submit(client, description="Sort the mail"))["id"]
    for number in range(3):
        await end(client, claim_one, result={"n": number})
        assert await status(client, task) == ("running" if number < 2 else "completed")
    assert (await client.get(f"/tasks/{task}")).json()["output"] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert (await client.get(f"/jobs/{task}")).json()["result"] == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_a_failed_subtask_fails_the_task_and_retry_goes_on(
    client: httpx.AsyncClient, claim_one: ClaimOne
) -> None:
    task = (await submit(client, description="Sort the mail"))["id"]
    assert (await client.post(f"/tasks/{task}/retry")).status_code == 409
    await end(client, claim_one, result=0)
    failed = await end(client, claim_one, fail=True)
    found = (await client.get(f"/tasks/{task}")).json()
    assert (found["status"], found["error"]["code"]) == ("failed", "subtask_failed")
    assert (found["error"]["subtask_id"], found["error"]["job_id"]) == (f"{task}-1", failed)
    assert "it broke" in found["error"]["message"]
    again = await client.post(f"/tasks/{task}/retry", json={"max_attempts": 5})
    assert (again.status_code, again.json()["status"]) == (200, "running")
    assert (await client.get(f"/tasks/{task}-1")).json()["max_attempts"] == 5
    await end(client, claim_one, result=1)
    await end(client, claim_one, result=2)
    assert (await client.get(f"/tasks/{task}")).json()["output"] == [0, 2, 1]


async def test_cancel_takes_the_subtasks_along(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    task = (await submit(client, description="Sort the mail"))["id"]
    job = await claim_one(queues=["work_queue"])
    cancelled = await client.post(f"/tasks/{task}/cancel", json={"reason": "enough"})
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert cancelled.json()["error"] == {"code": "cancelled", "message": "enough"}
    assert {await status(client, f"{task}-{n}") for n in range(3)} == {"cancelled"}
    late = await client.post(f"/jobs/{job['id']}/complete", json={"lease_token": job["lease_token"]})
    assert (late.status_code, late.json()["code"]) == (409, "lease_lost")
    assert (await client.post(f"/tasks/{task}/cancel")).status_code == 200
    # Only failed ones, as Vinci4D has it; /jobs takes cancelled ones too.
    refused = await client.post(f"/tasks/{task}/retry")
    assert (refused.status_code, refused.json()["code"], refused.json()["state"]) == (409, "wrong_state", "cancelled")
    assert (await client.post(f"/jobs/{task}/retry")).status_code == 200
    assert await status(client, task) == "queued"


async def test_a_subtask_is_cancelled_by_its_id(client: httpx.AsyncClient) -> None:
    task = (await submit(client, description="Sort the mail"))["id"]
    assert (await client.post(f"/tasks/{task}-2/cancel")).json()["status"] == "cancelled"
    assert await status(client, task) == "failed"
    again = await client.post(f"/tasks/{task}-2/cancel")
    assert again.status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "payload"),
    [
        ({"prompt": "Hi", "name": "greeting"}, "chat", {"prompt": "Hi"}),
        (
            {"messages": [{"role": "user", "content": "Hi"}], "model": "m"},
            "chat",
            {"messages": [{"role": "user", "content": "Hi"}], "model": "m"},
        ),
        ({"type": "resize", "payload": {"n": 1}, "priority": "low"}, "resize", {"n": 1}),
        ({"type": "resize"}, "resize", {}),
        (
            {"cmd": ["sort", "-n"], "input": {"a": 1}, "env": {"A": "b"}, "timeout_secs": 5},
            "command",
            {"cmd": ["sort", "-n"], "input": {"a": 1}, "env": {"A": "b"}, "timeout_secs": 5},
        ),
        (
            {"description": "Any", "planner": "llm", "model": "m"},
            "plan",
            {"description": "Any", "planner": "llm", "model": "m", "subtask_queue": "work_queue"},
        ),
    ],
)
async def test_the_other_ways(client: httpx.AsyncClient, body: Any, kind: str, payload: Any) -> None:
    task = await submit(client, **body)
    assert (task["status"], task["subtasks"], task["subtask_ids"]) == ("queued", [], [])
    assert (task["name"], task["prompt"]) == (body.get("name"), body.get("prompt"))
    job = (await client.get(f"/jobs/{task['id']}")).json()
    assert (job["kind"], job["payload"]) == (kind, payload)


async def test_now_or_later(client: httpx.AsyncClient) -> None:
    assert (await submit(client, prompt="Hi", scheduled_for=None))["status"] == "queued"
    for way in ({"prompt": "Hi"}, {"description": "Any"}, {"description": "Any", "planner": "llm"}):
        later = await submit(client, **way, scheduled_for="2999-01-01T02:00:00+02:00")
        assert (later["status"], later["scheduled_for"]) == ("scheduled", "2999-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "description, prompt, messages, type, cmd"),
        ({"name": "x"}, "description, prompt, messages, type, cmd"),
        ({"description": "a", "prompt": "b"}, "description, prompt"),
        ({"type": "chat", "cmd": ["a"], "messages": []}, "messages, type, cmd"),
        ({"prompt": "a", "payload": {}}, "payload"),
        ({"payload": {}}, "description, prompt, messages, type, cmd"),
        ({"description": ""}, "description"),
        ({"description": 7}, "description"),
        ({"description": "x" * 10_001}, "description"),
        ({"description": "a", "planner": "guess"}, "planner"),
        ({"description": "a", "model": "m"}, "model"),
        ({"prompt": "a", "planner": "rules"}, "planner"),
        ({"prompt": "a", "input": "b"}, "input"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": "a"}, "messages"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": ["a"]}, "messages[0]"),
        ({"type": ""}, "type"),
        ({"type": "caht"}, "type"),
        ({"cmd": "ls"}, "cmd"),
        ({"cmd": []}, "cmd"),
        ({"cmd": ["ls", 1]}, "cmd[1]"),
        ({"cmd": ["ls"], "env": {"A": 1}}, "env.A"),
        ({"cmd": ["ls"], "timeout_secs": 0}, "timeout_secs"),
        ({"prompt": "a", "priority": "urgent"}, "priority"),
        ({"prompt": "a", "scheduled_for": "2999-01-01T00:00:00"}, "scheduled_for"),
        ({"prompt": "a", "max_attempts": 0}, "max_attempts"),
        ({"prompt": "a", "name": ""}, "name"),
        ({"prompt": "a", "queue": ""}, "queue"),
        ({"prompt": "a", "parent_task_id": NOBODY}, "parent_task_id"),
        ({"prompt": "a", "parent_task_id": "x"}, "parent_task_id"),
        ({"description": "a", "parent_task_id": NOBODY}, "parent_task_id"),
        ({"prompt": "a", "descripton": "b"}, "descripton"),
    ],
)
async def test_wrong_tasks_name_the_field(client: httpx.AsyncClient, body: Any, field: str) -> None:
    refused = await client.post("/tasks", json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, field), refused.text
    assert refused.json()["detail"].startswith(f"{field}:")
    assert (await client.get("/tasks")).json() == {"tasks": [], "next_cursor": None}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"prompt": "a", "prompt": "b"}', b'{"prompt": "\\u0000"}'])
async def test_what_is_no_task(client: httpx.AsyncClient, body: bytes) -> None:
    refused = await client.post("/tasks", content=body)
    assert refused.status_code == 422
    assert (await client.get("/tasks")).json()["tasks"] == []


async def test_idempotency(client: httpx.AsyncClient) -> None:
    for way in ({"description": "Any"}, {"prompt": "Hi"}):
        key = {"idempotency-key": str(way)}
        first = await client.post("/tasks", json=way, headers=key)
        again = await client.post("/tasks", json=way, headers=key)
        assert (first.json(), again.status_code) == (again.json(), 200)
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        other = await client.post("/tasks", json={"prompt": "Other"}, headers=key)
        assert (other.status_code, other.json()["code"]) == (422, "unique_key_conflict")
    both = await client.post("/tasks", json={"prompt": "Hi", "unique_key": "a"}, headers={"idempotency-key": "b"})
    assert (both.status_code, both.json()["field"]) == (422, "unique_key")


async def test_the_settings_choose_planner_and_queue(make_client: Any) -> None:
    async with make_client(planner="llm", subtask_queue="parts") as client:
        assert (await submit(client, description="Any"))["subtasks"] == []
        await submit(client, description="Any", planner="rules")
        assert (await client.get("/queues/parts")).json()["queued"] == 3
        await submit(client, description="Any", planner="rules", subtask_queue="mine")
        assert (await client.get("/queues/mine")).json()["queued"] == 3


# --- chains -----------------------------------------------------------------------------------------------------------


async def completed(client: httpx.AsyncClient, claim_one: ClaimOne, result: Any) -> str:
    await submit(client, type="k", queue="done")
    job = await claim_one(queues=["done"])
    await client.post(f"/jobs/{job['id']}/complete", json={"lease_token": job["lease_token"], "result": result})
    return job["id"]


async def test_the_output_of_the_parent_is_in_the_prompt(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    parent = await completed(client, claim_one, {"text": "a long text"})
    chained = await client.post(f"/tasks/{parent}/chain", json={"name": "short", "prompt": "Shorten this:"})
    assert chained.status_code == 200, chained.text
    answers.TaskAnswer.model_validate(chained.json())
    task = chained.json()
    assert chained.headers["location"] == f"/tasks/{task['id']}"
    assert (task["prompt"], task["parent_task_id"]) == ("Shorten this:\n\na long text", parent)
    assert (task["name"], task["status"]) == ("short", "queued")
    placed = await client.post(f"/tasks/{parent}/chain", json={"prompt": "'{{ parents.parent.output.text }}' again"})
    assert placed.json()["prompt"] == "'a long text' again"
    listed = (await client.get("/tasks", params={"parent_task_id": parent})).json()["tasks"]
    assert [each["id"] for each in listed] == [placed.json()["id"], task["id"]]


async def test_only_completed_tasks_are_chained_to(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    task = await submit(client, prompt="Hi")
    for state in ("queued", "running", "cancelled"):
        if state == "running":
            await claim_one()
        if state == "cancelled":
            await client.post(f"/tasks/{task['id']}/cancel")
        refused = await client.post(f"/tasks/{task['id']}/chain", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["code"], refused.json()["state"]) == (409, "wrong_state", state)
    planned = await submit(client, description="Any")
    assert (await client.post(f"/tasks/{planned['id']}/chain", json={"prompt": "x"})).status_code == 409


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "description, prompt, messages, type, cmd"),
        ({"description": "Any"}, "description"),
        ({"prompt": "a", "parent_task_id": NOBODY}, "parent_task_id"),
        ({"prompt": "{{ parents.other.output }}"}, "payload"),
        ({"type": "caht"}, "type"),
    ],
)
async def test_wrong_chains_name_the_field(
    client: httpx.AsyncClient, claim_one: ClaimOne, body: Any, field: str
) -> None:
    parent = await completed(client, claim_one, 1)
    refused = await client.post(f"/tasks/{parent}/chain", json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, field)


async def test_a_parent_that_lives_is_waited_for(client: httpx.AsyncClient) -> None:
    parent = await submit(client, prompt="Hi")
    task = await submit(client, prompt="Go on", parent_task_id=parent["id"])
    assert (task["status"], task["parent_task_id"]) == ("waiting", parent["id"])


# --- lists, ids, outages ----------------------------------------------------------------------------------------------


async def test_lists(client: httpx.AsyncClient) -> None:
    tasks = [await submit(client, prompt=str(number)) for number in range(3)]
    planned = await submit(client, description="Any")
    page = (await client.get("/tasks", params={"limit": 2, "offset": 4})).json()
    answers.TaskPageAnswer.model_validate(page)
    assert [each["id"] for each in page["tasks"]] == [tasks[2]["id"], tasks[1]["id"]]
    assert page["tasks"][0] == {key: value for key, value in tasks[2].items() if key != "output"}
    rest = (await client.get("/tasks", params={"cursor": page["next_cursor"]})).json()
    assert ([each["id"] for each in rest["tasks"]], rest["next_cursor"]) == ([tasks[0]["id"]], None)
    parts = (await client.get("/tasks", params={"parent_task_id": planned["id"], "state": "queued"})).json()["tasks"]
    assert [each["name"] for each in parts] == planned["subtask_ids"][::-1]
    assert (await client.get("/tasks", params={"state": "running"})).json()["tasks"] == []
    assert len((await client.get("/tasks", params={"state": "queued"})).json()["tasks"]) == 7


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("offset=-1", "offset"),
        ("offset=10001", "offset"),
        ("state=done", "state"),
        ("cursor=x", "cursor"),
        ("parent=x", "parent"),
        ("limit=1&limit=2", "limit"),
    ],
)
async def test_wrong_lists_name_the_field(client: httpx.AsyncClient, query: str, field: str) -> None:
    refused = await client.get(f"/tasks?{query}")
    assert (refused.status_code, refused.json()["field"]) == (422, field)


@pytest.mark.parametrize("task", [NOBODY, f"{NOBODY}-0", "x", "%00", "%F0%9F%98%80", "x" * 300, "{}"])
async def test_an_unknown_task(client: httpx.AsyncClient, task: str) -> None:
    found = [await client.get(f"/tasks/{task}")]
    for action, body in (("chain", {"prompt": "x"}), ("retry", {}), ("cancel", {})):
        found.append(await client.post(f"/tasks/{task}/{action}", json=body))
    for answer in found:
        assert (answer.status_code, answer.json()) == (404, {"detail": "Task not found", "code": "task_not_found"})


async def test_any_job_is_a_task(client: httpx.AsyncClient) -> None:
    job = (await client.post("/jobs", json={"kind": "k", "payload": {"prompt": "x"}, "metadata": {"task": [1]}})).json()
    task = (await client.get(f"/tasks/{job['id']}")).json()
    assert set(task) == SUPERSET
    assert (task["status"], task["prompt"], task["name"]) == ("queued", None, None)
    assert (await client.get(f"/tasks/{job['id'].replace('-', '').upper()}")).json() == task
    refused = await client.post("/jobs", json={"kind": "plan", "payload": {"description": "Any"}})
    assert refused.status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/tasks", {"description": "Any"}),
        ("POST", "/tasks", {"prompt": "Hi"}),
        ("GET", "/tasks", None),
        ("GET", f"/tasks/{NOBODY}", None),
        ("POST", f"/tasks/{NOBODY}/chain", {"prompt": "Hi"}),
        ("POST", f"/tasks/{NOBODY}/retry", {}),
        ("POST", f"/tasks/{NOBODY}/cancel", {}),
    ],
)
async def test_without_the_database(make_client: Any, method: str, path: str, body: Any) -> None:
    async with make_client(UNREACHABLE) as client:
        assert_unavailable(await client.request(method, path, json=body))


async def test_the_description_of_the_api(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path, method in (
        ("/tasks", "post"),
        ("/tasks", "get"),
        ("/tasks/{id}", "get"),
        ("/tasks/{id}/chain", "post"),
        ("/tasks/{id}/retry", "post"),
        ("/tasks/{id}/cancel", "post"),
    ):
        assert {"200", "422", "503"} <= set(paths[path][method]["responses"])
    assert {"404", "409"} <= set(paths["/tasks/{id}/chain"]["post"]["responses"])
