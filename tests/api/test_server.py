"""What needs sockets and processes: clients that hang up, the end of the process, `queue-pg serve`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest


def request(path: str, body: dict[str, Any], *, port: int) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


@pytest.fixture
async def http(served: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
        yield client


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the other side of a socket sets no event
            await asyncio.sleep(0.005)


async def test_a_claimer_that_hangs_up_leaves_the_line(served: Any, http: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request("/jobs/claim", {"worker": "gone", "wait": 60}, port=served.port))
    await until(lambda: served.service.claims.waiting == 1)
    writer.close()
    await until(lambda: served.service.claims.waiting == 0)
    job = (await http.post("/jobs", json={"kind": "chat"})).json()
    assert job["state"] == "queued"
    assert (await http.get(f"/jobs/{job['id']}")).json()["attempt"] == 0
    del reader


async def test_jobs_claimed_for_a_client_that_has_gone_go_back(
    served: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = (await http.post("/jobs", json={"kind": "chat"})).json()
    queue = served.service.queue
    claim = queue.claim
    claimed, hung_up = asyncio.Event(), asyncio.Event()

    async def slow_claim(*args: Any, **options: Any) -> Any:
        jobs = await claim(*args, **options)
        claimed.set()
        await hung_up.wait()
        return jobs

    monkeypatch.setattr(queue, "claim", slow_claim)
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request("/jobs/claim", {"worker": "gone"}, port=served.port))
    await claimed.wait()
    connections = len(served.server.server_state.connections)
    writer.close()
    await until(lambda: len(served.server.server_state.connections) < connections)
    hung_up.set()
    monkeypatch.undo()

    answer = await http.post("/jobs/claim", json={"worker": "w", "wait": 30})
    [again] = answer.json()["jobs"]
    # Given back without burning an attempt, and with a new token.
    assert (again["id"], again["attempt"]) == (job["id"], 1)
    assert again["lease_token"] > 1


async def test_a_reader_that_hangs_up_ends_its_wait(
    served: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = (await http.post("/jobs", json={"kind": "chat"})).json()
    ended, started = asyncio.Event(), asyncio.Event()
    queue = served.service.queue
    wait = queue.wait

    async def noticed(*args: Any) -> Any:
        started.set()
        try:
            return await wait(*args)
        finally:
            ended.set()

    monkeypatch.setattr(queue, "wait", noticed)
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(f"GET /jobs/{job['id']}?wait=60 HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    await started.wait()
    writer.close()
    await asyncio.wait_for(ended.wait(), 10)


async def test_stopping_ends_every_wait_at_once(served: Any, http: httpx.AsyncClient) -> None:
    job = (await http.post("/jobs", json={"kind": "chat", "delay_seconds": 60})).json()
    waits = [asyncio.create_task(http.post("/jobs/claim", json={"worker": f"w{n}", "wait": 300})) for n in range(20)]
    reading = asyncio.create_task(http.get(f"/jobs/{job['id']}?wait=300"))
    await until(lambda: served.service.claims.waiting == 20)
    async with asyncio.timeout(20):  # the waits are of minutes
        await served.stop()
    assert [(await each).json() for each in waits] == [{"jobs": []}] * 20
    assert (await reading).json()["state"] == "scheduled"


async def test_a_bulk_that_hangs_up_stores_nothing(
    served: Any, http: httpx.AsyncClient, conn: psycopg.AsyncConnection
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = "POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ncontent-length: 9999999\r\n\r\n"
    writer.write(head.encode() + b'{"kind":"chat"}\n' * 3_000)
    await writer.drain()
    await until(lambda: not served.service.bulk_slots.locked() and served.service.bulk_slots._value < 3)
    writer.close()
    await until(lambda: served.service.bulk_slots._value == 3)
    row = await (await conn.execute("select count(*) from queue_pg.all_jobs")).fetchone()
    assert row == (0,)


async def test_refusals_keep_the_connection_in_order(served: Any) -> None:
    async with httpx.AsyncClient(base_url=served.url, limits=httpx.Limits(max_connections=1)) as client:
        for _ in range(3):
            assert (await client.post("/jobs", content=b"{")).status_code == 422
            assert (await client.post("/jobs", content=b"x" * 1_000_000)).status_code == 422
            assert (await client.post("/nothing", content=b"x" * 1_000_000)).status_code == 404
            assert (await client.post("/jobs", json={"kind": "chat"})).status_code == 201
        too_large = await client.post("/jobs", content=b"x" * (65 * 1024 * 1024))
        assert too_large.status_code == 413
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /jobs/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /jobs?kind=%zz HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://evil.example/livez HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: evil.example/../x?#\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 200_000 + b"\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
    ],
)
async def test_strange_requests_are_no_server_errors(served: Any, http: httpx.AsyncClient, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(head)
    try:
        answer = await asyncio.wait_for(reader.read(64), 10)
    except ConnectionError:
        answer = b""
    writer.close()
    assert not answer.startswith(b"HTTP/1.1 5"), answer
    assert (await http.get("/livez")).status_code == 200


async def test_redirects_do_not_trust_the_host_header(served: Any) -> None:
    async with httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.get("/", headers={"host": "evil.example"})
    assert answer.headers["location"] == "/docs"


async def test_answers_do_not_wait_for_delayed_acknowledgements(served: Any, http: httpx.AsyncClient) -> None:
    await http.get("/livez")
    for connection in served.server.server_state.connections:
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


# ---- the command ----------------------------------------------------------------------------------------------------


@contextmanager
def serve_command(dsn: str | None, *options: str, folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "queue_pg.cli", "serve", *options]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    database = {"DATABASE_URL": dsn} if dsn else {}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=folder, env={**kept, **database, **environment}
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if "API on http" in line:
            return line.split()[2].rstrip(",")
    raise AssertionError("it ended without saying where it listens")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_until_a_signal(dsn: str, tmp_path: Path, number: signal.Signals) -> None:
    with serve_command(dsn, "--port", "0", folder=tmp_path) as process:
        url = address_of(process)
        assert httpx.post(f"{url}/jobs", json={"kind": "chat"}).status_code == 201
        assert httpx.get(f"{url}/docs").status_code == 200
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr is not None
        rest = process.stderr.read()
    assert "Stopped." in rest
    assert "Traceback" not in rest
    assert "Error" not in rest


def test_serve_starts_while_the_database_is_away(tmp_path: Path) -> None:
    with serve_command("postgresql://nobody@127.0.0.1:1/nothing", "--port", "0", folder=tmp_path) as process:
        url = address_of(process)
        assert httpx.get(f"{url}/livez", timeout=10).status_code == 200
        assert httpx.get(f"{url}/readyz", timeout=10).status_code == 503
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_serve_reloads_with_the_same_stop(dsn: str, tmp_path: Path) -> None:
    with serve_command(dsn, "--port", "0", "--reload", folder=tmp_path) as process:
        url = address_of(process)
        assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def test_reload_looks_at_code_alone(dsn: str, tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    with serve_command(dsn, "--port", "0", "--reload", folder=tmp_path) as process:
        url = address_of(process)
        assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200
        (tmp_path / "output.log").write_text("a line")
        (tmp_path / ".venv" / "dependency.py").write_text("")
        (tmp_path / "mine.py").write_text("")
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if "mine.py" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    text = "".join(said)
    assert "output.log" not in text
    assert "dependency.py" not in text
    assert "change detected" not in text
    assert "changes detected" not in text


def test_a_port_in_use_is_one_sentence(dsn: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve_command(dsn, "--port", str(port), folder=tmp_path) as process:
            assert process.wait(20) == 2
            assert process.stderr is not None
            error = process.stderr.read()
    assert error == (
        f"error: Port {port} on 127.0.0.1 is in use. "
        f"Stop what uses it, or choose another one: --port {port + 1 if port < 65535 else 8000}\n"
    )


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_one_sentence(dsn: str, tmp_path: Path, host: str) -> None:
    with serve_command(dsn, "--port", "0", "--host", host, folder=tmp_path) as process:
        assert process.wait(20) == 2
        assert process.stderr is not None
        error = process.stderr.read()
    assert error.startswith(f"error: Cannot listen on '{host}'")
    assert error.count("\n") == 1


def test_serve_without_a_database_says_what_to_do(tmp_path: Path) -> None:
    with serve_command(None, folder=tmp_path) as process:
        assert process.wait(20) == 2
        assert process.stderr is not None
        assert "queue-pg dev" in process.stderr.read()


def test_settings_choose_address_and_port(dsn: str, tmp_path: Path) -> None:
    everywhere = "0.0.0.0"  # noqa: S104 - what is tested
    with serve_command(dsn, folder=tmp_path, API_HOST=everywhere, PORT="0") as process:
        url = address_of(process)
        assert url.startswith("http://0.0.0.0:")
        assert process.stderr is not None
        assert "no keys yet" in process.stderr.readline()
        assert httpx.get(f"{url}/livez", timeout=10).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_it_listens_on_loopback_alone_by_default(dsn: str, tmp_path: Path) -> None:
    with serve_command(dsn, "--port", "0", folder=tmp_path) as process:
        assert address_of(process).startswith("http://127.0.0.1:")
