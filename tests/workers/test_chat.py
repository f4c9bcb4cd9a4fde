"""The kind `chat`, against the scripted model server and the mock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import psycopg
import pytest
from in_process import finished, running
from model_server import ModelServer, Step, model_server
from queue_pg_workers.handlers.chat import ChatPayload, run_chat
from queue_pg_workers.kinds import chat_handler, spread
from queue_pg_workers.providers.base import Provider, retry_after
from queue_pg_workers.providers.choice import ProviderSettings, make_provider, ollama_base_url
from queue_pg_workers.providers.mock import MockProvider, answer_to
from queue_pg_workers.providers.openai import OpenAIProvider
from stalls import stalled

from queue_pg import Queue
from queue_pg.errors import ConfigError, InvalidJob
from queue_pg.models import Fail, Snooze

HELLO = {"messages": [{"role": "user", "content": "Say hello"}]}


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with model_server() as running:
        yield running


@pytest.fixture
async def provider(server: ModelServer) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(api_key="sk-test", base_url=server.base_url, model="default-model")
    yield provider
    await provider.aclose()


async def chat(provider: Provider, payload: dict[str, Any]) -> Any:
    return await run_chat(provider, ChatPayload.model_validate(payload))


async def test_an_answer_is_kept_whole(server: ModelServer, provider: OpenAIProvider) -> None:
    result = await chat(provider, HELLO)
    assert result["text"] == "Hello there."
    assert result["finish_reason"] == "stop"
    assert result["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert result["model"] == "default-model"
    assert result["provider"] == "openai"
    response = result["response"]
    assert response["object"] == "chat.completion"
    assert response["id"] == "chatcmpl-scripted"
    assert response["x_server"] == "scripted"
    assert response["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Hello there."}, "finish_reason": "stop"}
    ]
    assert server.requests[0].path == "/v1/chat/completions"
    assert server.requests[0].headers["authorization"] == "Bearer sk-test"


async def test_parameters_pass_through_but_not_how_we_speak(server: ModelServer, provider: OpenAIProvider) -> None:
    payload = {**HELLO, "model": "m", "temperature": 0.5, "max_tokens": 7, "top_k": 3, "stream": False, "mock": {}}
    payload |= {"base_url": "http://evil.example", "api_key": "stolen", "extra_headers": {"x": "y"}}
    await chat(provider, payload)
    sent = server.requests[0]
    assert sent.body["model"] == "m"
    assert sent.body["temperature"] == 0.5
    assert sent.body["max_tokens"] == 7
    assert sent.body["top_k"] == 3
    assert sent.body["stream"] is True
    assert "mock" not in sent.body
    assert sent.headers["authorization"] == "Bearer sk-test"
    assert "x" not in sent.headers


async def test_prompt_is_a_user_message(server: ModelServer, provider: OpenAIProvider) -> None:
    await chat(provider, {"prompt": "Hi"})
    assert server.requests[0].body["messages"] == [{"role": "user", "content": "Hi"}]


async def test_a_server_that_does_not_stream(server: ModelServer, provider: OpenAIProvider) -> None:
    server.script(Step(behaviour="whole"))
    result = await chat(provider, HELLO)
    assert (result["text"], result["finish_reason"]) == ("Hello there.", "stop")


async def test_tool_calls_are_put_together(server: ModelServer, provider: OpenAIProvider) -> None:
    def call(arguments: str, **more: Any) -> dict[str, Any]:
        return {"index": 0, "function": {"arguments": arguments, **more.pop("function", {})}, **more}

    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        {"tool_calls": [call("", id="call_1", type="function", function={"name": "weather"})]},
        {"tool_calls": [call('{"city":')]},
        {
            "tool_calls": [
                call('"Oslo"}'),
                {"index": 1, "id": "call_2", "function": {"name": "time", "arguments": "{}"}},
            ]
        },
    ]
    server.script(Step(deltas=deltas, finish_reason="tool_calls"))
    result = await chat(provider, HELLO)
    assert (result["text"], result["finish_reason"]) == ("", "tool_calls")
    first, second = result["response"]["choices"][0]["message"]["tool_calls"]
    assert first == {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Oslo"}'},
    }
    assert second["function"] == {"name": "time", "arguments": "{}"}


async def test_characters_that_postgres_cannot_hold_do_not_cost_the_answer(
    server: ModelServer, provider: OpenAIProvider
) -> None:
    server.script(Step(words=["a\x00b", "\ud83d", "\ude00", "\udc00"]))
    result = await chat(provider, HELLO)
    assert result["text"] == "a\ufffdb\U0001f600\ufffd"


@pytest.mark.parametrize(
    "step",
    [Step(behaviour="truncate"), Step(behaviour="whole", finish_reason="")],
    ids=["stream without finish reason", "document without finish reason"],
)
async def test_no_finish_reason_is_no_success(server: ModelServer, provider: OpenAIProvider, step: Step) -> None:
    server.script(step)
    outcome = await chat(provider, HELLO)
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry) == ("upstream_truncated", True)


async def test_a_connection_cut_in_mid_answer(server: ModelServer, provider: OpenAIProvider) -> None:
    server.script(Step(behaviour="cut"))
    outcome = await chat(provider, HELLO)
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry) == ("upstream_unreachable", True)


async def test_garbage(server: ModelServer, provider: OpenAIProvider) -> None:
    server.script(Step(behaviour="garbage"))
    outcome = await chat(provider, HELLO)
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry) == ("upstream_invalid", True)


@pytest.mark.parametrize("behaviour", ["error_in_200", "error_in_stream"])
async def test_an_error_in_a_200(server: ModelServer, provider: OpenAIProvider, behaviour: Any) -> None:
    server.script(Step(behaviour=behaviour, error={"message": "the engine is dead", "type": "x"}))
    outcome = await chat(provider, HELLO)
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry, outcome.message) == ("upstream_error", True, "the engine is dead")


@pytest.mark.parametrize("behaviour", ["error_in_200", "error_in_stream"])
async def test_a_throttling_error_in_a_200(server: ModelServer, provider: OpenAIProvider, behaviour: Any) -> None:
    server.script(Step(behaviour=behaviour, error={"message": "slow down", "code": 429}))
    assert isinstance(await chat(provider, HELLO), Snooze)


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_throttling_snoozes_for_as_long_as_asked(
    server: ModelServer, provider: OpenAIProvider, status: int
) -> None:
    server.script(Step(behaviour="status", status=status, headers={"Retry-After": "42"}))
    assert await chat(provider, HELLO) == Snooze(timedelta(seconds=42))
    assert len(server.requests) == 1


async def test_who_was_throttled_at_once_does_not_come_back_at_once(
    server: ModelServer, provider: OpenAIProvider
) -> None:
    handler = chat_handler(provider)
    server.script(*[Step(behaviour="status", status=429, headers={"Retry-After": "40"})] * 20)
    outcomes = [await handler.fn(**handler.validate(HELLO)) for _ in range(20)]
    waits = [outcome.delay.total_seconds() for outcome in outcomes]
    assert all(40 <= wait <= 50 for wait in waits)
    assert max(waits) - min(waits) > 1


@pytest.mark.parametrize("outcome", [Fail("no", delay=timedelta(1)), Snooze(timedelta(0)), {"text": "Hello"}, None])
def test_nothing_is_put_off_that_nobody_asked_to(outcome: Any) -> None:
    assert spread(outcome) == outcome


def test_retry_after() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert timedelta(seconds=50) < retry_after({"Retry-After": in_a_minute}) <= timedelta(seconds=60)
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == timedelta(seconds=1.5)
    assert retry_after({"retry-after": "999999"}) == timedelta(hours=1)
    assert retry_after({"retry-after": "inf"}) == timedelta(hours=1)
    assert retry_after({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}) == timedelta(0)
    for unreadable in ({}, {"retry-after": "soon"}, {"retry-after": "nan"}):
        assert timedelta(seconds=7) < retry_after(unreadable) < timedelta(seconds=16)
    assert len({retry_after({}) for _ in range(10)}) > 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_refusals_are_not_retried(server: ModelServer, provider: OpenAIProvider, status: int) -> None:
    server.script(Step(behaviour="status", status=status, error={"message": "no such model", "code": "nope"}))
    outcome = await chat(provider, HELLO)
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry) == ("upstream_refused", False)
    assert "no such model" in outcome.message
    assert outcome.details == {"provider": "openai", "status": status}


@pytest.mark.parametrize("status", [500, 502, 408, 409])
async def test_server_errors_are_retried_by_the_queue_only(
    server: ModelServer, provider: OpenAIProvider, status: int
) -> None:
    server.script(Step(behaviour="status", status=status))
    outcome = await chat(provider, HELLO)
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry) == ("upstream_error", True)
    assert len(server.requests) == 1


async def test_nobody_listens() -> None:
    provider = OpenAIProvider(api_key=None, base_url="http://127.0.0.1:9/v1", model="m")
    outcome = await chat(provider, HELLO)
    await provider.aclose()
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry) == ("upstream_unreachable", True)


async def test_cancelling_the_handler_ends_the_request_upstream(server: ModelServer, provider: OpenAIProvider) -> None:
    server.script(Step(behaviour="hang"))
    call = asyncio.create_task(chat(provider, HELLO))
    await asyncio.wait_for(server.received.get(), 10)
    call.cancel()
    await asyncio.wait_for(server.disconnects.get(), 10)
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "payload"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "payload"),
        ({"messages": []}, "payload.messages"),
        ({"messages": [{"content": "a"}]}, "payload.messages[0].role"),
        ({"prompt": "a", "temperature": "hot"}, "payload.temperature"),
        ({"prompt": "a", "mock": {"latency": 1}}, "payload.mock.latency"),
        ([], "payload"),
        (None, "payload"),
    ],
)
def test_an_invalid_payload_names_the_field(payload: Any, field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        chat_handler(MockProvider()).validate(payload)
    assert refused.value.field == field


async def test_the_mock_answers_the_same_every_time() -> None:
    first, second = [await chat(MockProvider(), HELLO) for _ in range(2)]
    assert first == second
    assert first["finish_reason"] == "stop"
    assert first["provider"] == "mock"
    assert first["usage"]["total_tokens"] == first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]


def test_the_mock_summarises() -> None:
    text = "This module lists files. It has more to say.\n\nAnd a second paragraph."
    assert answer_to(f"Summarise this text in one sentence:\n\n{text}") == "This module lists files."
    assert answer_to(f"Summarize: {text}") == "This module lists files."
    assert answer_to("What is 2+2?") == "You asked: What is 2+2?"
    assert answer_to("") == "You asked: "


async def test_the_mock_follows_its_script() -> None:
    async def scripted(**script: Any) -> Any:
        return await chat(MockProvider(), {**HELLO, "mock": script})

    assert (await scripted(text="Exactly this."))["text"] == "Exactly this."
    assert (await scripted(tokens=20))["usage"]["completion_tokens"] == 20
    assert await scripted(status=429, retry_after=5) == Snooze(timedelta(seconds=5))
    assert isinstance(await scripted(status=503), Snooze)
    for script, code, retry in (
        ({"status": 500}, "upstream_error", True),
        ({"status": 400}, "upstream_refused", False),
        ({"truncate": True}, "upstream_truncated", True),
        ({"garbage": True}, "upstream_invalid", True),
    ):
        outcome = await scripted(**script)
        assert isinstance(outcome, Fail)
        assert (outcome.code, outcome.retry) == (code, retry)
    hanging = asyncio.create_task(scripted(hang=True))
    done, _ = await asyncio.wait({hanging}, timeout=0.05)
    assert not done
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    limited = await chat(MockProvider(), {**HELLO, "max_tokens": 1})
    assert (limited["text"], limited["finish_reason"]) == ("You", "length")


async def test_which_provider_is_in_force() -> None:
    for settings, name in (
        (ProviderSettings(), "mock"),
        (ProviderSettings(provider="mock", openai_api_key="k"), "mock"),
        (ProviderSettings(openai_api_key="k"), "openai"),
        (ProviderSettings(openai_base_url="http://vllm:8000/v1"), "openai"),
        (ProviderSettings(ollama_host="gpu"), "openai"),
    ):
        provider = make_provider(settings)
        assert provider.name == name
        await provider.aclose()
    for settings in (ProviderSettings(provider="openai"), ProviderSettings(provider="magic")):
        with pytest.raises(ConfigError):
            make_provider(settings)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("gpu", "http://gpu:11434/v1"),
        ("gpu:1234", "http://gpu:1234/v1"),
        ("http://gpu:1234/", "http://gpu:1234/v1"),
        ("https://ollama.example", "https://ollama.example/v1"),
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),  # noqa: S104
        ("http://gpu:1234/v1", "http://gpu:1234/v1"),
    ],
)
def test_ollama_host(host: str, url: str) -> None:
    assert ollama_base_url(host) == url


# --- by a worker ------------------------------------------------------------------------------------------------------


async def test_a_throttled_call_is_snoozed_and_burns_no_attempt(
    dsn: str, queue: Queue, server: ModelServer, provider: OpenAIProvider
) -> None:
    server.script(Step(behaviour="status", status=429, headers={"retry-after-ms": "20"}), Step(behaviour="answer"))
    async with running(dsn, provider=provider):
        job = await finished(queue, (await queue.submit("chat", HELLO, max_attempts=1)).id)
    assert (job.state, job.attempt, job.result["text"]) == ("completed", 1, "Hello there.")
    assert len(server.requests) == 2


async def test_a_truncated_answer_is_asked_for_again(
    dsn: str, queue: Queue, conn: psycopg.AsyncConnection, server: ModelServer, provider: OpenAIProvider
) -> None:
    await conn.execute("update queue_pg.settings set retry_base = '10 ms'")
    server.script(Step(behaviour="truncate"))
    async with running(dsn, provider=provider):
        job = await finished(queue, (await queue.submit("chat", HELLO)).id)
    assert (job.state, job.attempt, job.result["text"]) == ("completed", 2, "Hello there.")


async def test_a_refusal_fails_the_job_with_the_server_s_words(
    dsn: str, queue: Queue, server: ModelServer, provider: OpenAIProvider
) -> None:
    server.script(Step(behaviour="status", status=404, error={"message": "no such model"}))
    async with running(dsn, provider=provider):
        job = await finished(queue, (await queue.submit("chat", HELLO)).id)
    assert (job.state, job.attempt) == ("failed", 1)
    assert job.error == {
        "code": "upstream_refused",
        "message": "404: no such model",
        "status": 404,
        "provider": "openai",
    }


async def test_cancelling_the_job_ends_the_request_upstream_within_a_second(
    dsn: str, queue: Queue, server: ModelServer, provider: OpenAIProvider
) -> None:
    server.script(Step(behaviour="hang"))
    async with running(dsn, provider=provider) as worker:
        await asyncio.to_thread(worker.wakeups.wait_listening, 10)
        job = await queue.submit("chat", HELLO)
        await asyncio.wait_for(server.received.get(), 10)
        with stalled() as stalls:
            cancelled_at = time.monotonic()
            await queue.cancel(job.id)
            await asyncio.wait_for(server.disconnects.get(), 10)
            assert time.monotonic() - cancelled_at - stalls.seconds < 1.0
    assert (await queue.get(job.id)).state == "cancelled"


async def test_a_timeout_ends_the_request_upstream(
    dsn: str, queue: Queue, server: ModelServer, provider: OpenAIProvider
) -> None:
    server.script(Step(behaviour="hang"))
    async with running(dsn, provider=provider):
        job = await queue.submit("chat", HELLO, timeout=timedelta(milliseconds=200), max_attempts=1)
        await asyncio.wait_for(server.disconnects.get(), 10)
        end = await finished(queue, job.id)
    assert end.error is not None
    assert end.error["code"] == "timeout"


async def test_an_invalid_chat_payload_is_never_sent(
    dsn: str, queue: Queue, server: ModelServer, provider: OpenAIProvider
) -> None:
    async with running(dsn, provider=provider):
        job = await finished(queue, (await queue.submit("chat", {"messages": [{"content": "x"}]})).id)
    assert (job.state, job.attempt) == ("failed", 1)
    assert job.error is not None
    assert (job.error["code"], job.error["field"]) == ("payload_invalid", "payload.messages[0].role")
    assert server.requests == []
