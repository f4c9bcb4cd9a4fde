"""`queue-pg demo` and `queue-pg dev`, as a newcomer uses and abuses them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from queue_pg_workers.commands.templates import NotAllowed, parse_commands

from queue_pg.cli.demo_scenes import COMMAND, PROMPTS, allowed_commands

pytestmark = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for left-over processes in /proc")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_demo_completes_all_its_requests_twice(folder: Any, port: int) -> None:
    first = folder.run("demo", "--exit", "--port", str(port))
    assert first.returncode == 0, first.stderr
    assert "Submitted 1" in first.stderr, "more than a hundred modules have documentation"
    assert "completed in" in first.stdout
    assert f"http://127.0.0.1:{port}/docs" in first.stdout
    folder.gone()
    again = folder.json("demo", "--exit", "--port", str(port), "--modules", "12")
    assert (again["submitted"], again["completed"], again["failed"]) == (12, 12, 0)
    assert (again["plan"]["state"], len(again["plan"]["subtask_ids"])) == ("completed", 4)
    assert again["chain"]["prompt"] == f"Shorten this: You asked: {PROMPTS[0]}"
    assert (again["command"]["state"], again["command"]["artifacts"]) == ("completed", ["system.txt"])
    folder.gone()


def test_the_demo_shows_a_plan_a_chain_and_a_command_while_it_runs(folder: Any, port: int, dsn: str) -> None:
    demo = folder.start("demo", "--port", str(port), "--modules", "1", DATABASE_URL=dsn)
    demo.says("A plan     'Build a REST API for a library' became 4 subtasks")
    for subtask in ("Define API endpoints and routes", "Write API documentation", "the task itself"):
        assert demo.says(f"  completed  {subtask}")
    assert demo.says("asked      Shorten this: You asked: Name one thing that Postgres is good at.")
    demo.says("stdout  step 1 of 3")
    demo.says("completed  it left system.txt")
    shown = [line.split(maxsplit=3) for line in demo.lines if " s     std" in line]
    assert [(words[2], words[3]) for words in shown] == [
        *(("stdout", f"step {n} of 3") for n in (1, 2, 3)),
        ("stderr", "nearly"),
    ]
    assert float(shown[-1][0]) - float(shown[0][0]) > 0.2, "each was shown when it was written, not all at the end"
    demo.says("It stays up")
    demo.process.send_signal(signal.SIGTERM)
    assert demo.ended() == 0, demo.text
    folder.gone()


@pytest.mark.parametrize("configured", [None, "any", "echo {text}; ls"])
def test_the_demo_s_command_is_allowed_beside_those_that_are_configured(configured: str | None) -> None:
    allowed = parse_commands(allowed_commands(configured))
    allowed.allow(COMMAND, {})
    others = {"any": [["rm", "x"]], None: [], "echo {text}; ls": [["echo", "a"], ["ls"]]}
    for argv in others[configured]:
        allowed.allow(argv, {})
    if configured != "any":
        with pytest.raises(NotAllowed):
            allowed.allow(["sh", "-c", "true"], {})


def test_other_commands_find_the_running_demo_and_ctrl_c_ends_it(folder: Any, port: int, http: Any, psql: Any) -> None:
    demo = folder.start("demo", "--port", str(port), "--modules", "6")
    demo.says("It stays up")
    # The sample, the plan and its four subtasks, the chain's two, and the command.
    assert folder.json("stats")["jobs"]["completed"] == 6 + 5 + 2 + 1
    job = folder.json("submit", "chat", '{"prompt": "Hello"}', "--wait")
    assert (job["state"], job["result"]["text"]) == ("completed", "You asked: Hello")
    assert http("GET", f"http://127.0.0.1:{port}/jobs/{job['id']}").body["state"] == "completed"
    assert "postgresql://" in folder.json("config")["database_url"]
    assert folder.run("doctor").returncode == 0
    # As a terminal does it: to the whole process group at once.
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.ended() == 0, demo.text
    folder.gone()
    assert "Traceback" not in demo.text
    assert folder.run("list").returncode == 2, "nothing runs any more"


def test_sigterm_lets_a_running_job_go_back_to_its_queue(folder: Any, port: int, wait_until: Any) -> None:
    demo = folder.start("demo", "--port", str(port), "--modules", "2")
    demo.says("It stays up")
    hanging = folder.run("submit", "chat", '{"prompt": "x", "mock": {"hang": true}}').stdout.strip()
    wait_until(lambda: folder.json("get", hanging)["state"] == "running", "the hanging job runs")
    demo.process.send_signal(signal.SIGTERM)
    demo.says("Stopping")
    demo.process.send_signal(signal.SIGTERM)  # at once: without the grace
    assert demo.ended(15) == 0, demo.text
    folder.gone()
    assert "Traceback" not in demo.text


def test_nothing_outlives_a_killed_demo(folder: Any, port: int) -> None:
    demo = folder.start("demo", "--port", str(port), "--modules", "2")
    demo.says("It stays up")
    assert len(folder.processes()) >= 5
    demo.process.kill()
    folder.gone()


@pytest.mark.parametrize(
    ("options", "number", "code"),
    [
        ([], signal.SIGINT, 0),
        ([], signal.SIGTERM, 0),
        (["--exit"], signal.SIGINT, 130),
        (["--exit"], signal.SIGTERM, 143),
    ],
)
def test_stopped_during_the_sample(
    folder: Any, port: int, dsn: str, database: Any, options: list[str], number: int, code: int
) -> None:
    database.execute("select queue_pg.pause_queue('default')")  # so that the sample does not end
    demo = folder.start("demo", *options, "--port", str(port), "--modules", "3", DATABASE_URL=dsn)
    demo.says("Submitted 3 requests")
    demo.process.send_signal(number)
    assert demo.ended() == code, demo.text
    assert "Stopping: workers, API" in demo.text
    assert ("error: Stopped before all requests had completed." in demo.text) == bool(options)
    assert "Traceback" not in demo.text
    folder.gone()


def test_the_next_step_can_be_typed_as_it_is_shown(folder: Any, port: int, dsn: str) -> None:
    demo = folder.start("demo", "--port", str(port), "--modules", "1", DATABASE_URL=dsn)
    shown = demo.says("Try  ").partition("Try")[2].partition("  (")[0].strip()
    demo.says("It stays up")
    environment = {**folder.env, "DATABASE_URL": dsn}
    shell = ["sh", "-c", shown]
    done = subprocess.run(shell, cwd=folder.path, env=environment, capture_output=True, text=True, check=True)
    assert "Hello" in done.stdout
    demo.process.send_signal(signal.SIGTERM)
    assert demo.ended() == 0, demo.text
    folder.gone()


def test_interrupted_while_starting(folder: Any, port: int) -> None:
    demo = folder.start("demo", "--port", str(port))
    demo.says("Starting Postgres")
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.ended() == 0, demo.text
    folder.gone()
    assert "Traceback" not in demo.text
    # A killed first start leaves nothing half made.
    assert folder.run("demo", "--exit", "--port", str(port), "--modules", "2").returncode == 0


def test_a_killed_worker_or_server_is_started_again(folder: Any, port: int, wait_until: Any) -> None:
    dev = folder.start("dev", "--no-reload", "--port", str(port))
    dev.says("Ctrl-C stops it")
    pids = {pid: command for pid, command in folder.processes().items() if pid != dev.pid}
    [worker] = [pid for pid, command in pids.items() if "child worker" in command]
    # Not by the command's words: until it has read who connects, a session has those of its server.
    postgres = int((folder.path / ".data/postgres/cluster/postmaster.pid").read_text().splitlines()[0])
    os.kill(worker, signal.SIGKILL)
    dev.says("worker-1  | ended with signal SIGKILL; starting it again")
    os.kill(postgres, signal.SIGKILL)
    wait_until(lambda: postgres not in folder.processes(), "the server is dead")
    wait_until(lambda: folder.run("doctor", "db").returncode == 0, "Postgres is back")
    assert folder.json("submit", "chat", '{"prompt": "Hello"}', "--wait")["state"] == "completed"
    dev.process.send_signal(signal.SIGTERM)
    assert dev.ended() == 0, dev.text
    folder.gone()


def test_dev_runs_changed_code(folder: Any, port: int, wait_until: Any) -> None:
    tasks = "from queue_pg import task\n\n@task\nasync def greet(name: str) -> str:\n    return f'{}, {{name}}'\n"
    module = folder.path / "greetings.py"
    module.write_text(tasks.format("Hello"))
    dev = folder.start("dev", "greetings", "--port", str(port))
    dev.says("Ctrl-C stops it")
    assert folder.json("submit", "greet", '{"name": "Ada"}', "--wait")["result"] == "Hello, Ada"
    module.write_text(tasks.format("Goodbye"))
    dev.says("greetings.py")
    wait_until(
        lambda: folder.json("submit", "greet", '{"name": "Ada"}', "--wait")["result"] == "Goodbye, Ada",
        "the new code runs",
    )
    dev.process.send_signal(signal.SIGINT)
    assert dev.ended() == 0, dev.text
    folder.gone()


def test_dev_waits_for_code_that_can_be_loaded(folder: Any, port: int) -> None:
    module = folder.path / "greetings.py"
    module.write_text("def broken(:\n")
    dev = folder.start("dev", "greetings", "--port", str(port))
    dev.says("Ctrl-C stops it")
    dev.says("waiting for a change of the code")
    module.write_text("from queue_pg import task\n\n@task\nasync def greet() -> str:\n    return 'Hello'\n")
    assert folder.json("submit", "greet", "--wait")["result"] == "Hello"
    os.killpg(dev.pid, signal.SIGTERM)
    assert dev.ended() == 0, dev.text
    folder.gone()


def test_a_given_database_replaces_the_embedded_one(folder: Any, port: int, dsn: str) -> None:
    done = folder.json(
        "demo",
        "--exit",
        "--port",
        str(port),
        "--modules",
        "3",
        DATABASE_URL=dsn.replace("postgresql://", "postgresql+asyncpg://"),
    )
    assert (done["completed"], done["database_url"]) == (3, dsn)
    assert not (folder.path / ".data").exists()
    folder.gone()


def test_a_port_in_use_is_told_before_anything_starts(folder: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command in ("demo", "dev"):
            refused = folder.run(command, "--port", str(port))
            assert refused.returncode == 2
            assert refused.stderr.startswith(f"error: Port {port} is in use.")
            assert f"queue-pg {command} --port" in refused.stderr
            assert refused.stderr.count("\n") == 1
    assert not (folder.path / ".data").exists()


@pytest.mark.parametrize("fault", ["a file in its place", "foreign files", "broken data", "module"])
def test_what_keeps_it_from_starting_is_one_sentence(folder: Any, port: int, fault: str) -> None:
    data, command = folder.path / ".data" / "postgres", ["demo", "--exit", "--modules", "1"]
    if fault == "a file in its place":
        (folder.path / ".data").write_text("")
    elif fault == "foreign files":
        data.mkdir(parents=True)
        (data / "thesis.tex").write_text("")
    elif fault == "broken data":
        assert folder.run(*command, "--port", str(port)).returncode == 0
        (data / "cluster" / "global" / "pg_control").unlink()
    else:
        command = ["dev", "absent_module", "--no-reload"]
    refused = folder.run(*command, "--port", str(port))
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in refused.stderr
    assert len(errors) == 1, refused.stderr
    assert refused.returncode == (1 if fault == "module" else 2)
    assert ("absent_module" if fault == "module" else ".data") in errors[0]
    folder.gone()


class ModelServer(BaseHTTPRequestHandler):
    """The least of an OpenAI-compatible server. Answers 400 to what begins with `refused`: modules with z."""

    refused = "Module z"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        bad = asked["messages"][-1]["content"].startswith(self.refused)
        message = {"role": "assistant", "content": "from the model server"}
        body: dict[str, Any] = {
            "id": "c-1",
            "object": "chat.completion",
            "created": 1,
            "model": asked["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        answer = json.dumps({"error": {"message": "no z here"}} if bad else body).encode()
        self.send_response(400 if bad else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def model_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ModelServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_with_a_model_server_the_requests_go_there_and_failures_are_named(
    folder: Any, port: int, model_server: str
) -> None:
    done = folder.run(
        "demo", "--exit", "--port", str(port), OPENAI_BASE_URL=model_server, OPENAI_API_KEY="k", OPENAI_MODEL="tiny"
    )
    assert done.returncode == 1
    assert f"tiny on {model_server}" in done.stderr
    assert "from the model server" in done.stdout
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "requests did not complete" in error
    assert "zipfile" in error
    assert "no z here" in error
    assert "  completed  from the model server" in done.stdout, "the chain went there, too"
    folder.gone()


def test_a_scene_that_fails_is_named(
    folder: Any, port: int, dsn: str, model_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelServer, "refused", "Shorten this")
    done = folder.run(
        *("demo", "--exit", "--modules", "1", "--port", str(port)),
        # Of queues that have nothing to do with the demo's.
        DATABASE_URL=dsn,
        QUEUES="mail",
        SUBTASK_QUEUE="parts",
        OPENAI_BASE_URL=model_server,
        OPENAI_API_KEY="k",
    )
    assert done.returncode == 1
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: The chain did not complete: upstream_refused: ")
    assert "completed  it left system.txt" in done.stdout, "the others go on"
    folder.gone()
