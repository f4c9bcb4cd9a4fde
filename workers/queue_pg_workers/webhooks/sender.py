"""One delivery of a webhook: where to, signed, bounded. What its answer means is handlers/webhook.py's business."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from queue_pg.payloads import sanitise_text
from queue_pg_workers.webhooks.addresses import Allowed, ForbiddenAddress, Resolve, checked_addresses, resolve
from queue_pg_workers.webhooks.signing import Secrets, UnknownSecret, signature

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 10.0
# For the rest of an answer whose status has come.
BODY_SECONDS = 5.0
# An answer is kept for people who look why, not for programs.
MAX_ANSWER_BYTES = 16 * 1024
MAX_ANSWER_CHARS = 4_000
# A host that means very many addresses is tried at some of them.
MAX_ADDRESSES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """What the environment says about webhooks; a payload can change none of it."""

    secret: str | None = None
    secrets: str | None = None
    allow_private: tuple[str, ...] = ()
    timeout_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What to send. `webhook_id` is the same in every attempt, so that receivers can tell a repetition."""

    webhook_id: str
    url: str
    body: bytes
    headers: Mapping[str, str]
    secret_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the receiver said."""

    status: int
    headers: Mapping[str, str]
    text: str
    truncated: bool


class Undelivered(Exception):
    """There was no answer, or nothing was sent. `retry` is false when trying again would end the same way."""

    def __init__(self, code: str, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry = retry


class WebhookSender:
    """Delivers webhooks. Follows no redirect, uses no proxy, sends no cookie, keeps no connection.

    A kept connection would be taken by its address and port, and may have been opened for another host name.
    """

    def __init__(
        self, settings: WebhookSettings, *, resolve: Resolve = resolve, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """Raise ConfigError for settings that make no sense."""
        self._secrets = Secrets.parse(settings.secret, settings.secrets)
        self._allowed = Allowed.parse(settings.allow_private)
        self._timeout_seconds = settings.timeout_seconds
        self._resolve = resolve
        self._ssl_context = ssl_context
        self._client: httpx2.AsyncClient | None = None

    async def deliver(self, delivery: Delivery) -> Answer:
        """Send it and return the answer, whatever its status. Raises Undelivered; being cancelled ends the request."""
        try:
            keys = self._secrets.keys(delivery.secret_name)
        except UnknownSecret:
            message = f"no secret is called {delivery.secret_name!r}; WEBHOOK_SECRETS of the workers has them"
            raise Undelivered("webhook_secret_unknown", message, retry=False) from None
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "queue-pg",
            **{name.lower(): value for name, value in delivery.headers.items()},
            # Compressed, a small answer may be a large one.
            "accept-encoding": "identity",
            "connection": "close",
            "webhook-id": delivery.webhook_id,
            "webhook-timestamp": str(timestamp),
        }
        if keys:
            headers["webhook-signature"] = signature(keys, delivery.webhook_id, timestamp, delivery.body)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._send(delivery, headers)
        except TimeoutError:
            message = f"no answer within {self._timeout_seconds:g} s"
            raise Undelivered("webhook_timeout", message) from None
        return await self._read(response)

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _send(self, delivery: Delivery, headers: dict[str, str]) -> httpx2.Response:
        """Return the response as soon as its status has come."""
        import httpx2

        try:
            url = httpx2.URL(delivery.url)
        except (httpx2.InvalidURL, UnicodeError, ValueError):
            raise Undelivered("webhook_url_invalid", "the URL cannot be read", retry=False) from None
        host = url.raw_host.decode("ascii")
        if url.scheme not in ("http", "https") or not host or url.userinfo:
            raise Undelivered("webhook_url_invalid", "the URL must be http or https, with a host", retry=False)
        headers["host"] = url.netloc.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = await checked_addresses(host.strip("[]"), port, self._allowed, self._resolve)
        except ForbiddenAddress as forbidden:
            message = f"{forbidden}; WEBHOOK_ALLOW_PRIVATE of the workers can allow it"
            raise Undelivered("webhook_address_forbidden", message, retry=False) from None
        except (OSError, UnicodeError) as error:
            raise Undelivered("webhook_unreachable", f"{host} has no address: {_said(error)}") from error
        client = self._opened()
        tried = addresses[:MAX_ADDRESSES]
        for address in tried:
            request = client.build_request(
                "POST",
                url.copy_with(host=address, fragment=None),
                content=delivery.body,
                headers=headers,
                # The certificate has to be that of the name; for an address there is none to send.
                extensions={"sni_hostname": host.strip("[]")},
            )
            try:
                return await client.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if address == tried[-1]:
                    raise Undelivered("webhook_unreachable", f"no connection to {host}: {_said(error)}") from error
            except httpx2.HTTPError as error:
                raise Undelivered("webhook_unreachable", f"the connection to {host} broke: {_said(error)}") from error
        raise Undelivered("webhook_unreachable", f"{host} has no address")

    async def _read(self, response: httpx2.Response) -> Answer:
        """Take the beginning of the body; the status has come and counts, whatever becomes of the rest."""
        import httpx2

        body = bytearray()
        whole = False
        try:
            async with asyncio.timeout(min(BODY_SECONDS, self._timeout_seconds)):
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > MAX_ANSWER_BYTES:
                        break
                else:
                    whole = True
        except (httpx2.HTTPError, TimeoutError):
            pass
        finally:
            await response.aclose()
        text = bytes(body[:MAX_ANSWER_BYTES]).decode(errors="replace")
        return Answer(
            status=response.status_code,
            headers=dict(response.headers),
            text=sanitise_text(text[:MAX_ANSWER_CHARS], MAX_ANSWER_CHARS),
            truncated=not whole or len(text) > MAX_ANSWER_CHARS,
        )

    def _opened(self) -> httpx2.AsyncClient:
        if self._client is None:
            import httpx2

            # They log each request with its URL, which is part of a payload and may hold a token.
            for name in ("httpx2", "httpcore2"):
                logging.getLogger(name).setLevel(logging.WARNING)
            self._client = httpx2.AsyncClient(
                verify=self._ssl_context or ssl.create_default_context(),
                # The whole has a limit of its own.
                timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
                limits=httpx2.Limits(max_keepalive_connections=0),
                follow_redirects=False,
                trust_env=False,
            )
        return self._client


def _said(error: Any) -> str:
    return sanitise_text(f"{type(error).__name__}: {error}", 300)
