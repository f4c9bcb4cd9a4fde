"""Choose the provider of the kind `chat` from the worker's settings."""

from __future__ import annotations

from dataclasses import dataclass

from queue_pg.errors import ConfigError
from queue_pg_workers.providers.base import Provider
from queue_pg_workers.providers.mock import MockProvider

OLLAMA_PORT = 11434


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """What the environment says about the model server; a payload can change none of it but the model."""

    provider: str | None = None
    openai_api_key: str | None = None
    openai_base_url: str | None = None
    openai_model: str = "gpt-4o-mini"
    ollama_host: str | None = None
    ollama_model: str = "qwen2.5:0.5b"


def make_provider(settings: ProviderSettings) -> Provider:
    """Return the provider in force: the one named, else `openai` when a key or server is set, else `mock`.

    Raise `ConfigError` for an unknown name, or for `openai` without a key or server.
    """
    reachable = settings.openai_api_key or settings.openai_base_url or settings.ollama_host
    name = settings.provider or ("openai" if reachable else "mock")
    if name == "mock":
        return MockProvider()
    if name not in ("openai", "ollama"):
        raise ConfigError(
            f"LLM_PROVIDER is {name!r}, which is no provider.",
            setting="LLM_PROVIDER",
            hint="Use mock, openai or ollama.",
        )
    # The SDK takes half a second to import, which the mock's users need not wait for.
    from queue_pg_workers.providers.openai import OpenAIProvider

    if name == "openai" and (settings.openai_api_key or settings.openai_base_url):
        return OpenAIProvider(
            api_key=settings.openai_api_key, base_url=settings.openai_base_url, model=settings.openai_model
        )
    if name == "openai" and not settings.ollama_host:
        raise ConfigError(
            "LLM_PROVIDER is openai, but there is neither a key nor a server.",
            setting="OPENAI_API_KEY",
            hint="Set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own, or LLM_PROVIDER=mock.",
        )
    return OpenAIProvider(
        api_key=None, base_url=ollama_base_url(settings.ollama_host or "127.0.0.1"), model=settings.ollama_model
    )


def ollama_base_url(host: str) -> str:
    """Return the OpenAI-compatible URL for an `OLLAMA_HOST`: `host`, `host:port` or a URL."""
    scheme, separator, rest = host.strip().rstrip("/").partition("://")
    if not separator:
        scheme, rest = "http", scheme
    authority, slash, path = rest.partition("/")
    # 0.0.0.0 tells Ollama's server to listen everywhere; people set it for the client too.
    authority = authority.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    if not authority.startswith("[") and ":" not in authority and scheme == "http":
        authority = f"{authority}:{OLLAMA_PORT}"
    return f"{scheme}://{authority}{slash}{path}".removesuffix("/v1").rstrip("/") + "/v1"
