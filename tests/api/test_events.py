"""Events over HTTP: server-sent events, pages, logs, WebSockets, and appending by pull workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import psycopg
import pytest
from queue_pg_api import answers, following, observing
from queue_pg_api.app import create_app
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from queue_pg import Queue

ABSENT = "018f0000-0000-7000-8000-000000000000"
PATIENCE_SECONDS = 60.0
ClaimOne = Callable[..., Awaitable[dict[str, Any]]]


async def soon(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE_SECONDS)


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn) as client:
        yield client


async def running(queue: Queue, kind: str = "k", in_queue: str = "default") -> tuple[str, int]:
    await queue.submit(kind, queue=in_queue)
    [claimed] = await queue.claim("w", [in_queue], kinds=[kind])
    return str(claimed.id), claimed.lease_token


async def say(queue: Queue, job: str, token: int, *lines: str) -> None:
    await queue.append_events(job, token, [("log", {"line": line, "stream": "stdout"}) for line in lines])


class Stream:
    """A client of server-sent events."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> dict[str, str] | None:
        """Return the next event or comment, None at the end."""
        found: dict[str, str] = {}
        async for line in self._lines:
            if not line:
                if found:
                    return found
                continue
            name, _, value = line.partition(": ")
            found[name or "comment"] = value
        return None

    async def all(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


@contextlib.asynccontextmanager
async def stream(url: str, path: str, **headers: str) -> AsyncIterator[Stream]:
    async with (
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as client,
        client.stream("GET", path, headers=headers) as response,
    ):
        assert response.status_code == 200, await response.aread()
        yield Stream(response)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that sends no signal."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def next_to_close(sock: ClientConnection) -> None:
    while True:
        await soon(sock.recv())


def numbers(events: list[dict[str, str]]) -> list[int]:
    return [int(event["id"]) for event in events if "id" in event]


async def test_a_stream_replays_follows_and_ends(served: Any, queue: Queue) -> None:
    job, token = await running(queue)
    await say(queue, job, token, "one")
    async with stream(served.url, f"/jobs/{job}/events") as events:
        assert events.response.headers["content-type"].startswith("text/event-stream")
        assert [(await soon(events.next()) or {})["event"] for _ in range(3)] == ["submitted", "started", "log"]
        await say(queue, job, token, "two")
        event = await soon(events.next())
        assert (event["id"], event["event"]) == ("4", "log")
        answers.EventAnswer.model_validate_json(event["data"])
        assert json.loads(event["data"])["data"]["line"] == "two"
        await queue.complete(job, token)
        assert (await soon(events.next()))["event"] == "completed"
        end = await soon(events.next())
        assert (end["event"], json.loads(end["data"])) == ("end", {"state": "completed", "last_seq": 5})
        assert await soon(events.next()) is None
    async with httpx.AsyncClient(base_url=served.url) as client:
        # EventSource stops when it is told so.
        assert (await client.get(f"/jobs/{job}/events", headers={"last-event-id": "5"})).status_code == 204
        assert (await client.get(f"/jobs/{job}/events?after=99")).status_code == 204
        assert (await client.head(f"/jobs/{job}/events")).status_code == 200


async def test_a_reader_goes_on_at_another_process(served: Any, dsn: str, queue: Queue) -> None:
    job, token = await running(queue)
    await say(queue, job, token, "one", "two")
    async with stream(served.url, f"/jobs/{job}/events?after=1") as events:
        seen = [await soon(events.next()) for _ in range(2)]
    await say(queue, job, token, "three")
    await queue.complete(job, token)
    app = create_app(served.service.settings)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://other") as other,
    ):
        # The first URL says after=1; the header knows better.
        answer = await other.get(f"/jobs/{job}/events?after=1", headers={"last-event-id": seen[-1]["id"]})
    seen += [dict(line.split(": ", 1) for line in block.split("\n")) for block in answer.text.strip().split("\n\n")]
    assert numbers(seen) == [2, 3, 4, 5, 6]


async def test_two_hundred_streams_see_the_same(served: Any, queue: Queue) -> None:
    jobs = [await running(queue, kind=f"k{n}") for n in range(20)]

    async def read(job: str) -> list[int]:
        async with stream(served.url, f"/jobs/{job}/events") as events:
            return numbers(await soon(events.all()))

    readers = [asyncio.create_task(read(job)) for job, _ in jobs for _ in range(10)]
    await until(lambda: len(served.service.queue._feed._followers) == 200)
    for job, token in jobs:
        await say(queue, job, token, "one", "two")
        await say(queue, job, token, "three")
        await queue.complete(job, token)
    assert await soon(asyncio.gather(*readers)) == [[1, 2, 3, 4, 5, 6]] * 200
    await until(lambda: not served.service.queue._feed._followers)


async def test_a_client_that_does_not_read_is_cut_off_and_the_others_read_on(
    served: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SEND_SECONDS", 1.0)
    job, token = await running(queue)
    with socket.create_connection(("127.0.0.1", served.port)) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(f"GET /jobs/{job}/events HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        async with stream(served.url, f"/jobs/{job}/events") as events:
            reading = asyncio.create_task(events.all())
            for _ in range(150):
                await queue.append_events(job, token, [("log", {"line": "x" * 60_000})])
            await queue.complete(job, token)
            assert numbers(await soon(reading)) == list(range(1, 154))
        await until(lambda: not served.service.queue._feed._followers)
        # The connection itself is broken, too, and not left to a client that will never read.
        await until(lambda: not served.server.server_state.connections)


async def test_keep_alives_and_the_end_of_the_server(
    served: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "KEEP_ALIVE_SECONDS", 0.05)
    job, _ = await running(queue)
    async with stream(served.url, f"/jobs/{job}/events?after=2") as events:
        assert await soon(events.next()) == {"comment": "keep-alive"}
        async with connect(f"ws://127.0.0.1:{served.port}/jobs/{job}/ws") as sock:
            await soon(sock.recv())
            await soon(served.stop())
            with pytest.raises(ConnectionClosed) as closed:
                await next_to_close(sock)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code in (1001, 1012)
        rest = await soon(events.all())
        assert "stopping" in rest[-1]["comment"]


async def test_an_outage_in_the_middle_is_waited_out(served: Any, dsn: str, queue: Queue) -> None:
    job, token = await running(queue)
    async with stream(served.url, f"/jobs/{job}/events?after=2") as events:
        await until(lambda: bool(served.service.queue._feed._followers))
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as admin:
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        async with Queue(dsn) as other:
            await say(other, job, token, "afterwards")
        assert (await soon(events.next()))["id"] == "3"


async def test_pages_as_json_with_long_poll(client: httpx.AsyncClient, queue: Queue) -> None:
    json_only = {"accept": "application/json"}
    job, token = await running(queue)
    page = (await client.get(f"/jobs/{job}/events?limit=1", headers=json_only)).json()
    assert [event["seq"] for event in answers.EventsAnswer.model_validate(page).model_dump()["events"]] == [1]
    assert (page["state"], page["last_seq"]) == ("running", 2)
    empty = (await client.get(f"/jobs/{job}/events?after=2&wait=0.01", headers=json_only)).json()
    assert empty == {"events": [], "state": "running", "last_seq": 2}
    waiting = asyncio.create_task(client.get(f"/jobs/{job}/events?after=2&wait=20", headers=json_only))
    await say(queue, job, token, "hello")
    assert [event["seq"] for event in (await soon(waiting)).json()["events"]] == [3]


async def test_a_pull_worker_appends_and_its_log_is_read(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    job = (await client.post("/jobs", json={"kind": "k"})).json()["id"]
    token = (await claim_one())["lease_token"]
    body = {"lease_token": token}
    assert (await client.post(f"/jobs/{job}/progress", json={**body, "progress": 0.5})).json() == {
        "id": job,
        "last_seq": 3,
    }
    assert (await client.post(f"/jobs/{job}/progress", json={**body, "progress": {"step": 2}})).status_code == 200
    lines = [f"line {n}" for n in range(3)]
    answer = await client.post(f"/jobs/{job}/logs", json={**body, "lines": lines})
    assert answers.AppendAnswer.model_validate(answer.json()).last_seq == 7
    await client.post(f"/jobs/{job}/logs", json={**body, "lines": ["oh"], "stream": "stderr"})
    own = [{"type": "chunk", "data": {"text": "Hi"}}, {"type": "cooked"}]
    assert (await client.post(f"/jobs/{job}/events", json={**body, "events": own})).json()["last_seq"] == 10
    page = (await client.get(f"/jobs/{job}/logs?limit=2")).json()
    answers.LogsAnswer.model_validate(page)
    assert ([line["line"] for line in page["logs"]], page["next_seq"]) == (["line 0", "line 1"], 7)
    page = (await client.get(f"/jobs/{job}/logs?from_seq=7")).json()
    assert ([line["line"] for line in page["logs"]], page["next_seq"]) == (["line 2", "oh"], None)
    [line] = (await client.get(f"/jobs/{job}/logs?stream=stderr")).json()["logs"]
    assert (line["stream"], line["line"]) == ("stderr", "oh")


async def test_a_stale_lease_appends_nothing(client: httpx.AsyncClient, claim_one: ClaimOne) -> None:
    job = (await client.post("/jobs", json={"kind": "k"})).json()["id"]
    token = (await claim_one())["lease_token"]
    await client.post(f"/jobs/{job}/cancel")
    for path, body in (
        ("progress", {"progress": 1}),
        ("logs", {"lines": ["x"]}),
        ("events", {"events": [{"type": "a"}]}),
    ):
        answer = await client.post(f"/jobs/{job}/{path}", json={"lease_token": token, **body})
        assert (answer.status_code, answer.json()["code"]) == (409, "lease_lost")
        assert answer.headers["x-should-retry"] == "false"
        absent = await client.post(f"/jobs/{ABSENT}/{path}", json={"lease_token": token, **body})
        assert absent.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("GET", f"/jobs/{ABSENT}/events", None, 404, None),
        ("GET", "/jobs/nonsense/events", None, 404, None),
        ("GET", f"/jobs/{ABSENT}/logs", None, 404, None),
        ("GET", "/jobs/{job}/events?after=-1", None, 422, "after"),
        ("GET", "/jobs/{job}/events?after=x", None, 422, "after"),
        ("GET", "/jobs/{job}/events?after=2147483648", None, 422, "after"),
        ("GET", "/jobs/{job}/events?last=1", None, 422, "last"),
        ("GET", "/jobs/{job}/logs?limit=0", None, 422, "limit"),
        ("GET", "/jobs/{job}/logs?limit=1001", None, 422, "limit"),
        ("GET", "/jobs/{job}/logs?stream=%00", None, 422, "stream"),
        ("POST", "/jobs/{job}/progress", {"progress": 2}, 422, "progress"),
        ("POST", "/jobs/{job}/progress", {"progress": "half"}, 422, "progress"),
        ("POST", "/jobs/{job}/progress", {}, 422, "progress"),
        ("POST", "/jobs/{job}/events", {"events": []}, 422, "events"),
        ("POST", "/jobs/{job}/events", {"events": [{"type": "completed"}]}, 422, "type"),
        ("POST", "/jobs/{job}/events", {"events": [{"type": "a"}, {"type": "UP"}]}, 422, "events[1].type"),
        ("POST", "/jobs/{job}/events", {"events": [{"type": "a", "data": []}]}, 422, "events[0].data"),
        ("POST", "/jobs/{job}/events", {"events": [{"type": "a", "data": {"x": "y" * 70_000}}]}, 422, "events[0].data"),
        (
            "POST",
            "/jobs/{job}/events",
            {"events": [{"type": "a"}, {"type": "b", "data": {"x": {"n": "\x00"}}}]},
            422,
            "events[1].data.x.n",
        ),
        ("POST", "/jobs/{job}/logs", {"lines": "text"}, 422, "lines"),
        ("POST", "/jobs/{job}/logs", {"lines": ["a\x00b"]}, 422, "lines[0]"),
    ],
)
async def test_bad_requests_name_what_is_wrong(
    client: httpx.AsyncClient, queue: Queue, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    job, token = await running(queue)
    content = None if body is None else {"lease_token": token, **body}
    answer = await client.request(method, path.replace("{job}", job), json=content)
    assert answer.status_code == status, answer.text
    assert field is None or answer.json()["field"].startswith(field)


@pytest.mark.parametrize("header", ["x", "-1", "1.5", "99999999999", "2147483648", "\u00b2"])
async def test_a_last_event_id_that_is_none(client: httpx.AsyncClient, queue: Queue, header: str) -> None:
    job, _ = await running(queue)
    answer = await client.get(f"/jobs/{job}/events", headers={"last-event-id": header.encode()})
    assert (answer.status_code, answer.json()["field"]) == (422, "Last-Event-ID")


# --- WebSockets -------------------------------------------------------------------------------------------------------


def ws(served: Any, path: str, **options: Any) -> Any:
    return connect(f"ws://127.0.0.1:{served.port}{path}", **options)


async def received(sock: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await soon(sock.recv()))
    return found


async def test_a_socket_follows_a_job_to_its_end(served: Any, queue: Queue) -> None:
    job, token = await running(queue)
    async with ws(served, f"/jobs/{job}/ws?after=1") as sock:
        assert (await received(sock))["type"] == "started"
        await sock.send("what clients say is not listened to")
        await say(queue, job, token, "hello")
        event = await received(sock)
        answers.EventAnswer.model_validate(event)
        assert (event["seq"], event["data"]["line"]) == (3, "hello")
        await queue.complete(job, token)
        assert (await received(sock))["type"] == "completed"
        with pytest.raises(ConnectionClosed) as closed:
            await soon(sock.recv())
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1000, "completed")
    async with ws(served, f"/jobs/{job}/ws?after=4") as sock:
        with pytest.raises(ConnectionClosed):
            await soon(sock.recv())


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/jobs/{ABSENT}/ws", 404, "job_not_found"),
        ("/jobs/nonsense/ws", 404, "job_not_found"),
        ("/jobs/{job}/ws?after=-1", 422, "invalid_request"),
        ("/ws/jobs?topics=queues", 422, "invalid_request"),
        ("/ws/jobs?topics=jobs/queue/", 422, "invalid_request"),
        ("/ws/jobs?topics=jobs/nonsense", 422, "invalid_request"),
        ("/ws/jobs?topics=", 422, "invalid_request"),
        ("/ws/jobs?topic=jobs", 422, "unknown_field"),
        ("/ws/jobs?topics=" + ",".join(f"jobs/queue/{n}" for n in range(101)), 422, "invalid_request"),
    ],
)
async def test_what_is_wrong_is_told_before_the_connection_opens(
    served: Any, queue: Queue, path: str, status: int, code: str
) -> None:
    job, _ = await running(queue)
    with pytest.raises(InvalidStatus) as refused:
        async with ws(served, path.replace("{job}", job)):
            pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["code"] == code


async def test_pages_of_other_sites_cannot_listen(served: Any, queue: Queue) -> None:
    job, _ = await running(queue)
    for path in (f"/jobs/{job}/ws", "/ws/jobs"):
        with pytest.raises(InvalidStatus) as refused:
            async with ws(served, path, origin="https://evil.example"):
                pass
        assert refused.value.response.status_code == 403
        async with ws(served, path, origin=f"http://127.0.0.1:{served.port}"):
            pass


async def test_topics_choose_what_is_heard(served: Any, queue: Queue) -> None:
    other = await queue.submit("other", queue="b")
    paths = ["jobs", "jobs/queue/a%2Fb%2C", "jobs/kind/k2", f"jobs/{other.id}", "jobs/queue/nothing"]
    async with contextlib.AsyncExitStack() as stack:
        socks = [
            await stack.enter_async_context(ws(served, f"/ws/jobs?topics={path}".replace("%", "%25"))) for path in paths
        ]
        for sock in socks:
            assert (await received(sock))["type"] == "subscribed"
        first = (await queue.submit("k1", queue="a/b,")).id
        second = (await queue.submit("k2", queue="c")).id
        await queue.cancel(other.id)
        last = (await queue.submit("k2", queue="a/b,")).id
        heard = [
            [
                (str(first), "submitted"),
                (str(second), "submitted"),
                (str(other.id), "cancelled"),
                (str(last), "submitted"),
            ],
            [(str(first), "submitted"), (str(last), "submitted")],
            [(str(second), "submitted"), (str(last), "submitted")],
            [(str(other.id), "cancelled")],
        ]
        for sock, expected in zip(socks, heard, strict=False):
            found = [await received(sock) for _ in expected]
            assert [(each["id"], each["type"]) for each in found] == expected
        await socks[4].send(json.dumps({"subscribe": ["jobs/kind/k3"], "unsubscribe": ["jobs/queue/nothing"]}))
        assert await received(socks[4]) == {"type": "subscribed", "topics": ["jobs/kind/k3"]}
        third = (await queue.submit("k3")).id
        assert (await received(socks[4]))["id"] == str(third)
        for wrong in ("no json", "[]", '{"subscribe": "jobs"}', '{"subscribe": ["x"]}', "{}", "[" * 30_000):
            await socks[4].send(wrong)
            assert (await received(socks[4]))["type"] == "error"


async def test_nothing_is_sent_when_nobody_observes(served: Any, queue: Queue, conn: psycopg.AsyncConnection) -> None:
    async def observed() -> bool:
        row = await (await conn.execute("select queue_pg.is_observed()")).fetchone()
        return bool(row and row[0])

    assert not await observed()
    async with ws(served, "/ws/jobs") as sock:
        await received(sock)
        assert await observed()
    await soon(served.stop())
    assert not await observed()


async def test_an_observer_that_does_not_keep_up_is_cut_off_alone() -> None:
    observer = observing.Observer("default")
    observer.active = True
    for n in range(observing.MAX_LINE + 1):
        observer.hear(str(n))
    assert await observer.next() is None


async def test_another_organisation_hears_nothing(served: Any, dsn: str, queue: Queue) -> None:
    async with Queue(dsn, org="another") as stranger, ws(served, "/ws/jobs") as sock:
        await received(sock)
        await stranger.submit("k")
        mine = await queue.submit("k")
        assert (await received(sock))["id"] == str(mine.id)


async def test_without_notifications_streams_go_on(make_client: Any, queue: Queue) -> None:
    async with make_client(notify=False) as client:
        job, token = await running(queue)
        reading = asyncio.create_task(client.get(f"/jobs/{job}/events"))
        await queue.complete(job, token)
        assert "event: completed" in (await soon(reading)).text
