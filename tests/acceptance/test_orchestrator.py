"""The Orchestrator's lines of the acceptance list."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from in_process import finished, running
from queue_pg_workers.providers.mock import MockProvider

from queue_pg import Queue

UNREACHABLE = "postgresql://nobody@127.0.0.1:1/nothing"
SPLITS = {
    "Add User Authentication": [
        "Design user database schema",
        "Implement JWT token generation",
        "Create login/logout endpoints",
        "Add password hashing with bcrypt",
    ],
    "Authentication for the API": [
        "Design user database schema",
        "Implement JWT token generation",
        "Create login/logout endpoints",
        "Add password hashing with bcrypt",
    ],
    "Build a REST API": [
        "Define API endpoints and routes",
        "Implement request validation",
        "Add error handling middleware",
        "Write API documentation",
    ],
    "Paint the fence": [
        "Research requirements for: Paint the fence",
        "Implement core logic for: Paint the fence",
        "Test and validate: Paint the fence",
    ],
}


@pytest.mark.parametrize("description", SPLITS)
async def test_three_split_cases_byte_exact(api: httpx.AsyncClient, description: str) -> None:
    made = await api.post("/tasks", json={"description": description, "priority": 1})
    assert made.status_code == 200
    task = made.json()
    assert (task["description"], task["status"], task["priority"]) == (description, "queued", 1)
    assert json.dumps(task["subtasks"]).encode() == json.dumps(SPLITS[description]).encode()
    assert (await api.get(f"/tasks/{task['task_id']}")).json() == task


async def test_503_and_404_bodies(serve: Any, api: httpx.AsyncClient) -> None:
    async with serve(database_url=UNREACHABLE) as away:
        for answer in (await away.post("/tasks", json={"description": "x"}), await away.get("/tasks/x")):
            assert (answer.status_code, answer.json()["detail"]) == (503, "Database unavailable")
    missing = await api.get("/tasks/018f0000-0000-7000-8000-000000000000")
    assert (missing.status_code, missing.json()["detail"]) == (404, "Task not found")


async def test_subtask_ids(api: httpx.AsyncClient) -> None:
    task = (await api.post("/tasks", json={"description": "Build a REST API", "priority": 3})).json()
    assert task["subtask_ids"] == [f"{task['task_id']}-{n}" for n in range(4)]
    claimed = await api.post("/jobs/claim", json={"worker": "w", "queues": ["work_queue"], "max": 10})
    assert [job["payload"] for job in claimed.json()["jobs"]] == [
        {"task_id": task["task_id"], "subtask_id": f"{task['task_id']}-{n}", "description": text, "priority": 3}
        for n, text in enumerate(SPLITS["Build a REST API"])
    ]


async def test_parent_status_follows_subtasks(api: httpx.AsyncClient) -> None:
    async def status(task: str) -> str:
        return (await api.get(f"/tasks/{task}")).json()["status"]

    for ends in (["complete", "complete", "complete"], ["complete", "fail"]):
        task = (await api.post("/tasks", json={"description": "Paint the fence"})).json()["task_id"]
        assert await status(task) == "queued"
        for end in ends:
            [job] = (await api.post("/jobs/claim", json={"worker": "w", "queues": ["work_queue"]})).json()["jobs"]
            assert await status(task) == "running"
            body = {"lease_token": job["lease_token"], **({"error": "no", "retry": False} if end == "fail" else {})}
            assert (await api.post(f"/jobs/{job['id']}/{end}", json=body)).status_code == 200
        assert await status(task) == ("failed" if "fail" in ends else "completed")


async def test_planner_llm_via_mock(dsn: str, serve: Any) -> None:
    async with (
        serve(planner="llm") as api,
        running(dsn, provider=MockProvider(), queues=("default", "work_queue")),
        Queue(dsn) as queue,
    ):
        task = (await api.post("/tasks", json={"description": "Paint the fence"})).json()
        assert task["subtasks"] == []
        await finished(queue, task["id"])
        done = (await api.get(f"/tasks/{task['id']}")).json()
    assert done["status"] == "completed"
    assert done["subtasks"] == ["Prepare: Paint the fence", "Carry out: Paint the fence", "Check: Paint the fence"]
    assert [set(each) >= {"text", "usage"} for each in done["output"]] == [True] * 3
