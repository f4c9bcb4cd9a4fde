"""What the founding systems' READMEs tell people to type, typed against running services; only ports are exchanged."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

Curl = Callable[..., tuple[int, Any]]


@pytest.fixture
def curl(api: str) -> Curl:
    """Run a line of a README that begins with `curl`; give the status and the body, which is JSON or nothing.

    Its address, whatever the port, is that of the running service; names in capitals are replaced.
    """

    def run(line: str, **names: str) -> tuple[int, Any]:
        for name, value in names.items():
            line = line.replace(name, value)
        words = shlex.split(line.replace("\\\n", " "))
        assert words.pop(0) == "curl"
        [at] = [n for n, word in enumerate(words) if word.startswith("http://localhost:")]
        words[at] = api + "/" + words[at].removeprefix("http://").partition("/")[2]
        if shutil.which("curl") is None:
            return by_httpx(words)
        done = subprocess.run(
            ["curl", "--silent", "--show-error", "--noproxy", "*", "--write-out", "\n%{http_code}", *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body) if body else None

    return run


def by_httpx(words: list[str]) -> tuple[int, Any]:
    """What curl does with these words, on a machine that has none."""
    method, url, headers, data = "GET", "", {}, None
    rest = iter(words)
    for word in rest:
        match word:
            case "-X":
                method = next(rest)
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case "-d":
                data = next(rest)
                method = "POST" if method == "GET" else method
            case _:
                url = word
    answer = httpx.request(method, url, headers=headers, content=data, timeout=60, trust_env=False)
    return answer.status_code, answer.json() if answer.content else None


# -- Cerebro -----------------------------------------------------------------------------------------------------------

CEREBROS_WORKER = """
import json
import os
import urllib.request

MANAGER = os.environ["MANAGER_URL"]


def post(path, body=None):
    data = json.dumps(body).encode() if body is not None else b""
    request = urllib.request.Request(MANAGER + path, data, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request) as answer:
        return json.load(answer) if answer.status == 200 else None


while job := post("/get_job"):
    last = job["messages"][-1]["content"]
    if last == "fail":
        post("/complete_job", {"job_id": job["job_id"], "status": "failed", "error": "asked to"})
    else:
        post("/complete_job", {"job_id": job["job_id"], "status": "completed", "result": last.upper()})
"""


def test_cerebro_by_curl(curl: Curl) -> None:
    status, submitted = curl("""curl -X POST http://localhost:5000/submit_job \\
        -H "Content-Type: application/json" \\
        -d '{"messages": [{"role": "user", "content": "Hello"}], "metadata": {"priority": "normal"}}'""")
    assert (status, submitted["status"]) == (201, "queued")
    job_id = submitted["job_id"]
    assert curl("curl http://localhost:5000/get_result/JOB_ID", JOB_ID=job_id)[1]["status"] == "queued"
    status, job = curl("curl -X POST http://localhost:5000/get_job")
    assert (status, job["job_id"], job["messages"][0]["content"]) == (200, job_id, "Hello")
    assert curl("curl http://localhost:5000/stats")[1]["processing"] == 1
    status, _ = curl(
        """curl -X POST http://localhost:5000/complete_job -H "Content-Type: application/json" \\
        -d '{"job_id": "JOB_ID", "status": "completed", "result": {"response": "Hi!"}}'""",
        JOB_ID=job_id,
    )
    assert status == 200
    status, result = curl("curl http://localhost:5000/get_result/JOB_ID", JOB_ID=job_id)
    assert (status, result["status"], result["result"]) == (200, "completed", {"response": "Hi!"})
    assert curl("curl http://localhost:5000/stats")[1]["completed"] == 1
    assert curl("curl http://localhost:5000/health")[1]["status"] == "healthy"


def test_cerebro_s_example_worker(folder: Any, curl: Curl, dsn: str) -> None:
    submit = """curl -X POST http://localhost:5000/submit_job -H "Content-Type: application/json" \\
        -d '{"messages": [{"role": "user", "content": "WORDS"}], "metadata": {}}'"""
    ids = {words: curl(submit, WORDS=words)[1]["job_id"] for words in ("one", "fail", "three")}
    # An idle queue ends this worker; a service that answers at once when it is idle spares the test the wait.
    quick = folder.start("serve", "--port", "0", DATABASE_URL=dsn, REDIS_BLOCK_TIMEOUT="0")
    manager = quick.says("API on ").partition("API on ")[2].partition(",")[0]
    (folder.path / "worker.py").write_text(CEREBROS_WORKER)
    subprocess.run(
        [sys.executable, "worker.py"],
        cwd=folder.path,
        env={**folder.env, "MANAGER_URL": manager, "no_proxy": "*"},
        check=True,
        timeout=60,
    )
    ended = {words: curl("curl http://localhost:5000/get_result/JOB_ID", JOB_ID=job)[1] for words, job in ids.items()}
    assert {words: (found["status"], found["result"]) for words, found in ended.items()} == {
        "one": ("completed", "ONE"),
        "fail": ("failed", None),
        "three": ("completed", "THREE"),
    }


# -- BRAiN -------------------------------------------------------------------------------------------------------------

BRAINS_CLIENT = """
import asyncio

from brain import TaskQueue


async def main():
    queue = TaskQueue()
    await queue.connect()
    task_id = await queue.push_task(
        "spawn_agent",
        {
            "cluster_id": "cluster-123",
            "agent_def": {"role": "worker", "name": "agent-1", "capabilities": ["search"]},
        },
    )
    result = await queue.get_task_result(task_id, timeout=10)
    print(task_id, result["success"], result["role"])
    scaled = await queue.push_task("scale_cluster", {"cluster_id": "cluster-123", "target_workers": 5})
    print((await queue.get_task_result(scaled))["workers"])
    for worker in await queue.active_workers():
        print(worker.id, worker.processed, worker.failed)
    await queue.close()


asyncio.run(main())
"""


def test_brain_s_snippet_with_three_workers(folder: Any, dsn: str, psql: list[str], wait_until: Any) -> None:
    environment = {**folder.env, "DATABASE_URL": dsn.replace("postgresql://", "postgresql+asyncpg://")}
    environment["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES), folder.env["PYTHONPATH"]])
    (folder.path / "push.py").write_text(BRAINS_CLIENT)
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "brain.worker", "cluster"],
            cwd=folder.path,
            env={**environment, "WORKER_ID": f"worker-{n}"},
            stderr=subprocess.DEVNULL,
        )
        for n in (1, 2, 3)
    ]
    try:
        live = [*psql, dsn, "-c", "select count(*) from queue_pg.workers"]
        wait_until(lambda: subprocess.check_output(live, text=True) == "3\n", "the workers are registered")
        done = subprocess.run(
            [sys.executable, "push.py"],
            cwd=folder.path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    finally:
        for worker in workers:
            worker.terminate()
        codes = [worker.wait(60) for worker in workers]
    first, second, *listed = done.stdout.splitlines()
    assert first.split()[1:] == ["True", "worker"]
    assert second == "5"
    assert {line.split()[0] for line in listed} == {"worker-1", "worker-2", "worker-3"}
    assert codes == [0, 0, 0], "each drained at SIGTERM"


def test_brain_s_queue_length_and_a_look_without_taking(folder: Any, dsn: str, psql: list[str]) -> None:
    def ask(statement: str) -> str:
        return subprocess.check_output([*psql, dsn, "-c", statement], text=True).strip()

    for target in (1, 2):
        payload = json.dumps({"cluster_id": "c", "target_workers": target})
        done = folder.run("submit", "scale_cluster", payload, "--queue", "brain:cluster_tasks", DATABASE_URL=dsn)
        assert done.returncode == 0, done.stderr
    length = "select queued from queue_pg.overview where queue = 'brain:cluster_tasks'"
    peek = (
        "select payload ->> 'target_workers' from queue_pg.jobs where queue = 'brain:cluster_tasks'"
        " and state = 'queued' order by priority desc, run_at, id limit 1"
    )
    assert [ask(length), ask(peek), ask(length)] == ["2", "1", "2"]


# -- Orchestrator ------------------------------------------------------------------------------------------------------


def test_orchestrator_by_curl(folder: Any, curl: Curl, dsn: str, psql: list[str]) -> None:
    def ask(statement: str) -> str:
        return subprocess.check_output([*psql, dsn, "-c", statement], text=True).strip()

    assert curl("curl http://localhost:8000/health")[1]["status"] == "healthy"
    status, task = curl("""curl -X POST http://localhost:8000/tasks \\
        -H "Content-Type: application/json" \\
        -d '{"description": "Build user authentication", "priority": 1}'""")
    assert (status, task["status"], task["description"]) == (200, "queued", "Build user authentication")
    assert task["subtasks"] == [
        "Design user database schema",
        "Implement JWT token generation",
        "Create login/logout endpoints",
        "Add password hashing with bcrypt",
    ]
    read = curl("curl http://localhost:8000/tasks/TASK_ID", TASK_ID=task["task_id"])
    assert read == (200, task)
    # What its README looks for in the store: LLEN work_queue, LINDEX work_queue 0, KEYS task:*.
    assert ask("select queued from queue_pg.overview where queue = 'work_queue'") == "4", "as its README expects"
    first = "select payload from queue_pg.jobs where queue = 'work_queue' order by priority desc, run_at, id limit 1"
    assert json.loads(ask(first)) == {
        "task_id": task["task_id"],
        "subtask_id": f"{task['task_id']}-0",
        "description": "Design user database schema",
        "priority": 1,
    }
    assert ask("select id from queue_pg.jobs where kind = 'plan'") == task["task_id"]
    folder.start("worker", "--queues", "default,work_queue", DATABASE_URL=dsn).says("serves default")
    assert folder.run("wait", task["task_id"], "--timeout", "60s", DATABASE_URL=dsn).returncode == 0
    done = curl("curl http://localhost:8000/tasks/TASK_ID", TASK_ID=task["task_id"])[1]
    assert (done["status"], len(done["output"])) == ("completed", 4)
    status, refused = curl("curl http://localhost:8000/tasks/nonexistent-id")
    assert (status, refused["detail"]) == (404, "Task not found")
    status, refused = curl("""curl -X POST http://localhost:8000/tasks \\
        -H "Content-Type: application/json" -d '{"priority": 1}'""")
    assert (status, refused["code"]) == (422, "invalid_job")


# -- ZBrain ------------------------------------------------------------------------------------------------------------

ZBRAINS_WATCHER = """
import asyncio
import json
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK


async def main():
    async with connect(os.environ["SOCKET"], proxy=None) as socket:
        try:
            while True:
                event = json.loads(await socket.recv())
                print(event["seq"], event["type"], event["data"].get("line", ""), flush=True)
        except ConnectionClosedOK as closed:
            print("closed:", closed.rcvd.reason, flush=True)


asyncio.run(main())
"""


def test_zbrain_s_job_with_live_logs(folder: Any, curl: Curl, api: str, dsn: str) -> None:
    folder.start("worker", DATABASE_URL=dsn, QUEUE_PG_COMMANDS="any", ZWORKER_CONCURRENCY="4").says("serves default")
    # Its JobSpec: cmd, input, env, timeout_secs; max_retries 3 is max_attempts 4 here.
    script = 'echo "hello $WHO"; cat; echo; until [ -e "$RELEASE" ]; do sleep 0.05; done; echo bye; : > artifacts/out'
    spec = {
        "cmd": ["sh", "-c", script],
        "input": {"question": 42},
        "env": {"WHO": "zbrain", "RELEASE": str(folder.path / "release")},
        "timeout_secs": 60,
        "max_attempts": 4,
    }
    create = "curl -X POST http://localhost:8080/tasks -H 'Content-Type: application/json' -d "
    status, task = curl(create + shlex.quote(json.dumps(spec)))
    assert (status, task["status"], task["max_attempts"]) == (200, "queued", 4)
    job_id = task["task_id"]
    (folder.path / "watch.py").write_text(ZBRAINS_WATCHER)
    watching = subprocess.Popen(
        [sys.executable, "watch.py"],
        cwd=folder.path,
        env={**folder.env, "SOCKET": f"{api.replace('http', 'ws', 1)}/jobs/{job_id}/ws"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    seen: list[str] = []
    with watching, watching.stdout as told:
        for line in told:
            seen.append(line.rstrip())
            if "hello zbrain" in line:
                # It goes on only when this says so: the line was seen while the command ran.
                running = curl("curl 'http://localhost:8080/jobs/JOB_ID?vocab=zbrain'", JOB_ID=job_id)[1]
                assert running["state"] == "Running"
                (folder.path / "release").touch()
    assert [line.split()[0] for line in seen[:-1]] == [str(n + 1) for n in range(len(seen) - 1)]
    said = [line.partition(" log ")[2] for line in seen if " log " in line]
    assert said == ["hello zbrain", '{"question": 42}', "bye"]
    assert seen[-1] == "closed: completed"
    status, logs = curl("curl 'http://localhost:8080/jobs/JOB_ID/logs?from_seq=0&limit=2'", JOB_ID=job_id)
    assert (status, [line["line"] for line in logs["logs"]]) == (200, said[:2])
    _, found = curl("curl http://localhost:8080/jobs/JOB_ID/artifacts", JOB_ID=job_id)
    assert [artifact["name"] for artifact in found["artifacts"]] == ["out"]
    assert curl("curl 'http://localhost:8080/jobs/JOB_ID?vocab=zbrain'", JOB_ID=job_id)[1]["state"] == "Succeeded"


def test_zbrain_s_cancel(folder: Any, curl: Curl, dsn: str) -> None:
    folder.start("worker", DATABASE_URL=dsn, QUEUE_PG_COMMANDS="any").says("serves default")
    task = curl("""curl -X POST http://localhost:8080/tasks -H 'Content-Type: application/json' \\
        -d '{"cmd": ["sh", "-c", "echo started; sleep 600"]}'""")[1]
    page = "curl 'http://localhost:8080/jobs/JOB_ID/events?after=2&wait=60' -H 'Accept: application/json'"
    assert curl(page, JOB_ID=task["task_id"])[1]["events"][0]["data"]["line"] == "started"
    status, cancelled = curl("curl -X POST http://localhost:8080/jobs/JOB_ID/cancel", JOB_ID=task["task_id"])
    assert (status, cancelled["state"]) == (200, "cancelled")


# -- Vinci4D -----------------------------------------------------------------------------------------------------------


def test_vinci_by_curl(folder: Any, curl: Curl, dsn: str) -> None:
    """Create, schedule, chain, retry and cancel."""
    json_header = "-H 'Content-Type: application/json'"
    folder.start("worker", DATABASE_URL=dsn, LLM_PROVIDER="mock").says("serves default")
    create = f"curl -X POST http://localhost:8000/tasks {json_header} -d "
    status, task = curl(create + """'{"name": "Summary", "prompt": "Summarise Moby Dick", "scheduled_for": null}'""")
    assert (status, task["name"], task["status"]) == (200, "Summary", "queued")
    assert folder.run("wait", task["id"], "--timeout", "60s", DATABASE_URL=dsn).returncode == 0
    done = curl("curl http://localhost:8000/tasks/TASK_ID", TASK_ID=task["id"])[1]
    assert (done["status"], done["output"]["text"]) == ("completed", "You asked: Summarise Moby Dick")

    chained = curl(
        f"curl -X POST http://localhost:8000/tasks/TASK_ID/chain {json_header} "
        """-d '{"name": "Translation", "prompt": "Translate:"}'""",
        TASK_ID=task["id"],
    )[1]
    assert (chained["parent_task_id"], chained["prompt"]) == (
        task["id"],
        "Translate:\n\nYou asked: Summarise Moby Dick",
    )
    status, later = curl(create + """'{"name": "x", "prompt": "Later", "scheduled_for": "2099-01-01T09:00:00Z"}'""")
    assert (status, later["status"], later["scheduled_for"]) == (200, "scheduled", "2099-01-01T09:00:00Z")
    early = f"curl -X POST http://localhost:8000/tasks/TASK_ID/chain {json_header} " """-d '{"prompt": "too early"}'"""
    assert curl(early, TASK_ID=later["id"])[0] == 409
    listed = curl("curl 'http://localhost:8000/tasks?limit=50&offset=0'")[1]["tasks"]
    assert [each["id"] for each in listed] == [later["id"], chained["id"], task["id"]]
    children = curl("curl 'http://localhost:8000/tasks?limit=50&offset=0&parent_task_id=TASK_ID'", TASK_ID=task["id"])
    assert [each["id"] for each in children[1]["tasks"]] == [chained["id"]]
    assert len(curl("curl 'http://localhost:8000/tasks?limit=1&offset=1'")[1]["tasks"]) == 1

    retry = f"curl -X POST http://localhost:8000/tasks/TASK_ID/retry {json_header} " """-d '{"max_attempts": 5}'"""
    assert curl(retry, TASK_ID=task["id"])[0] == 409, "only failed ones are retried"
    failing = folder.run("submit", "chat", '{"prompt": 1}', "--max-attempts", "1", "--wait", DATABASE_URL=dsn)
    assert failing.returncode == 1, failing.stderr
    [broken] = curl("curl 'http://localhost:8000/tasks?state=failed'")[1]["tasks"]
    status, again = curl(retry, TASK_ID=broken["id"])
    assert (status, again["max_attempts"]) == (200, 5)

    status, cancelled = curl("curl -X POST http://localhost:8000/tasks/TASK_ID/cancel", TASK_ID=later["id"])
    assert (status, cancelled["status"]) == (200, "cancelled")
    assert curl("curl http://localhost:8000/health")[1]["status"] == "healthy"
