"""The kind `webhook`: what is sent, to whom, and what becomes of each answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from in_process import finished, running
from pydantic import ValidationError
from queue_pg_workers.config import WorkerConfig
from queue_pg_workers.handlers.webhook import KIND, MAX_ATTEMPTS, WebhookPayload, run_webhook
from queue_pg_workers.kinds import webhook_handler
from queue_pg_workers.main import config_from_json, config_to_json
from queue_pg_workers.webhooks import sender as sender_module
from queue_pg_workers.webhooks.addresses import Allowed, is_public, resolve
from queue_pg_workers.webhooks.sender import WebhookSender, WebhookSettings
from queue_pg_workers.webhooks.signing import Secrets, signature
from webhook_receiver import Receiver, Reply, receiver

from queue_pg import Queue
from queue_pg.errors import ConfigError, InvalidJob
from queue_pg.models import Fail
from queue_pg.testing import Clock

JOB = UUID("018f0000-0000-7000-8000-000000000001")
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
OTHER_KEY = bytes(range(100, 140))
OTHER_SECRET = "whsec_" + base64.b64encode(OTHER_KEY).decode()
LOOPBACK = WebhookSettings(secret=SECRET, secrets=f"crm={OTHER_SECRET}", allow_private=("127.0.0.0/8",))


@pytest.fixture
async def hooks() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


@pytest.fixture
async def sender() -> AsyncIterator[WebhookSender]:
    made = WebhookSender(LOOPBACK)
    yield made
    await made.aclose()


async def send(sender: WebhookSender, url: str, **payload: Any) -> Any:
    return await run_webhook(sender, WebhookPayload.model_validate({"url": url, **payload}), JOB)


def resolving(*addresses: str) -> Callable[[str, int], Any]:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    return resolve


def verified(headers: dict[str, str], raw: bytes, key: bytes) -> bool:
    """Check a signature as the specification tells receivers to."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + raw
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return any(
        version == "v1" and hmac.compare_digest(given, expected)
        for version, _, given in (each.partition(",") for each in headers["webhook-signature"].split(" "))
    )


# --- what is sent -----------------------------------------------------------------------------------------------------


async def test_a_delivery_is_signed_and_whole(hooks: Receiver, sender: WebhookSender) -> None:
    body = {"text": "Grüße 🙂 \u2028", "list": [1, 2.5, None, True]}
    result = await send(
        sender, hooks.url, body=body, headers={"X-Own": "a b", "Content-Type": "application/cloud+json"}
    )
    assert result == {"status": 200, "body": "ok", "truncated": False}
    [sent] = hooks.requests
    assert (sent.method, sent.path, sent.body) == ("POST", "/hook?a=1", body)
    assert sent.headers["host"] == f"127.0.0.1:{hooks.port}"
    assert (sent.headers["x-own"], sent.headers["content-type"]) == ("a b", "application/cloud+json")
    assert (sent.headers["webhook-id"], sent.headers["user-agent"]) == (str(JOB), "queue-pg")
    assert abs(int(sent.headers["webhook-timestamp"]) - time.time()) < 30
    assert verified(sent.headers, sent.raw, KEY)
    assert not verified(sent.headers, sent.raw + b" ", KEY)
    assert not verified({**sent.headers, "webhook-timestamp": "1"}, sent.raw, KEY)
    assert "cookie" not in sent.headers


def test_the_signature_is_that_of_the_specification() -> None:
    # The example of the Standard Webhooks libraries.
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected


async def test_a_receiver_verifies_it_as_the_guide_shows(hooks: Receiver, sender: WebhookSender) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    names: dict[str, Any] = {}
    [block] = re.findall(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    exec(block, names)  # noqa: S102
    await send(sender, hooks.url, body={"n": 1})
    [sent] = hooks.requests
    names["verify"](SECRET, sent.headers, sent.raw)
    for headers, raw in (
        (sent.headers, sent.raw + b" "),
        ({**sent.headers, "webhook-id": "x"}, sent.raw),
        ({**sent.headers, "webhook-timestamp": str(int(time.time()) - 301)}, sent.raw),
    ):
        with pytest.raises(ValueError, match=r"too old|not signed"):
            names["verify"](SECRET, headers, raw)
    with pytest.raises(ValueError, match="not signed"):
        names["verify"](OTHER_SECRET, sent.headers, sent.raw)


async def test_while_a_secret_is_changed_both_sign(hooks: Receiver) -> None:
    both = WebhookSender(WebhookSettings(secret=f"{OTHER_SECRET} {SECRET}", allow_private=("127.0.0.1",)))
    await send(both, hooks.url)
    [sent] = hooks.requests
    assert len(sent.headers["webhook-signature"].split(" ")) == 2
    assert verified(sent.headers, sent.raw, KEY)
    assert verified(sent.headers, sent.raw, OTHER_KEY)
    await both.aclose()


async def test_a_payload_names_a_secret_and_never_holds_one(hooks: Receiver, sender: WebhookSender) -> None:
    await send(sender, hooks.url, secret_name="crm")
    [sent] = hooks.requests
    assert verified(sent.headers, sent.raw, OTHER_KEY)
    assert not verified(sent.headers, sent.raw, KEY)
    outcome = await send(sender, hooks.url, secret_name="unknown")
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry) == ("webhook_secret_unknown", False)
    assert len(hooks.requests) == 1
    with pytest.raises(ValidationError):
        await send(sender, hooks.url, secret=SECRET)


async def test_no_url_is_logged(hooks: Receiver, sender: WebhookSender, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert (await send(sender, f"{hooks.url}&token=hush"))["status"] == 200
    assert hooks.requests[0].path.endswith("token=hush")
    assert "hush" not in caplog.text


async def test_without_a_secret_it_goes_unsigned(hooks: Receiver) -> None:
    unsigned = WebhookSender(WebhookSettings(allow_private=("*",)))
    assert (await send(unsigned, hooks.url))["status"] == 200
    [sent] = hooks.requests
    assert "webhook-signature" not in sent.headers
    assert sent.headers["webhook-id"] == str(JOB)
    assert sent.body == {}
    await unsigned.aclose()


# --- what becomes of answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_2xx_is_done(hooks: Receiver, sender: WebhookSender, status: int) -> None:
    hooks.script(Reply(status=status, body=b""))
    assert (await send(sender, hooks.url))["status"] == status


@pytest.mark.parametrize(
    ("status", "code", "retry"),
    [
        (300, "webhook_redirected", True),
        (302, "webhook_redirected", True),
        (307, "webhook_redirected", True),
        (301, "webhook_redirected", False),
        (308, "webhook_redirected", False),
        (400, "webhook_refused", False),
        (401, "webhook_refused", False),
        (404, "webhook_refused", False),
        (409, "webhook_refused", False),
        (422, "webhook_refused", False),
        (410, "webhook_gone", False),
        (408, "webhook_failed", True),
        (425, "webhook_failed", True),
        (429, "webhook_failed", True),
        (500, "webhook_failed", True),
        (503, "webhook_failed", True),
        (599, "webhook_failed", True),
    ],
)
async def test_other_answers(hooks: Receiver, sender: WebhookSender, status: int, code: str, retry: bool) -> None:
    # Where a redirect leads is a receiver too, and must get nothing.
    hooks.script(Reply(status=status, body=b"why not", headers={"location": hooks.url}))
    outcome = await send(sender, hooks.url)
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry, outcome.delay) == (code, retry, None)
    assert outcome.details == {"status": status, "body": "why not"}
    assert len(hooks.requests) == 1


@pytest.mark.parametrize(
    ("asked", "lowest", "highest"),
    [
        ("120", 120, 120),
        ("0", 1, 1),
        ("-5", 1, 1),
        ("1e99", 86_400, 86_400),
        ("in an hour", 3_500, 3_600),
    ],
)
async def test_retry_after_is_honoured(
    hooks: Receiver, sender: WebhookSender, asked: str, lowest: float, highest: float
) -> None:
    if asked == "in an hour":
        asked = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    hooks.script(Reply(status=429, headers={"Retry-After": asked}))
    outcome = await send(sender, hooks.url)
    assert isinstance(outcome, Fail)
    assert outcome.delay is not None
    assert lowest <= outcome.delay.total_seconds() <= highest


@pytest.mark.parametrize("asked", ["soon", "nan", ""])
async def test_a_retry_after_that_says_nothing(hooks: Receiver, sender: WebhookSender, asked: str) -> None:
    hooks.script(Reply(status=503, headers={"Retry-After": asked}))
    outcome = await send(sender, hooks.url)
    assert isinstance(outcome, Fail)
    assert outcome.delay is None


async def test_a_long_answer_is_cut(hooks: Receiver, sender: WebhookSender) -> None:
    hooks.script(Reply(body=b"a\x00\xff" + b"b" * 10_000))
    result = await send(sender, hooks.url)
    assert (result["status"], len(result["body"]), result["truncated"]) == (200, 4_000, True)
    assert result["body"].startswith("a\ufffd\ufffdb")


async def test_an_answer_without_end_counts_by_its_status(
    hooks: Receiver, sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks.script(Reply(endless=True), Reply(body=b"half", headers={"transfer-encoding": "chunked"}))
    result = await asyncio.wait_for(send(sender, hooks.url), 10)
    assert (result["status"], result["truncated"]) == (200, True)
    # The rest of a body that never comes is not waited for.
    monkeypatch.setattr(sender_module, "BODY_SECONDS", 0.05)
    hooks.script(Reply(status=204, body=b"", headers={"x": "y"}))
    result = await asyncio.wait_for(send(sender, hooks.url), 10)
    assert result["status"] == 200


async def test_silence_and_broken_connections_are_tried_again(hooks: Receiver) -> None:
    impatient = WebhookSender(WebhookSettings(allow_private=("127.0.0.1",), timeout_seconds=1))
    hooks.script(Reply(hang=True), Reply(cut=True))
    for code in ("webhook_timeout", "webhook_unreachable"):
        outcome = await send(impatient, hooks.url)
        assert isinstance(outcome, Fail)
        assert (outcome.code, outcome.retry) == (code, True)
    async with receiver() as gone:
        url = gone.url
    outcome = await send(impatient, url)
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry) == ("webhook_unreachable", True)
    await impatient.aclose()


# --- who may be reached -----------------------------------------------------------------------------------------------

PRIVATE = [
    *(
        "127.0.0.1",
        "127.1.2.3",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",  # noqa: S104
    ),
    *("100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "192.0.2.1", "224.0.0.1", "240.0.0.1"),
    *(
        "255.255.255.255",
        "168.63.129.16",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fd00:ec2::254",
        "fc00::1",
    ),
    *(
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
    ),
    *("2002:7f00:1::", "2002:a00:1::1", "2001:db8::1", "2001:0:7f00:1::", "100::1", "::127.0.0.1"),
]


@pytest.mark.parametrize("address", PRIVATE)
async def test_private_addresses_are_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    guarded = WebhookSender(WebhookSettings(), resolve=resolving(address))
    outcome = await send(guarded, "http://rebound.example/")
    assert isinstance(outcome, Fail)
    assert (outcome.code, outcome.retry) == ("webhook_address_forbidden", False)
    # What a name means inside is not told to those who submit.
    assert address not in outcome.message


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_fine(address: str) -> None:
    assert is_public(ip_address(address))


async def test_one_private_address_among_others_is_enough() -> None:
    guarded = WebhookSender(WebhookSettings(), resolve=resolving("8.8.8.8", "2606:4700::1111", "10.0.0.1"))
    outcome = await send(guarded, "http://both.example/")
    assert isinstance(outcome, Fail)
    assert outcome.code == "webhook_address_forbidden"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0"],
)
async def test_every_spelling_of_loopback_is_refused(hooks: Receiver, host: str) -> None:
    guarded = WebhookSender(WebhookSettings())
    outcome = await send(guarded, f"http://{host}:{hooks.port}/")
    assert isinstance(outcome, Fail)
    assert outcome.code in {"webhook_address_forbidden", "webhook_url_invalid"}
    assert hooks.requests == []


async def test_names_that_nobody_answers_for_keep_nothing_else_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def look_up(*_: Any, **__: Any) -> list[Any]:
        answered.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    waiting = [asyncio.create_task(resolve(f"silent{number}.example", 80)) for number in range(40)]
    try:
        await asyncio.sleep(0)
        # Artifacts and commands use the loop's threads.
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(lambda: "done") == "done"
    finally:
        answered.set()
        await asyncio.gather(*waiting)


async def test_a_name_is_resolved_once_and_the_checked_address_is_used(hooks: Receiver) -> None:
    asked: list[str] = []

    async def rebinding(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        # What it means at the second look is another machine.
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    allowed = WebhookSender(WebhookSettings(allow_private=("127.0.0.1/32",)), resolve=rebinding)
    result = await send(allowed, f"http://Hooks.example:{hooks.port}/x")
    assert (result["status"], asked) == (200, ["hooks.example"])
    assert hooks.requests[0].headers["host"] == f"hooks.example:{hooks.port}"
    outcome = await send(allowed, f"http://hooks.example:{hooks.port}/x")
    assert isinstance(outcome, Fail)
    assert outcome.code == "webhook_address_forbidden"
    await allowed.aclose()


async def test_what_is_allowed(hooks: Receiver) -> None:
    for entries, reached in (
        (("127.0.0.1",), True),
        (("127.0.0.0/8", "fd00::/8"), True),
        (("hooks.internal",), True),
        (("HOOKS.internal.",), True),
        (("*",), True),
        (("10.0.0.0/8",), False),
        (("internal",), False),
        (("other.hooks.internal",), False),
        ((), False),
    ):
        made = WebhookSender(WebhookSettings(allow_private=entries), resolve=resolving("127.0.0.1"))
        outcome = await send(made, f"http://hooks.internal:{hooks.port}/")
        assert (not isinstance(outcome, Fail)) is reached, entries
        await made.aclose()


async def test_the_next_address_is_tried_when_one_takes_no_connection(hooks: Receiver) -> None:
    made = WebhookSender(WebhookSettings(allow_private=("*",)), resolve=resolving("127.0.0.77", "127.0.0.1"))
    assert (await send(made, f"http://hooks.example:{hooks.port}/"))["status"] == 200
    await made.aclose()


async def test_a_name_that_does_not_resolve_is_tried_again() -> None:
    async def failing(_host: str, _port: int) -> Sequence[str]:
        raise OSError(-3, "Temporary failure in name resolution")

    for unresolving in (failing, resolving()):
        outcome = await send(WebhookSender(WebhookSettings(), resolve=unresolving), "http://nowhere.example/")
        assert isinstance(outcome, Fail)
        assert (outcome.code, outcome.retry) == ("webhook_unreachable", True)


async def test_proxies_of_the_environment_are_not_used(
    hooks: Receiver, sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiver() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert (await send(sender, hooks.url))["status"] == 200
        assert (len(hooks.requests), proxy.requests) == (1, [])


# --- TLS --------------------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str) -> Path:
    """Make a certificate for a host name, signed by itself, and its key in the same file."""
    made = folder / f"{name}.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}", "-keyout", str(folder / "key"), "-out", str(folder / "cert")),
        ],
        check=True,
        capture_output=True,
    )
    made.write_text((folder / "key").read_text() + (folder / "cert").read_text())
    return made


async def test_the_certificate_has_to_be_that_of_the_name(tmp_path: Path) -> None:
    pem = certificate(tmp_path, "hooks.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    trusting = ssl.create_default_context(cafile=str(pem))
    async with receiver(server) as hooks:
        made = WebhookSender(
            WebhookSettings(allow_private=("127.0.0.1",)), resolve=resolving("127.0.0.1"), ssl_context=trusting
        )
        assert (await send(made, f"https://hooks.example:{hooks.port}/"))["status"] == 200
        assert hooks.requests[0].server_name == "hooks.example"
        # The same address and port under another name: neither an old connection nor the certificate will do.
        outcome = await send(made, f"https://other.example:{hooks.port}/")
        assert isinstance(outcome, Fail)
        assert (outcome.code, outcome.retry) == ("webhook_unreachable", True)
        assert "certificate" in outcome.message.lower()
        distrusting = WebhookSender(WebhookSettings(allow_private=("*",)), resolve=resolving("127.0.0.1"))
        outcome = await send(distrusting, f"https://hooks.example:{hooks.port}/")
        assert isinstance(outcome, Fail)
        assert len(hooks.requests) == 1
        await made.aclose()
        await distrusting.aclose()


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "payload.url"),
        ({"url": ""}, "payload.url"),
        ({"url": 5}, "payload.url"),
        ({"url": "ftp://x/"}, "payload.url"),
        ({"url": "file:///etc/passwd"}, "payload.url"),
        ({"url": "gopher://x/"}, "payload.url"),
        ({"url": "//x/"}, "payload.url"),
        ({"url": "http:///x"}, "payload.url"),
        ({"url": "http://"}, "payload.url"),
        ({"url": "http://user:pass@x/"}, "payload.url"),
        ({"url": "http://good.example@127.0.0.1/"}, "payload.url"),
        ({"url": "http://x/\r\nHost: y"}, "payload.url"),
        ({"url": "http://x/ y"}, "payload.url"),
        ({"url": "http://[::1/"}, "payload.url"),
        ({"url": "http://x/" + "y" * 2_048}, "payload.url"),
        ({"url": "http://x/", "method": "GET"}, "payload.method"),
        ({"url": "http://x/", "headers": []}, "payload.headers"),
        ({"url": "http://x/", "headers": {"a": 1}}, "payload.headers.a"),
        ({"url": "http://x/", "headers": {"a b": "c"}}, "payload.headers"),
        ({"url": "http://x/", "headers": {"": "c"}}, "payload.headers"),
        ({"url": "http://x/", "headers": {"a": "b\r\nHost: y"}}, "payload.headers"),
        ({"url": "http://x/", "headers": {"a": "ü"}}, "payload.headers"),
        ({"url": "http://x/", "headers": {"Host": "y"}}, "payload.headers"),
        ({"url": "http://x/", "headers": {"Webhook-Signature": "y"}}, "payload.headers"),
        ({"url": "http://x/", "headers": {"Content-Length": "0"}}, "payload.headers"),
        ({"url": "http://x/", "headers": {"Proxy-Authorization": "y"}}, "payload.headers"),
        ({"url": "http://x/", "headers": {"a": "b", "A": "c"}}, "payload.headers"),
        ({"url": "http://x/", "headers": {f"a{n}": "b" for n in range(51)}}, "payload.headers"),
        ({"url": "http://x/", "secret_name": ""}, "payload.secret_name"),
        ([], "payload"),
        (None, "payload"),
    ],
)
def test_a_payload_that_makes_no_sense_is_named(payload: Any, field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        webhook_handler(WebhookSender(LOOPBACK)).validate(payload)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "url", ["http://\u2603.example/", "http://x:99999/", "http://x:y/", "http://\ud7ff/", "http://xn--/"]
)
async def test_a_url_that_only_one_reader_takes_reaches_nobody(url: str) -> None:
    made = WebhookSender(WebhookSettings(), resolve=resolving("10.0.0.1"))
    with contextlib.suppress(ValidationError):
        outcome = await send(made, url)
        assert isinstance(outcome, Fail)
        assert outcome.code in {"webhook_url_invalid", "webhook_address_forbidden"}


@pytest.mark.parametrize(
    "settings",
    [
        {"secret": "hush"},
        {"secret": "whsec_"},
        {"secret": "whsec_not base64"},
        {"secret": "whsec_" + base64.b64encode(b"short").decode()},
        {"secret": "whsec_" + base64.b64encode(b"x" * 65).decode()},
        {"secrets": SECRET},
        {"secrets": f"={SECRET}"},
        {"secrets": "a="},
        {"secrets": f"a={SECRET},a={SECRET}"},
        {"allow_private": ("http://x/",)},
        {"allow_private": ("10.0.0.0/99",)},
        {"allow_private": ("10.0.0",)},
        {"allow_private": ("*.internal",)},
    ],
)
def test_settings_that_make_no_sense_are_refused_without_showing_secrets(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        WebhookSender(WebhookSettings(**settings))
    said = f"{refused.value} {refused.value.hint}"
    assert "hush" not in said
    assert SECRET not in said


def test_secrets_show_in_no_repr() -> None:
    parsed = Secrets.parse(SECRET, f"a={OTHER_SECRET}, b={SECRET} {OTHER_SECRET}")
    assert (parsed.keys(None), parsed.keys("a"), parsed.keys("b")) == ((KEY,), (OTHER_KEY,), (KEY, OTHER_KEY))
    assert repr(parsed) == "Secrets()"
    assert Allowed.parse([]) == Allowed()


def test_a_worker_process_is_told_its_settings() -> None:
    config = WorkerConfig(dsn="x", webhooks=LOOPBACK)
    assert config_from_json(config_to_json(config)) == config


# --- by a worker ------------------------------------------------------------------------------------------------------


async def test_a_webhook_job_is_tried_again_until_it_is_taken(
    dsn: str, queue: Queue, hooks: Receiver, clock: Clock
) -> None:
    hooks.script(Reply(status=500), Reply(status=429, headers={"Retry-After": "3600"}), Reply(cut=True))
    async with running(dsn, webhooks=LOOPBACK):
        job = await queue.submit(KIND, {"url": hooks.url, "body": {"n": 1}})
        for attempt, seconds in ((1, 6), (2, 3601), (3, 21)):
            await asyncio.wait_for(hooks.received.get(), 20)
            async for event in queue.events(job.id):
                if event.type == "failed" and event.data["attempt"] == attempt:
                    break
            await asyncio.to_thread(clock.advance, seconds)
        done = await finished(queue, job.id)
    assert (done.state, done.attempt, done.max_attempts) == ("completed", 4, MAX_ATTEMPTS)
    assert done.result == {"status": 200, "body": "ok", "truncated": False}
    # Each attempt is signed anew, under the id that tells a receiver that it is the same.
    assert {each.headers["webhook-id"] for each in hooks.requests} == {str(job.id)}
    assert all(verified(each.headers, each.raw, KEY) for each in hooks.requests)


async def test_a_refusal_ends_the_job_with_the_receivers_words(dsn: str, queue: Queue, hooks: Receiver) -> None:
    hooks.script(Reply(status=410, body=b"gone\x00"))
    async with running(dsn, webhooks=LOOPBACK):
        done = await finished(queue, (await queue.submit(KIND, {"url": hooks.url})).id)
    assert (done.state, done.attempt) == ("failed", 1)
    assert done.error == {"code": "webhook_gone", "message": "answered 410", "status": 410, "body": "gone\ufffd"}


async def test_cancelling_the_job_ends_the_request(dsn: str, queue: Queue, hooks: Receiver) -> None:
    hooks.script(Reply(hang=True))
    async with running(dsn, webhooks=LOOPBACK) as worker:
        await asyncio.to_thread(worker.wakeups.wait_listening, 10)
        job = await queue.submit(KIND, {"url": hooks.url})
        await asyncio.wait_for(hooks.received.get(), 20)
        await queue.cancel(job.id)
        await asyncio.wait_for(hooks.disconnects.get(), 5)


async def test_by_default_a_worker_reaches_no_private_address(dsn: str, queue: Queue, hooks: Receiver) -> None:
    async with running(dsn):
        done = await finished(queue, (await queue.submit(KIND, {"url": hooks.url})).id)
    assert done.error is not None
    assert (done.state, done.error["code"]) == ("failed", "webhook_address_forbidden")
    assert hooks.requests == []


async def test_a_batch_calls_webhooks_back(
    dsn: str, queue: Queue, hooks: Receiver, conn: psycopg.AsyncConnection
) -> None:
    async with running(dsn, webhooks=LOOPBACK):
        batch = await queue.create_batch(
            "import",
            on_first_failed=hooks.url,
            on_failed={"kind": KIND, "payload": {"url": hooks.url, "secret_name": "crm", "body": {"team": "a"}}},
            metadata={"user": 7},
        )
        job = await queue.submit("load", batch_id=batch.id)
        await queue.submit("load", batch_id=batch.id)
        await queue.claim("w", ["default"], kinds=["load"], max_jobs=2)
        await conn.execute(
            "select queue_pg.finish(array[id], array[lease_token], '{discard}') from queue_pg.jobs where id = %s",
            [job.id],
        )
        # While the batch is open and has a job that runs.
        first = await asyncio.wait_for(hooks.received.get(), 20)
        assert (first.body["type"], first.body["data"]["id"]) == ("batch.first_failed", str(batch.id))
        assert (first.body["data"]["state"], first.body["data"]["failed"]) == ("open", 1)
        assert verified(first.headers, first.raw, KEY)
        await queue.close_batch(batch.id)
        await conn.execute("select queue_pg.finish(array[id], array[lease_token], '{complete}') from queue_pg.jobs"
                           " where kind = 'load'")  # fmt: skip
        last = await asyncio.wait_for(hooks.received.get(), 20)
    assert (last.body["type"], last.body["team"]) == ("batch.failed", "a")
    assert datetime.fromisoformat(last.body["timestamp"]).utcoffset() == timedelta(0)
    assert (last.body["data"]["completed"], last.body["data"]["metadata"]) == (1, {"user": 7})
    assert verified(last.headers, last.raw, OTHER_KEY)
    ended = await queue.get_batch(batch.id)
    assert [first.headers["webhook-id"], last.headers["webhook-id"]] == [
        str(ended.first_failed_id),
        *map(str, ended.callback_ids),
    ]
