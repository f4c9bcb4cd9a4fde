"""Under which names the service answers: a page whose own name is made to lead here reads nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from typing import Any

import httpx
import pytest
from queue_pg_api.hosts import HostGuard, allowed_hosts, is_allowed, served_app
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from queue_pg.settings import Settings


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LOCALHOST", "localhost.:8000", "queue.localhost", "127.0.0.1:8000", "[::1]"),
        *("[::1]:8000", "192.168.1.7:8000", "[fd00::1]:8000", "127.0.0.1.:80", "api:8000", ""),
    ],
)
def test_addresses_and_names_that_nobody_can_register(host: str) -> None:
    assert is_allowed(host, [])


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example."),
        *(
            "0x7f.1",
            "localhost.evil.example:127",
            "a.b",
            "evil.example#localhost",
            "user@evil.example",
        ),
    ],
)
def test_other_names(host: str) -> None:
    assert not is_allowed(host, [])
    assert is_allowed(host, ["*"])


@pytest.mark.parametrize(
    ("settings", "host", "answered"),
    [
        ({}, "queue.example", False),
        ({"api_host": "localhost"}, "queue.example", False),
        ({"api_hosts": ["Queue.Example"]}, "queue.example:8000", True),
        ({"api_hosts": ["Queue.Example"]}, "other.example", False),
        ({"api_hosts": ["*"]}, "queue.example", True),
        ({"api_host": "0.0.0.0"}, "queue.example", True),  # noqa: S104 - nothing listens
        ({"api_host": "0.0.0.0", "api_hosts": ["localhost"]}, "queue.example", False),  # noqa: S104
    ],
)
async def test_what_the_settings_say(dsn: str, settings: dict[str, Any], host: str, answered: bool) -> None:
    app = served_app(Settings.load(env_file=None, database_url=dsn, **settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api") as client:
        for path in ("/livez", "/console", "/docs", "/nowhere"):
            answer = await client.get(path, headers={"host": host})
            assert (answer.status_code != 421) == answered, path
        answer = await client.post("/jobs", json={"kind": "k"}, headers={"host": host, "origin": f"http://{host}"})
        if not answered:
            assert (answer.status_code, answer.json()["code"]) == (421, "host_not_allowed")


def test_websockets_too() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    client = TestClient(HostGuard(app, []))
    with client.websocket_connect("/ws/jobs", headers={"host": "localhost:8000"}):
        pass
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws/jobs", headers={"host": "evil.example"}):
        pass


def test_embedded_it_is_the_business_of_the_application_around_it() -> None:
    assert allowed_hosts(Settings.load(env_file=None)) == []


@pytest.mark.parametrize("more", [[], ["--reload"]])
def test_serve_guards(dsn: str, more: list[str], tmp_path: Any) -> None:
    command = [sys.executable, "-m", "queue_pg.cli", "serve", "--port", "0", "--database-url", dsn, *more]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        try:
            url = next(word for line in process.stderr for word in line.split() if word.startswith("http://")).rstrip(
                ","
            )
            with closing(httpx.Client(base_url=url, timeout=30)) as client:
                assert client.get("/livez").status_code == 200
                refused = client.get("/jobs", headers={"host": "evil.example"})
                assert (refused.status_code, json.loads(refused.content)["code"]) == (421, "host_not_allowed")
        finally:
            process.terminate()
            process.stderr.read()
