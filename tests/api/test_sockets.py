"""The WebSockets when things go wrong: the database away, readers that do not read, clients that say nonsense."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from queue_pg_api import following, observing
from queue_pg_api.app import create_app
from queue_pg_api.observing import Observing
from queue_pg_api.routes import sockets
from queue_pg_api.service import Service
from starlette.applications import Starlette
from tcp_proxy import Proxy
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from queue_pg import Queue
from queue_pg.settings import Settings

ABSENT = "018f0000-0000-7000-8000-000000000000"


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    async with Proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
def app(proxy: Proxy) -> Starlette:
    """The API of `served`, whose way to the database can be cut."""
    return create_app(Settings.load(env_file=None, database_url=proxy.dsn))


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    """A client that goes past the proxy."""
    async with Queue(dsn, notify=False) as client:
        yield client


def ws(served: Any, path: str, **options: Any) -> Any:
    return connect(f"ws://127.0.0.1:{served.port}{path}", **options)


async def heard(sock: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await asyncio.wait_for(sock.recv(), 20))
    return found


async def closed(sock: Any) -> tuple[int, str]:
    """Read to the end; return the close code and its reason."""
    async with asyncio.timeout(20):
        with suppress(ConnectionClosed):
            while True:
                await sock.recv()
    return sock.close_code, sock.close_reason


async def listening(served: Any) -> None:
    service: Service = served.service
    assert await asyncio.to_thread(service.queue.wakeups.wait_listening, 20)


# --- the database away ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code"), [(f"/jobs/{ABSENT}/ws", "database_unavailable"), ("/ws/jobs", "no_notifications")]
)
async def test_while_the_database_is_away_the_handshake_is_refused(
    served: Any, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, path: str, code: str
) -> None:
    monkeypatch.setattr(observing, "START_SECONDS", 0.2)
    await listening(served)
    await proxy.cut()
    with pytest.raises(InvalidStatus) as refused:
        async with ws(served, path):
            pass
    answer = refused.value.response
    assert answer.status_code == 503
    assert json.loads(answer.body or b"")["code"] == code
    assert int(answer.headers["retry-after"]) > 0


async def test_a_follower_of_a_job_goes_on_after_an_outage(served: Any, proxy: Proxy, queue: Queue) -> None:
    job = await queue.submit("k")
    async with ws(served, f"/jobs/{job.id}/ws") as sock:
        assert (await heard(sock))["type"] == "submitted"
        await proxy.cut()
        [mine] = await queue.claim("w", ["default"])
        await queue.append_events(job.id, mine.lease_token, [("said", {"n": 1})])
        assert await closed(sock) == (1013, "the database is away, connect again")
    await proxy.mend()
    await queue.complete(job.id, mine.lease_token)
    # From the last one it has seen: nothing is missed and nothing comes twice.
    again = None
    async with asyncio.timeout(20):
        while again is None:
            with suppress(InvalidStatus):
                again = await ws(served, f"/jobs/{job.id}/ws?after=1")
    events = [await heard(again) for _ in range(3)]
    assert [(event["seq"], event["type"]) for event in events] == [(2, "started"), (3, "said"), (4, "completed")]
    assert await closed(again) == (1000, "completed")


async def test_observers_are_told_of_a_gap_and_hear_on(served: Any, proxy: Proxy, queue: Queue) -> None:
    await listening(served)
    async with ws(served, "/ws/jobs") as sock, ws(served, "/ws/jobs?topics=jobs/kind/other") as other:
        assert (await heard(sock))["type"] == (await heard(other))["type"] == "subscribed"
        first = await queue.submit("k")
        assert (await heard(sock))["id"] == str(first.id)
        await proxy.cut()
        await queue.submit("k")
        await proxy.mend()
        # Whatever they follow: what they have missed nobody knows.
        assert await heard(sock) == await heard(other) == {"type": "gap"}
        await listening(served)
        told: dict[str, Any] = {}
        async with asyncio.timeout(20):
            while told.get("kind") != "other":
                # The first ones may come before Postgres has been asked again.
                await queue.submit("other")
                with suppress(TimeoutError):
                    told = json.loads(await asyncio.wait_for(other.recv(), 0.5))


# --- those who do not read --------------------------------------------------------------------------------------------


async def say(queue: Queue, job_id: Any, token: int, pieces: int) -> None:
    for start in range(0, pieces, 100):
        await queue.append_events(
            job_id, token, [("chunk", {"text": f"{n} " + "x" * 20_000}) for n in range(start, min(start + 100, pieces))]
        )


async def stuck(served: Any, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a WebSocket that takes what the socket's buffers take, and then nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
    writer.write(
        f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 101 " in head.splitlines()[0]
    return reader, writer


async def test_a_reader_of_a_job_that_does_not_read_is_cut_off_alone(
    served: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SEND_SECONDS", 0.5)
    cut_off = asyncio.Event()

    def abort(scope: Any) -> None:
        following.abort(scope)
        cut_off.set()

    monkeypatch.setattr(sockets, "abort", abort)
    job = await queue.submit("k")
    [mine] = await queue.claim("w", ["default"])
    reader, writer = await stuck(served, f"/jobs/{job.id}/ws")
    async with ws(served, f"/jobs/{job.id}/ws", max_size=None) as sock:

        async def read() -> list[int]:
            return [(await heard(sock))["seq"] for _ in range(1_003)]

        reading = asyncio.create_task(read())
        await say(queue, job.id, mine.lease_token, 1_000)
        await queue.complete(job.id, mine.lease_token)
        # 20 MB, all of it, to the one that reads.
        assert await reading == list(range(1, 1_004))
        assert await closed(sock) == (1000, "completed")
    # The other one gets what was on its way, and no more.
    async with asyncio.timeout(20):
        await cut_off.wait()
    got = 0
    async with asyncio.timeout(20):
        with suppress(ConnectionError):
            while piece := await reader.read(1_000_000):
                got += len(piece)
    assert got < 20_000_000
    writer.close()


async def test_an_observer_that_does_not_read_is_cut_off_alone(
    served: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SEND_SECONDS", 0.2)
    await listening(served)
    _, writer = await stuck(served, "/ws/jobs")
    hearing: Observing = served.service.observing
    about = {"id": ABSENT, "org": "default", "queue": "q", "kind": "k", "type": "submitted", "seq": 1}
    # As if from Postgres, and long, so that few of them fill the buffers of the connection.
    long = json.dumps({**about, "more": "x" * 200_000})
    async with ws(served, "/ws/jobs", max_size=None) as sock:
        assert (await heard(sock))["type"] == "subscribed"
        async with asyncio.timeout(60):
            while len(hearing._observers) == 2:
                hearing._heard(long)
                assert (await heard(sock))["id"] == ABSENT
        # Its end has harmed nobody.
        last = await queue.submit("last")
        assert (await heard(sock))["id"] == str(last.id)
    writer.close()


async def test_an_observer_that_falls_behind_is_told_so(served: Any, queue: Queue) -> None:
    await listening(served)
    async with ws(served, "/ws/jobs") as sock, ws(served, "/ws/jobs?topics=jobs/kind/few") as other:
        await heard(sock)
        await heard(other)
        about = {"id": ABSENT, "org": "default", "queue": "q", "kind": "many", "type": "submitted", "seq": 1}
        for _ in range(observing.MAX_LINE + 1):
            served.service.observing._heard(json.dumps(about))
        assert (await closed(sock))[0] == 4008
        job = await queue.submit("few")
        assert (await heard(other))["id"] == str(job.id)


# --- what clients say -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "nonsense",
        "",
        "5",
        "[]",
        "null",
        "{}",
        '{"subscribe": "jobs"}',
        '{"subscribe": [5]}',
        '{"subscribe": ["queues"]}',
        '{"subscribe": ["jobs/nonsense"]}',
        '{"subscribe": ["jobs"], "more": 1}',
        json.dumps({"subscribe": [f"jobs/queue/{n}" for n in range(101)]}),
        json.dumps({"subscribe": ["jobs/queue/" + "x" * 3_000]}),
        "[" * 60_000,
        b"\x00\xff",
    ],
    ids=lambda said: str(said)[:24],
)
async def test_a_client_that_says_nonsense_is_told_and_hears_on(served: Any, queue: Queue, said: Any) -> None:
    await listening(served)
    async with ws(served, "/ws/jobs") as sock:
        await heard(sock)
        await sock.send(said)
        answer = await heard(sock)
        assert (answer["type"], answer["code"]) == ("error", "invalid_request")
        job = await queue.submit("k")
        assert (await heard(sock))["id"] == str(job.id)


async def test_a_follower_of_one_job_may_say_anything(served: Any, queue: Queue) -> None:
    job = await queue.submit("k")
    async with ws(served, f"/jobs/{job.id}/ws") as sock:
        assert (await heard(sock))["type"] == "submitted"
        await sock.send("nonsense")
        await sock.send(b"\x00")
        await queue.cancel(job.id)
        assert (await heard(sock))["type"] == "cancelled"
        assert await closed(sock) == (1000, "cancelled")


async def test_a_message_that_is_too_large_ends_the_connection_alone(
    served: Any, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    await listening(served)
    async with ws(served, "/ws/jobs") as sock, ws(served, "/ws/jobs") as large:
        await heard(sock)
        await heard(large)
        with suppress(ConnectionClosed):
            await large.send("x" * 20 * 1024 * 1024)
        assert (await closed(large))[0] == 1009
        job = await queue.submit("k")
        assert (await heard(sock))["id"] == str(job.id)
    # It is the client's fault, and none of ours.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_one_that_leaves_is_forgotten(served: Any, queue: Queue) -> None:
    await listening(served)
    async with ws(served, "/ws/jobs") as sock:
        await heard(sock)
    job = await queue.submit("k")
    async with ws(served, f"/jobs/{job.id}/ws") as sock:
        await heard(sock)
    async with asyncio.timeout(20):
        while served.service.observing._observers:
            await queue.get(job.id)


async def test_who_comes_while_the_last_observation_is_taken_back_is_observed_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: set[str] = set()
    taking_back, go_on, taken_back = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def observe(name: str) -> bool:
        asked.add(name)
        return True

    async def unobserve(name: str) -> None:
        taking_back.set()
        await go_on.wait()
        asked.discard(name)
        taken_back.set()

    observers = Observing(SimpleNamespace(listening=True), observe=observe, unobserve=unobserve)  # type: ignore[arg-type]
    monkeypatch.setattr(observing, "RENEW_SECONDS", 0.01)
    async with observers.observer("", {}):
        pass
    async with asyncio.timeout(20):
        await taking_back.wait()
        monkeypatch.setattr(observing, "RENEW_SECONDS", 3_600)
        async with observers.observer("", {}):
            go_on.set()
            await taken_back.wait()
            assert len(asked) == 1
    await observers.close()
    assert not asked
