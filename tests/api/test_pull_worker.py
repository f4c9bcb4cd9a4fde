"""A whole worker in plain HTTP, as one in any language is: all that a Python handler can do, with the lease token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import httpx
import pytest
from queue_pg_api import answers

from queue_pg.testing import Clock

ABSENT = "018f0000-0000-7000-8000-000000000000"

ClaimOne = Callable[..., Awaitable[dict[str, Any]]]


class Worker:
    """What a worker in another language is: requests, and the id and lease token that each of them names."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.job: dict[str, Any] = {}

    async def claim(self, wait: float = 20) -> dict[str, Any]:
        body = {"worker": "go-1", "kinds": ["publish"], "wait": wait, "lease_seconds": 60}
        answer = await self.http.post("/jobs/claim", json=body)
        [self.job] = answer.json()["jobs"]
        return self.job

    async def post(self, action: str, **body: Any) -> dict[str, Any]:
        path = f"/jobs/{self.job['id']}/{action}"
        answer = await self.http.post(path, json={"lease_token": self.job["lease_token"], **body})
        assert answer.status_code == 200, (action, answer.text)
        said: dict[str, Any] = answer.json()
        return said

    async def finished_steps(self) -> dict[str, Any]:
        answer = await self.http.get(f"/jobs/{self.job['id']}/steps")
        return {each["name"]: each["result"] for each in answer.json()["steps"] if each["finished_at"] is not None}

    async def run(self) -> str:
        """Run the handler once, from its start: what is done is passed; return the job's state afterwards."""
        done = await self.finished_steps()
        if "draft" not in done:
            await self.post("logs", lines=["writing", "written"], stream="stderr")
            await self.post("progress", progress=0.5)
            await self.post("events", events=[{"type": "chunk", "data": {"text": "many "}}, {"type": "words"}])
            await self.post("steps", name="draft", result={"text": "many words"})
        await self.post("heartbeat", lease_seconds=120)
        review = await self.post("wait-for-event", name="review", timeout_seconds=3600)
        if review["finished_at"] is None:
            return str((await self.post("suspend"))["state"])
        pause = await self.post("sleep", name="embargo", delay_seconds=600)
        if pause["finished_at"] is None:
            return str((await self.post("suspend"))["state"])
        given = await self.http.get(f"/jobs/{self.job['id']}/artifacts/input.txt")
        stored = await self.http.put(
            f"/jobs/{self.job['id']}/artifacts/out/post.txt",
            params={"lease_token": self.job["lease_token"], "sha256": sha256(given.content.upper()).hexdigest()},
            content=given.content.upper(),
        )
        assert stored.status_code == 201, stored.text
        done = await self.finished_steps()
        return str((await self.post("complete", result={"by": review["result"]["by"], **done["draft"]}))["state"])


async def test_a_whole_worker_in_plain_http(served: Any, clock: Clock) -> None:
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        made = (await http.post("/jobs", json={"kind": "publish", "payload": {"title": "Queues"}})).json()
        job = f"/jobs/{made['id']}"
        assert (await http.put(f"{job}/artifacts/input.txt", content=b"words")).status_code == 201
        worker = Worker(http)

        claimed = await worker.claim()
        assert (claimed["id"], claimed["payload"], claimed["attempt"]) == (made["id"], {"title": "Queues"}, 1)
        assert await worker.run() == "scheduled"
        # Its slot is free: nobody holds the job while it waits for the event.
        waits = (await http.get(job)).json()
        assert (waits["state"], waits["waiting"]["reason"]) == ("scheduled", "event")
        signalled = await http.post(f"{job}/signals/review", json={"payload": {"by": "ada"}})
        assert signalled.status_code == 201

        # A wait burns no attempt, the fence has moved on.
        again = await worker.claim()
        assert (again["attempt"], again["lease_token"] > claimed["lease_token"]) == (1, True)
        assert await worker.run() == "scheduled"
        await asyncio.to_thread(clock.advance, 601)
        await worker.claim()
        assert await worker.run() == "completed"

        ended = (await http.get(job)).json()
        assert ended["result"] == {"by": "ada", "text": "many words"}
        assert (await http.get(f"{job}/artifacts/out/post.txt")).content == b"WORDS"
        logs = (await http.get(f"{job}/logs", params={"stream": "stderr"})).json()["logs"]
        assert [line["line"] for line in logs] == ["writing", "written"]
        events = (await http.get(f"{job}/events", headers={"accept": "application/json"})).json()["events"]
        assert [event["type"] for event in events] == [
            *("submitted", "started", "log", "log", "progress", "chunk", "words", "suspended", "signalled"),
            *("started", "suspended", "promoted", "started", "completed"),
        ]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


class Planner:
    """A planner in another language, and the workers that its subtasks go to."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def claim(self, queue: str, kind: str) -> dict[str, Any]:
        body = {"worker": "go-1", "queues": [queue], "kinds": [kind], "wait": 20}
        [job] = (await self.http.post("/jobs/claim", json=body)).json()["jobs"]
        return dict(job)

    async def post(self, job: dict[str, Any], action: str, **body: Any) -> str:
        path = f"/jobs/{job['id']}/{action}"
        answer = await self.http.post(path, json={"lease_token": job["lease_token"], **body})
        assert answer.status_code == 200, (action, answer.text)
        answers.FinishAnswer.model_validate(answer.json())
        return str(answer.json()["state"])


async def test_a_whole_planner_in_plain_http(served: Any) -> None:
    """What is described is split by one who knows HTTP alone, and worked off by others who do."""
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        described = {"description": "Read it; sum it up", "planner": "llm", "subtask_queue": "mine"}
        terms = {"priority": 5, "max_attempts": 2, "timeout_seconds": 90.0, "model": "large"}
        task = (await http.post("/tasks", json={**described, **terms})).json()
        pool = Planner(http)

        claimed = await pool.claim("default", "plan")
        assert (claimed["id"], claimed["payload"]["description"]) == (task["id"], "Read it; sum it up")
        parts = claimed["payload"]["description"].split("; ")
        assert await pool.post(claimed, "plan", subtasks=parts) == "waiting"
        # It counts once: the slot is free and the lease is over.
        again = await http.post(
            f"/jobs/{task['id']}/plan", json={"lease_token": claimed["lease_token"], "subtasks": ["x"]}
        )
        assert (again.status_code, again.json()["code"], again.json()["state"]) == (409, "lease_lost", "waiting")

        shown = (await http.get(f"/tasks/{task['id']}")).json()
        assert (shown["status"], shown["subtasks"]) == ("queued", parts)
        for number, part in enumerate(parts):
            subtask = await pool.claim("mine", "subtask")
            assert subtask["payload"] == {
                "task_id": task["id"],
                "subtask_id": f"{task['id']}-{number}",
                "description": part,
                "priority": 5,
            }
            # What the task says of its subtasks holds for those of a plan that does not say otherwise.
            job = (await http.get(f"/jobs/{subtask['id']}")).json()
            assert (job["priority"], job["max_attempts"], job["timeout_seconds"]) == (5, 2, 90)
            assert await pool.post(subtask, "complete", result={"part": number}) == "completed"
        ended = (await http.get(f"/tasks/{task['id']}")).json()
        assert (ended["status"], ended["output"]) == ("completed", [{"part": 0}, {"part": 1}])
        events = (await http.get(f"/jobs/{task['id']}/events", headers={"accept": "application/json"})).json()
        assert [event["type"] for event in events["events"]] == ["submitted", "started", "planned", "completed"]


async def test_any_job_may_be_planned_with_terms_of_its_own(
    client: httpx.AsyncClient, held: dict[str, Any], claim_one: ClaimOne
) -> None:
    terms = {"subtasks": ["a"], "queue": "here", "kind": "piece", "max_attempts": 7, "timeout_seconds": 1.5}
    answer = await client.post(f"{held['path']}/plan", json={"lease_token": held["lease_token"], **terms})
    assert answer.json()["state"] == "waiting"
    [job] = (await client.get("/jobs", params={"queue": "here"})).json()["jobs"]
    assert (job["kind"], job["max_attempts"], job["timeout_seconds"]) == ("piece", 7, 1.5)


# ---- each by itself ---------------------------------------------------------------------------------------------


@pytest.fixture
async def held(client: httpx.AsyncClient, claim_one: ClaimOne) -> dict[str, Any]:
    """A claimed job: its path and lease token."""
    await client.post("/jobs", json={"kind": "chat"})
    claimed = await claim_one()
    return {"path": f"/jobs/{claimed['id']}", "lease_token": claimed["lease_token"]}


WRITES: dict[str, dict[str, Any]] = {
    "steps": {"name": "a", "result": 1},
    "sleep": {"name": "a", "delay_seconds": 5},
    "wait-for-event": {"name": "a"},
    "suspend": {},
    "snooze": {"delay_seconds": 5},
    "release": {},
    "plan": {"subtasks": ["a", "b"]},
    "cancel": {"reason": "enough"},
    "logs": {"lines": ["x"]},
    "progress": {"progress": 0.5},
    "events": {"events": [{"type": "x"}]},
}


@pytest.mark.parametrize("action", WRITES)
async def test_a_stale_lease_changes_nothing(client: httpx.AsyncClient, held: dict[str, Any], action: str) -> None:
    async def all_of_it() -> list[Any]:
        shown = [await client.get(held["path"]), await client.get(f"{held['path']}/steps")]
        page = await client.get(f"{held['path']}/events", headers={"accept": "application/json"})
        return [each.json() for each in (*shown, page)]

    async def refused(state: str, token: int) -> None:
        before = await all_of_it()
        answer = await client.post(f"{held['path']}/{action}", json={**WRITES[action], "lease_token": token})
        assert (answer.status_code, answer.headers.get("x-should-retry")) == (409, "false")
        assert (answer.json()["code"], answer.json()["state"]) == ("lease_lost", state)
        assert await all_of_it() == before

    await refused("running", held["lease_token"] + 1)
    await client.post(f"{held['path']}/release", json={"lease_token": held["lease_token"]})
    await refused("queued", held["lease_token"])
    await client.post(f"{held['path']}/cancel")
    await refused("cancelled", held["lease_token"])


@pytest.mark.parametrize("action", WRITES)
@pytest.mark.parametrize("job_id", [ABSENT, "x", "%00"])
async def test_a_job_that_nobody_knows(client: httpx.AsyncClient, action: str, job_id: str) -> None:
    answer = await client.post(f"/jobs/{job_id}/{action}", json={**WRITES[action], "lease_token": 1})
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("action", WRITES)
async def test_the_database_away_is_503(make_client: Any, action: str) -> None:
    async with make_client("postgresql://127.0.0.1:1/nowhere") as client:
        answer = await client.post(f"/jobs/{ABSENT}/{action}", json={**WRITES[action], "lease_token": 1})
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")


@pytest.mark.parametrize(
    ("action", "body", "field"),
    [
        ("steps", {}, "name"),
        ("steps", {"name": ""}, "name"),
        ("steps", {"name": "x" * 201}, "name"),
        ("steps", {"name": 5}, "name"),
        ("steps", {"name": "a\x00b"}, "name"),
        ("steps", {"name": "a", "result": "a\x00b"}, "result"),
        ("steps", {"name": "a", "result": "x" * 1024 * 1024}, "result"),
        ("steps", {"name": "a", "finished_at": None}, "finished_at"),
        ("sleep", {"name": "a"}, "delay_seconds"),
        ("sleep", {"name": "a", "delay_seconds": 5, "until": "2999-01-01T00:00:00Z"}, "delay_seconds"),
        ("sleep", {"name": "a", "delay_seconds": -1}, "delay_seconds"),
        ("sleep", {"name": "a", "delay_seconds": 1e12}, "delay_seconds"),
        ("sleep", {"name": "a", "delay_seconds": "5"}, "delay_seconds"),
        ("sleep", {"name": "a", "until": "2999-01-01T00:00:00"}, "until"),
        ("sleep", {"name": "a", "until": "2999-01-01T00:00:00Z"}, "until"),
        ("sleep", {"name": "", "delay_seconds": 5}, "name"),
        ("wait-for-event", {}, "name"),
        ("wait-for-event", {"name": "x" * 201}, "name"),
        ("wait-for-event", {"name": "a", "timeout_seconds": -1}, "timeout_seconds"),
        ("wait-for-event", {"name": "a", "timeout_seconds": 1e12}, "timeout_seconds"),
        ("snooze", {}, "delay_seconds"),
        ("snooze", {"delay_seconds": -1}, "delay_seconds"),
        ("suspend", {"name": "a"}, "name"),
        ("release", {"lease_token": "1"}, "lease_token"),
        ("plan", {}, "subtasks"),
        ("plan", {"subtasks": "a"}, "subtasks"),
        ("plan", {"subtasks": []}, "subtasks"),
        ("plan", {"subtasks": ["a"] * 101}, "subtasks"),
        ("plan", {"subtasks": ["a", ""]}, "subtasks[1]"),
        ("plan", {"subtasks": ["a", " \t\n"]}, "subtasks[1]"),
        ("plan", {"subtasks": ["a", 7]}, "subtasks[1]"),
        ("plan", {"subtasks": ["x" * 10_001]}, "subtasks[0]"),
        ("plan", {"subtasks": ["a\x00b"]}, "subtasks[0]"),
        ("plan", {"subtasks": ["a"], "queue": ""}, "queue"),
        ("plan", {"subtasks": ["a"], "kind": "x" * 201}, "kind"),
        ("plan", {"subtasks": ["a"], "max_attempts": 0}, "max_attempts"),
        ("plan", {"subtasks": ["a"], "timeout_seconds": 0}, "timeout_seconds"),
        ("plan", {"subtasks": ["a"], "planner": "llm"}, "planner"),
        ("cancel", {"reason": 5}, "reason"),
    ],
)
async def test_bad_bodies_are_named(
    client: httpx.AsyncClient, held: dict[str, Any], action: str, body: dict[str, Any], field: str
) -> None:
    answer = await client.post(f"{held['path']}/{action}", json={"lease_token": held["lease_token"], **body})
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
    assert (await client.get(held["path"])).json()["state"] == "running"


async def test_a_step_saved_twice(client: httpx.AsyncClient, held: dict[str, Any], claim_one: ClaimOne) -> None:
    body = {"lease_token": held["lease_token"], "name": "a", "result": {"n": 1}}
    for _ in range(2):
        answer = await client.post(f"{held['path']}/steps", json=body)
        assert answer.status_code == 200
        answers.SavedStepAnswer.model_validate(answer.json())
    # The first result stands: an answer can get lost, and what was kept must not change.
    [step] = (await client.get(f"{held['path']}/steps")).json()["steps"]
    assert step["result"] == {"n": 1}
    await client.post(f"{held['path']}/release", json={"lease_token": held["lease_token"]})
    body["lease_token"] = (await claim_one())["lease_token"]
    answer = await client.post(f"{held['path']}/steps", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, "name")


async def test_a_sleep_that_is_over(client: httpx.AsyncClient, held: dict[str, Any]) -> None:
    past = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    body = {"lease_token": held["lease_token"], "name": "a", "until": past}
    answer = await client.post(f"{held['path']}/sleep", json=body)
    step = answers.StepAnswer.model_validate(answer.json())
    assert (step.type, step.finished_at is not None) == ("sleep", True)
    # Nothing is waited for: it is claimed again at once.
    answer = await client.post(f"{held['path']}/suspend", json={"lease_token": held["lease_token"]})
    assert answer.json()["state"] == "queued"


async def test_an_event_that_does_not_come(client: httpx.AsyncClient, held: dict[str, Any], clock: Clock) -> None:
    body = {"lease_token": held["lease_token"], "name": "go", "timeout_seconds": 5}
    assert (await client.post(f"{held['path']}/wait-for-event", json=body)).json()["finished_at"] is None
    clock.advance(6)
    late = (await client.post(f"{held['path']}/wait-for-event", json=body)).json()
    assert (late["timed_out"], late["finished_at"] is not None) == (True, True)
    refused = await client.post(f"{held['path']}/signals/go")
    assert refused.status_code == 409


async def test_snooze_burns_no_attempt(client: httpx.AsyncClient, held: dict[str, Any]) -> None:
    body = {"lease_token": held["lease_token"], "delay_seconds": 3600}
    answer = await client.post(f"{held['path']}/snooze", json=body)
    assert answer.json()["state"] == "scheduled"
    job = (await client.get(held["path"])).json()
    assert job["attempt"] == 0
    assert datetime.fromisoformat(job["run_at"]) > datetime.now(UTC) + timedelta(minutes=50)


async def test_a_worker_that_cancels(client: httpx.AsyncClient, held: dict[str, Any]) -> None:
    body = {"lease_token": held["lease_token"], "reason": "nothing to do"}
    job = (await client.post(f"{held['path']}/cancel", json=body)).json()
    answers.JobAnswer.model_validate(job)
    assert (job["state"], job["error"]) == ("cancelled", {"code": "cancelled", "message": "nothing to do"})
