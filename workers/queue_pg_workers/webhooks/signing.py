"""Signatures of webhooks, by the Standard Webhooks specification 1.0.0 (symmetric, `v1`)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from queue_pg.errors import ConfigError

PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64


class UnknownSecret(Exception):
    """No secret has this name."""


def signature(keys: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature`: one signature for each key, so that secrets can be rotated."""
    signed = b"%s.%d.%s" % (webhook_id.encode(), timestamp, body)
    made = [base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys]
    return " ".join(f"v1,{each}" for each in made)


@dataclass(frozen=True, slots=True)
class Secrets:
    """The keys of this worker: those for every webhook, and those that payloads name."""

    default: tuple[bytes, ...] = field(default=(), repr=False)
    named: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict[str, tuple[bytes, ...]], repr=False)

    def keys(self, name: str | None) -> tuple[bytes, ...]:
        """Return the keys to sign with; none: it goes unsigned. Raises UnknownSecret."""
        if name is None:
            return self.default
        try:
            return self.named[name]
        except KeyError:
            raise UnknownSecret(name) from None

    @classmethod
    def parse(cls, default: str | None, named: str | None) -> Secrets:
        """Read WEBHOOK_SECRET, secrets with spaces between, and WEBHOOK_SECRETS, `name=...,...`. Raises ConfigError."""
        found: dict[str, tuple[bytes, ...]] = {}
        for entry in (named or "").split(","):
            name, equals, text = entry.strip().partition("=")
            if not name and not equals:
                continue
            if not name or not equals or name in found:
                raise _refused("WEBHOOK_SECRETS", "names must be given once each, followed by = and a secret")
            found[name.strip()] = _keys("WEBHOOK_SECRETS", text)
        return cls(() if default is None else _keys("WEBHOOK_SECRET", default), found)


def _keys(setting: str, text: str) -> tuple[bytes, ...]:
    keys = tuple(_key(setting, each) for each in text.split())
    if not keys:
        raise _refused(setting, "a secret is empty")
    return keys


def _key(setting: str, text: str) -> bytes:
    if not text.startswith(PREFIX):
        raise _refused(setting, f"a secret must begin with {PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise _refused(setting, f"after {PREFIX} a secret must be base64") from None
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        raise _refused(setting, f"a secret must have {MIN_BYTES} to {MAX_BYTES} bytes, and one has {len(key)}")
    return key


def _refused(setting: str, reason: str) -> ConfigError:
    # Without the value: it is a secret.
    return ConfigError(
        f"{setting} makes no sense: {reason}.",
        setting=setting,
        hint=f"Make one: echo {PREFIX}$(head -c 32 /dev/urandom | base64)",
    )
