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
