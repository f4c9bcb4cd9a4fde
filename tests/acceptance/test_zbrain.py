"""ZBrain's lines of the acceptance list. That organisations do not see each other comes with its keys."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from commanding import commands
from in_process import running, soon
from queue_pg_api import observing
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.measures.catalogue import MEASURES
from queue_pg.tasks import Tasks, current_job
from queue_pg.testing import Clock

ROOT = Path(__file__).parents[2]
STATES = ("scheduled", "waiting", "queued", "running", "completed", "failed", "cancelled")
# The table of legal edges, of which these are what HTTP can do: (from, action) -> to.
EDGE = re.compile(r"^\| (\w+) \| (\w+(?: \([^)]+\))?) \| (\w+) \| (?:same|\+1|-1|0) \| ", re.MULTILINE)
LEGAL = {(found[1], found[2]): found[3] for found in EDGE.finditer((ROOT / "docs" / "states.md").read_text())}
ACTIONS = ("claim", "complete", "fail", "fail (last attempt)", "discard", "cancel", "retry")


async def submit(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await api.post("/jobs", json={"kind": "k", **fields})
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def claim(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await api.post("/jobs/claim", json={"worker": "w1", **fields})
    [job] = answer.json()["jobs"]
    found: dict[str, Any] = job
    return found


async def in_state(api: httpx.AsyncClient, state: str, *, max_attempts: int = 3) -> tuple[str, int]:
    """Make a job in `state`, by requests alone; return its id and the best lease that anybody ever had of it."""
    fields: dict[str, Any] = {"max_attempts": max_attempts}
    if state == "scheduled":
        fields["delay_seconds"] = 3600
    if state == "waiting":
        fields["depends_on"] = [(await submit(api, queue="parents"))["id"]]
    job_id: str = (await submit(api, **fields))["id"]
    token = 1
    if state in ("running", "completed", "failed", "cancelled"):
        token = (await claim(api))["lease_token"]
    if state == "completed":
        await api.post(f"/jobs/{job_id}/complete", json={"lease_token": token})
    if state == "failed":
        await api.post(f"/jobs/{job_id}/fail", json={"lease_token": token, "error": "no", "retry": False})
    if state == "cancelled":
        await api.post(f"/jobs/{job_id}/cancel")
    assert (await api.get(f"/jobs/{job_id}")).json()["state"] == state
    return job_id, token


async def act(api: httpx.AsyncClient, action: str, job_id: str, token: int) -> httpx.Response:
    if action == "claim":
        return await api.post("/jobs/claim", json={"worker": "prober"})
    body: dict[str, Any] = {}
    if action not in ("cancel", "retry"):
        body["lease_token"] = token
    if action in ("fail", "fail (last attempt)", "discard"):
        body |= {"error": "no", "retry": action != "discard"}
    path = action.partition(" ")[0].replace("discard", "fail")
    return await api.post(f"/jobs/{job_id}/{path}", json=body)


@pytest.mark.parametrize("state", STATES)
async def test_every_transition_happens_and_every_illegal_one_is_refused(api: httpx.AsyncClient, state: str) -> None:
    for action in ACTIONS:
        job_id, token = await in_state(api, state, max_attempts=1 if "last" in action else 3)
        before = (await api.get(f"/jobs/{job_id}")).json()
        answer = await act(api, action, job_id, token)
        after = (await api.get(f"/jobs/{job_id}")).json()
        expected = LEGAL.get((state, action))
        if expected is not None:
            assert (answer.status_code, after["state"]) == (200, expected), action
        elif (state, action) == ("cancelled", "cancel"):
            assert (answer.status_code, after) == (200, before), "twice is fine"
        elif action == "claim":
            assert (answer.json(), after) == ({"jobs": []}, before)
        else:
            assert (answer.status_code, answer.json()["code"]) in ((409, "wrong_state"), (409, "lease_lost")), action
            assert after == before, f"{action} of a {state} job changed it"
        await api.post(f"/jobs/{job_id}/cancel")  # out of the way of the next claim


async def test_every_state_has_its_word(api: httpx.AsyncClient, clock: Clock) -> None:
    words = dict(
        zip(STATES, ("Pending", "Pending", "Pending", "Running", "Succeeded", "Failed", "Canceled"), strict=True)
    )
    for state, word in words.items():
        job_id, token = await in_state(api, state)
        assert (await api.get(f"/jobs/{job_id}?vocab=zbrain")).json()["state"] == word
        listed = (await api.get("/jobs?vocab=zbrain&limit=1")).json()["jobs"]
        assert [(job["id"], job["state"]) for job in listed] == [(job_id, word)]
        if state == "running":
            await api.post(f"/jobs/{job_id}/fail", json={"lease_token": token, "error": "no"})
            assert (await api.get(f"/jobs/{job_id}?vocab=zbrain")).json()["state"] == "Retrying"
        await api.post(f"/jobs/{job_id}/cancel")
    refused = await api.get("/jobs?vocab=klingon")
    assert (refused.status_code, refused.json()["field"]) == (422, "vocab")


async def test_retries_exhausted_is_failed(api: httpx.AsyncClient, clock: Clock) -> None:
    job_id = (await submit(api, max_attempts=2))["id"]
    for expected in ("scheduled", "failed"):
        token = (await claim(api, wait=30))["lease_token"]
        answer = await api.post(f"/jobs/{job_id}/fail", json={"lease_token": token, "error": "no", "delay_seconds": 5})
        assert answer.json()["state"] == expected
        clock.advance(6)


async def test_lease_cleanup_gives_a_silent_workers_job_to_another(api: httpx.AsyncClient, clock: Clock) -> None:
    job_id = (await submit(api, timeout_seconds=3600))["id"]
    first = await claim(api, lease_seconds=300)
    clock.advance(200)
    kept = await api.post(f"/jobs/{job_id}/heartbeat", json={"lease_token": first["lease_token"], "lease_seconds": 300})
    assert kept.status_code == 200
    clock.advance(200)
    assert (await api.get(f"/jobs/{job_id}")).json()["state"] == "running", "kept by the heartbeat"
    clock.advance(150)
    second = await claim(api, wait=30)
    assert (second["id"], second["lease_token"]) == (job_id, first["lease_token"] + 1)
    events = (await api.get(f"/jobs/{job_id}/events", headers={"accept": "application/json"})).json()["events"]
    assert [event["type"] for event in events] == ["submitted", "started", "lease_lost", "started"]
    late = await api.post(f"/jobs/{job_id}/complete", json={"lease_token": first["lease_token"]})
    assert (late.status_code, late.json()["code"]) == (409, "lease_lost")


async def test_cancel_a_pending_job(dsn: str, api: httpx.AsyncClient) -> None:
    job_id = (await submit(api))["id"]
    cancelled = (await api.post(f"/jobs/{job_id}/cancel", json={"reason": "not needed"})).json()
    assert (cancelled["state"], cancelled["error"]["message"]) == ("cancelled", "not needed")
    assert (await api.post("/jobs/claim", json={"worker": "w1"})).json()["jobs"] == []


async def test_cancel_a_running_job_stops_its_handler(dsn: str, api: httpx.AsyncClient) -> None:
    tasks, began, stopped = Tasks(), asyncio.Event(), asyncio.Event()

    @tasks.task
    async def k() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with running(dsn, tasks) as worker:
        assert await asyncio.to_thread(worker.wakeups.wait_listening, 20)
        job_id = (await submit(api))["id"]
        await soon(began.wait())
        cancelled = (await api.post(f"/jobs/{job_id}/cancel", json={"reason": "changed my mind"})).json()
        assert cancelled["state"] == "cancelled"
        await soon(stopped.wait())
    assert (await api.get(f"/jobs/{job_id}")).json()["error"]["code"] == "cancelled"


async def test_logs_are_paged_by_from_seq(dsn: str, api: httpx.AsyncClient) -> None:
    tasks = Tasks()

    @tasks.task
    async def k() -> None:
        for n in range(25):
            await current_job().log(f"line {n}", stream="stderr" if n % 5 == 0 else "stdout")

    job_id = (await submit(api))["id"]
    async with running(dsn, tasks):
        assert (await api.get(f"/jobs/{job_id}?wait=20")).json()["state"] == "completed"
    lines: list[dict[str, Any]] = []
    from_seq = 0
    while page := (await api.get(f"/jobs/{job_id}/logs?from_seq={from_seq}&limit=10")).json()["logs"]:
        assert len(page) <= 10
        lines += page
        from_seq = page[-1]["seq"] + 1
    assert [line["line"] for line in lines] == [f"line {n}" for n in range(25)]
    assert [line["seq"] for line in lines] == sorted({line["seq"] for line in lines})
    errors = (await api.get(f"/jobs/{job_id}/logs?stream=stderr")).json()["logs"]
    assert [line["line"] for line in errors] == [f"line {n}" for n in range(0, 25, 5)]
    assert all(line["stream"] == "stderr" for line in errors)


async def test_artifact_sha256_round_trip(dsn: str, api: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    tasks = Tasks()
    content = bytes(range(256)) * 10_000  # three chunks, the last one short

    @tasks.task
    async def k() -> str:
        return (await current_job().artifact("out/data.bin", content)).sha256

    job_id = (await submit(api))["id"]
    async with running(dsn, tasks):
        result = (await api.get(f"/jobs/{job_id}?wait=20")).json()["result"]
    [listed] = (await api.get(f"/jobs/{job_id}/artifacts")).json()["artifacts"]
    digest = hashlib.sha256(content).hexdigest()
    assert result == digest
    assert (listed["name"], listed["sha256"], listed["size"]) == ("out/data.bin", digest, len(content))
    read = await api.get(f"/jobs/{job_id}/artifacts/out/data.bin")
    assert read.content == content
    assert read.headers["etag"].strip('"') == digest
    # Content-addressed: the same content of another job is not stored again.
    before = await (await conn.execute("select count(*) from queue_pg.blobs")).fetchone()
    other = (await submit(api))["id"]
    stored = await api.put(f"/jobs/{other}/artifacts/copy.bin", content=content, params={"sha256": digest})
    assert (stored.status_code, stored.json()["sha256"]) == (201, digest)
    assert await (await conn.execute("select count(*) from queue_pg.blobs")).fetchone() == before
    wrong = await api.put(f"/jobs/{other}/artifacts/wrong.bin", content=b"x", params={"sha256": digest})
    assert wrong.status_code == 422


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "%2e%2e/x", "a/%2E%2E/x", "..%2Fx", "%2Fetc%2Fpasswd", "a%5C..%5Cx"]
)
async def test_artifact_paths_that_lead_out_are_refused(api: httpx.AsyncClient, name: str) -> None:
    job_id = (await submit(api))["id"]
    port = api.base_url.port
    assert port is not None
    # By hand, because a client would resolve the dots itself.
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"PUT /jobs/{job_id}/artifacts/{name} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nconnection: close\r\n\r\n"
    writer.write(head.encode() + b"x")
    answer = await soon(reader.read())
    writer.close()
    assert answer.split(b" ", 2)[1] == b"422", answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "invalid_artifact"
    assert (await api.get(f"/jobs/{job_id}/artifacts")).json()["artifacts"] == []


# -- process jobs ------------------------------------------------------------------------------------------------------


async def run_command(api: httpx.AsyncClient, *cmd: str, **payload: Any) -> dict[str, Any]:
    """Run a command of one attempt to its end; give its job."""
    body = {"kind": "command", "max_attempts": 1, "payload": {"cmd": list(cmd), **payload}}
    job_id = (await submit(api, **body))["id"]
    ended: dict[str, Any] = (await api.get(f"/jobs/{job_id}?wait=60")).json()
    return ended


def touched(folder: Path) -> list[Path]:
    return list(folder.rglob("pwned"))


async def test_argv_never_reaches_a_shell(dsn: str, api: httpx.AsyncClient, tmp_path: Path) -> None:
    touch = f"touch {tmp_path}/pwned"
    words = [
        f"$({touch})",
        f"`{touch}`",
        f"; {touch}",
        f"| {touch}",
        f"> {tmp_path}/pwned",
        "$HOME",
        "*",
        "a  b",
        "'\"",
    ]
    async with commands(dsn, tmp_path / "workspaces"):
        said = await run_command(api, "printf", "%s\\n", *words)
    assert (said["state"], said["result"]["stdout"].splitlines()) == ("completed", words)
    assert touched(tmp_path) == []


async def test_a_process_gets_its_input_environment_and_timeout(
    dsn: str, api: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with commands(dsn, tmp_path):
        given = {"question": "é"}
        read = await run_command(api, "cat", input=given)
        told = await run_command(api, "printenv", "GIVEN", env={"GIVEN": "by the job"})
        late = await run_command(api, "sleep", "600", timeout_secs=0.5)
        bad = await run_command(api, "sh", "-c", "echo to stderr >&2; exit 7")
        kept = await run_command(api, "cp", "/dev/null", "artifacts/empty.txt")
    assert json.loads(read["result"]["stdout"]) == given
    assert told["result"]["stdout"] == "by the job\n"
    assert (late["state"], late["error"]["code"]) == ("failed", "timeout")
    assert (bad["state"], bad["error"]["code"], bad["error"]["exit_code"]) == ("failed", "exit_code", 7)
    assert bad["error"]["stderr"] == "to stderr\n"
    [artifact] = kept["result"]["artifacts"]
    assert (artifact["name"], artifact["sha256"]) == ("empty.txt", hashlib.sha256(b"").hexdigest())


async def test_only_commands_of_the_allow_list_are_run(dsn: str, api: httpx.AsyncClient, tmp_path: Path) -> None:
    async with commands(dsn, tmp_path, commands="echo {text}"):
        fine = await run_command(api, "echo", "a; b")
        refused = [await run_command(api, *cmd) for cmd in (("rm", "-rf", "x"), ("echo", "-n"), ("echo", "a", "b"))]
    assert fine["result"]["stdout"] == "a; b\n"
    assert {job["error"]["code"] for job in refused} == {"command_not_allowed"}


# -- the order of events -----------------------------------------------------------------------------------------------


@pytest.fixture
async def talker(dsn: str) -> AsyncIterator[Tasks]:
    """A worker whose handlers say three hundred things in an order that shows."""
    tasks = Tasks()

    @tasks.task
    async def k() -> str:
        job = current_job()
        for n in range(100):
            await job.log(f"line {n}")
            await job.progress({"n": n})
            await job.stream(f"{n} ")
            if n % 20 == 0:
                await asyncio.sleep(0)
        return "said"

    async with running(dsn, tasks):
        yield tasks


EXPECTED = ["submitted", "started", *["log", "progress", "chunk"] * 100, "completed"]


def check_order(events: list[dict[str, Any]]) -> None:
    assert [event["seq"] for event in events] == list(range(1, len(EXPECTED) + 1)), "no gap, nothing twice"
    assert [event["type"] for event in events] == EXPECTED
    assert [event["data"]["line"] for event in events if event["type"] == "log"] == [f"line {n}" for n in range(100)]
    assert "".join(event["data"]["text"] for event in events if event["type"] == "chunk").split() == [
        str(n) for n in range(100)
    ]


async def read_socket(api: httpx.AsyncClient, job_id: str, after: int = 0) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    async with connect(f"ws://127.0.0.1:{api.base_url.port}/jobs/{job_id}/ws?after={after}") as socket:
        with suppress(ConnectionClosed):
            while True:
                events.append(json.loads(await soon(socket.recv())))
    assert (socket.close_code, socket.close_reason) == (1000, "completed")
    return events


async def read_stream(api: httpx.AsyncClient, job_id: str, stop: int | None = None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    last = 0
    async with api.stream("GET", f"/jobs/{job_id}/events", headers={"accept": "text/event-stream"}) as answer:
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                last = int(value)
            if name == "data" and (data := json.loads(value)).keys() >= {"seq", "type"}:
                assert data["seq"] == last
                events.append(data)
                if data["seq"] == stop:
                    break
    return events


@asynccontextmanager
async def early_and_late(api: httpx.AsyncClient, read: Any) -> AsyncIterator[tuple[Any, Any]]:
    job = await submit(api, delay_seconds=0)
    early = asyncio.create_task(read(api, job["id"]))
    try:
        assert (await api.get(f"/jobs/{job['id']}?wait=30")).json()["state"] == "completed"
        yield await soon(early), await soon(read(api, job["id"]))
    finally:
        early.cancel()


@pytest.mark.usefixtures("talker")
async def test_web_sockets_send_every_event_in_order(api: httpx.AsyncClient) -> None:
    async with early_and_late(api, read_socket) as (early, late):
        check_order(early)
        assert late == early, "who comes late reads the same"


@pytest.mark.usefixtures("talker")
async def test_server_sent_events_come_in_order_and_go_on_after_last_event_id(api: httpx.AsyncClient) -> None:
    async with early_and_late(api, read_stream) as (early, late):
        check_order(early)
        assert late == early
    job_id = (await api.get("/jobs")).json()["jobs"][0]["id"]
    first = await read_stream(api, job_id, stop=100)
    rest = await api.get(
        f"/jobs/{job_id}/events", headers={"accept": "text/event-stream", "last-event-id": str(first[-1]["seq"])}
    )
    data = [json.loads(line[6:]) for line in rest.text.splitlines() if line.startswith("data: ")]
    check_order(first + [event for event in data if "seq" in event])


@pytest.mark.usefixtures("talker")
async def test_topics_of_jobs_are_broadcast_in_order(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "START_SECONDS", 20.0)
    heard: dict[str, list[str]] = {}
    async with connect(f"ws://127.0.0.1:{api.base_url.port}/ws/jobs?topics=jobs/kind/k") as socket:
        assert json.loads(await soon(socket.recv())) == {"type": "subscribed", "topics": ["jobs/kind/k"]}
        ids = [(await submit(api))["id"] for _ in range(5)]
        while sum("completed" in types for types in heard.values()) < 5:
            told = json.loads(await soon(socket.recv()))
            heard.setdefault(told["id"], []).append(told["type"])
    assert heard == {job_id: ["submitted", "started", "completed"] for job_id in ids}


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "measure", "metric", "at_least", "at_most"),
    [
        ("more than 10,000 submissions a second", "bulk", "rate", 10_000, None),
        ("more than 50,000 events a second", "events", "rate", 50_000, None),
        ("less than 1 ms for a submission", "submit_latency", "p50", None, 1),
        ("less than 100 ms from submission to assignment", "flow_latency", "p99", None, 100),
        ("less than 10 ms until an event is delivered", "event_latency", "p99", None, 10),
    ],
)
def test_bench_measures_the_five_figures(
    figure: str, measure: str, metric: str, at_least: float | None, at_most: float | None
) -> None:
    targets = [target for target in MEASURES[measure].TARGETS if target.relation == "value"]
    assert (metric, at_least, at_most) in {(each.metric, each.at_least, each.at_most) for each in targets}, figure
