"""Settings: from arguments, the environment and `.env`, in this order; the first that has a value wins.

Each setting can have several names: ours, and those of the systems that queue-pg replaces. An empty variable counts
as unset (compose files pass empty ones). `Settings.load()` is the way in; `describe()` tells what is in force and why.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from dotenv import dotenv_values
from pydantic import Field, PrivateAttr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from queue_pg.dsn import MASK, mask_dsn, normalise_dsn
from queue_pg.errors import ConfigError
from queue_pg.models import InstanceDefaults

MIB = 1024 * 1024
_SUBJECT = re.compile("^(Input|String|List|Value error,) ")


def _from(*names: str, default: Any = None, secret: bool = False, **limits: Any) -> Any:
    """Declare a setting: the variables it is read from (the first is its own name), its default and its limits."""
    return Field(default, repr=not secret, json_schema_extra={"env": list(names), "secret": secret}, **limits)


class Settings(BaseSettings):
    """All settings, checked. Durations are in seconds. None means: as the database or the code that uses it decides."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    # The database. Without DATABASE_URL an embedded Postgres keeps its files in `data_dir`. The other address is for
    # LISTEN alone, where DATABASE_URL goes through a pooler that drops notifications.
    database_url: str | None = _from("DATABASE_URL", secret=True)
    listen_database_url: str | None = _from("LISTEN_DATABASE_URL", secret=True)
    data_dir: Path = _from("QUEUE_PG_DATA_DIR", "ZDB_DATA", default=Path(".data/postgres"))
    pool_size: int = _from("POOL_SIZE", default=10, ge=1, le=1000)
    notify: bool = _from("QUEUE_PG_NOTIFY", default=True)
    org: str = _from("DEFAULT_ORG", "ZDEFAULT_ORG_ID", default="default", min_length=1, max_length=200)

    # What a job gets when its submission does not say.
    max_attempts: int | None = _from("MAX_ATTEMPTS", "ZBRAIN_MAX_RETRIES", ge=1, le=1000)
    default_timeout_seconds: float | None = _from("DEFAULT_TIMEOUT", "ZBRAIN_DEFAULT_TIMEOUT", gt=0, le=31_536_000)
    job_ttl_seconds: float | None = _from("JOB_TTL_SECONDS", gt=0, le=3_153_600_000)
    max_payload_bytes: int = _from("MAX_PAYLOAD_BYTES", default=32 * MIB, ge=1, le=32 * MIB)
    unknown_kinds: Literal["auto", "refuse", "accept"] = _from("UNKNOWN_KINDS", default="auto")

    # Tasks that are described in words: who plans them, and the queue of their subtasks.
    planner: Literal["rules", "llm"] = _from("PLANNER", default="rules")
    subtask_queue: str = _from("SUBTASK_QUEUE", default="work_queue", min_length=1, max_length=200)

    # What artifacts may take, in the whole instance.
    max_artifact_bytes: int | None = _from("MAX_ARTIFACT_BYTES", ge=0, le=1024 * 1024 * MIB)
    max_artifacts: int | None = _from("MAX_ARTIFACTS", ge=0, le=1_000_000)
    max_job_artifact_bytes: int | None = _from("MAX_JOB_ARTIFACT_BYTES", ge=0, le=1024 * 1024 * 1024 * MIB)

    # The HTTP API. `job_timeout_seconds` and `block_timeout_seconds` are the lease and the wait of GET-a-job requests.
    # `api_hosts`: names it is addressed by, `*` for all; unset on loopback none but localhost, elsewhere all.
    api_host: str = _from("API_HOST", default="127.0.0.1", min_length=1)
    api_hosts: list[str] | None = _from("API_HOSTS")
    api_port: int = _from("API_PORT", "PORT", default=8000, ge=0, le=65535)
    job_timeout_seconds: float = _from("JOB_TIMEOUT", "REDIS_JOB_TIMEOUT", default=30.0, gt=0, le=86_400)
    block_timeout_seconds: float = _from("BLOCK_TIMEOUT", "REDIS_BLOCK_TIMEOUT", default=5.0, ge=0, le=600)

    # Workers.
    worker_id: str | None = _from("WORKER_ID", min_length=1, max_length=200)
    worker_concurrency: int = _from("WORKER_CONCURRENCY", "ZWORKER_CONCURRENCY", default=8, ge=1, le=10_000)
    worker_processes: int = _from("WORKER_PROCESSES", default=1, ge=1, le=1000)
    queues: list[str] = _from("QUEUES", default=["default"], min_length=1)
    grace_seconds: float = _from("GRACE_SECONDS", default=30.0, ge=0, le=86_400)
    lease_seconds: float = _from("LEASE_SECONDS", "ZBRAIN_LEASE_TTL", default=30.0, ge=1, le=86_400)
    poll_interval_seconds: float = _from("POLL_INTERVAL", "ZBRAIN_POLL_INTERVAL", default=1.0, gt=0, le=3600)

    # Kind `chat`. Without LLM_PROVIDER: `openai` when a key, a base URL or an Ollama host is set, else `mock`.
    llm_provider: Literal["mock", "openai"] | None = _from("LLM_PROVIDER")
    openai_api_key: str | None = _from("OPENAI_API_KEY", secret=True)
    openai_base_url: str | None = _from("OPENAI_BASE_URL", pattern="^https?://")
    openai_model: str = _from("OPENAI_MODEL", default="gpt-4o-mini", min_length=1)
    ollama_host: str | None = _from("OLLAMA_HOST")
    ollama_model: str = _from("OLLAMA_MODEL", default="qwen2.5:0.5b", min_length=1)

    # Kind `webhook`. Secrets never come from payloads, which name one of `webhook_secrets` at most.
    webhook_secret: str | None = _from("WEBHOOK_SECRET", secret=True)
    webhook_secrets: str | None = _from("WEBHOOK_SECRETS", secret=True)
    webhook_allow_private: list[str] = _from("WEBHOOK_ALLOW_PRIVATE", default=[])
    webhook_timeout_seconds: float = _from("WEBHOOK_TIMEOUT", default=30.0, gt=0, le=600)

    # Kind `command`. Without QUEUE_PG_COMMANDS a worker runs none. A limit of 0 is none; docs/commands.md.
    commands: str | None = _from("QUEUE_PG_COMMANDS")
    command_mode: Literal["local", "docker", "custom"] = _from("COMMAND_MODE", "ZWORKER_MODE", default="local")
    command_class: str | None = _from("COMMAND_CLASS", pattern=r"^[\w.]+:[\w.]+$")
    command_temp_dir: Path | None = _from("COMMAND_TEMP_DIR", "ZWORKER_TEMP_DIR")
    command_user: str | None = _from("COMMAND_USER", min_length=1)
    command_grace_seconds: float = _from("COMMAND_GRACE_SECONDS", default=2.0, ge=0, le=60)
    command_max_log_bytes: int = _from("COMMAND_MAX_LOG_BYTES", default=10 * MIB, ge=0, le=1024 * MIB)
    command_max_log_lines: int = _from("COMMAND_MAX_LOG_LINES", default=20_000, ge=0, le=10_000_000)
    command_max_artifacts: int = _from("COMMAND_MAX_ARTIFACTS", default=100, ge=0, le=10_000)
    command_max_artifact_bytes: int = _from("COMMAND_MAX_ARTIFACT_BYTES", default=1024 * MIB, ge=0, le=2**50)
    command_max_workspace_bytes: int = _from("COMMAND_MAX_WORKSPACE_BYTES", default=4096 * MIB, ge=0, le=2**50)
    command_cpu_seconds: int = _from("COMMAND_CPU_SECONDS", default=3_600, ge=0, le=31_536_000)
    command_memory_bytes: int = _from("COMMAND_MEMORY_BYTES", default=4096 * MIB, ge=0, le=2**50)
    command_file_bytes: int = _from("COMMAND_FILE_BYTES", default=1024 * MIB, ge=0, le=2**50)
    command_open_files: int = _from("COMMAND_OPEN_FILES", default=1_024, ge=0, le=1_048_576)
    command_processes: int = _from("COMMAND_PROCESSES", default=4_096, ge=0, le=4_194_304)
    command_image: str | None = _from("COMMAND_IMAGE", pattern="^[^-]")
    command_network: str = _from("COMMAND_NETWORK", default="none", pattern="^[^-]")
    command_cpus: float = _from("COMMAND_CPUS", default=1.0, ge=0, le=10_000)

    # Metrics of workers, which listen only when there is a port (the API has /metrics), and the logs of both.
    metrics_port: int | None = _from("QUEUE_PG_METRICS_PORT", ge=0, le=65535)
    metrics_host: str = _from("QUEUE_PG_METRICS_HOST", default="127.0.0.1", min_length=1)
    log_format: Literal["text", "json"] = _from("LOG_FORMAT", default="text")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = _from("LOG_LEVEL", default="INFO")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    @property
    def instance_defaults(self) -> InstanceDefaults:
        """What these settings say for all jobs of the instance."""
        return InstanceDefaults(
            retention_seconds=self.job_ttl_seconds,
            max_attempts=self.max_attempts,
            timeout_seconds=self.default_timeout_seconds,
            max_artifact_bytes=self.max_artifact_bytes,
            max_artifacts=self.max_artifacts,
            max_job_artifact_bytes=self.max_job_artifact_bytes,
        )

    @classmethod
    def load(cls, *, env_file: Path | None = Path(".env"), **overrides: Any) -> Settings:
        """Read all settings; `overrides` (by field name) go before the environment, those that are None are ignored.

        Raises ConfigError naming the variable and the value that makes no sense.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        found = find_values(env_file)
        values: dict[str, Any] = {name: value.value for name, value in found.items()} | given
        try:
            # The sources are ours (see below), so what is passed here is all there is.
            settings = cls(**values)
        except ValidationError as error:
            raise _explain(error, found, given) from None
        origins = {name: value.origin for name, value in found.items()} | dict.fromkeys(given, "argument")
        settings._origins.update(origins)
        return settings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # pydantic-settings would let the first alias in `.env` win over the second one in the environment, and does
        # not tell where a value came from; `find_values` does both.
        return (init_settings,)

    @field_validator("database_url", "listen_database_url")
    @classmethod
    def _as_libpq_takes_it(cls, value: str | None) -> str | None:
        return None if value is None else normalise_dsn(value)

    @field_validator("queues", "webhook_allow_private", "api_hosts", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("log_format", mode="before")
    @classmethod
    def _lower_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_case(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingInForce:
    """One line of `queue-pg config`. `env` is the variable to set; `value_masked` may be shown to anybody."""

    name: str
    env: str
    value_masked: Any
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundValue:
    """A value as text, the variable it was in, and where that was: `environment NAME` or `.env NAME`."""

    value: str
    variable: str
    origin: str


def describe(settings: Settings) -> list[SettingInForce]:
    """List each setting with the value in force (passwords masked) and where it came from."""
    listed: list[SettingInForce] = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        listed.append(
            SettingInForce(
                name=name,
                env=variables(field)[0],
                value_masked=_shown(name, field, value),
                source=settings._origins.get(name, "default"),  # pyright: ignore[reportPrivateUsage]
            )
        )
    return listed


def variables(field: FieldInfo) -> list[str]:
    """Return the variables a setting is read from, its own name first."""
    return cast("dict[str, list[str]]", field.json_schema_extra)["env"]


def find_values(env_file: Path | None) -> dict[str, FoundValue]:
    """Look all settings up in the environment, then in the `.env` file; an empty value counts as none."""
    places: list[tuple[str, Mapping[str, str | None]]] = [("environment", os.environ)]
    if env_file is not None and env_file.is_file():
        try:
            places.append((env_file.name, dotenv_values(env_file)))
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{env_file} cannot be read: {error}.", hint="It must be a text file in UTF-8.") from None
    found: dict[str, FoundValue] = {}
    for name, field in Settings.model_fields.items():
        candidates = (
            FoundValue(value=value, variable=variable, origin=f"{place} {variable}")
            for place, mapping in places
            for variable in variables(field)
            if (value := (mapping.get(variable) or "").strip())
        )
        first = next(candidates, None)
        if first is not None:
            found[name] = _attempts(first) if first.variable == "ZBRAIN_MAX_RETRIES" else first
    return found


def _attempts(retries: FoundValue) -> FoundValue:
    # The first attempt is no retry.
    if not retries.value.isdigit():
        return retries
    return FoundValue(value=str(int(retries.value) + 1), variable=retries.variable, origin=retries.origin)


def _shown(name: str, field: FieldInfo, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | list):
        return cast("Any", value)
    if name in ("database_url", "listen_database_url"):
        return mask_dsn(value)
    return MASK if cast("dict[str, bool]", field.json_schema_extra)["secret"] else str(value)


def _explain(error: ValidationError, found: Mapping[str, FoundValue], given: Mapping[str, Any]) -> ConfigError:
    """Put the first complaint into a sentence with the variable's name and its value."""
    first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0])
    field = Settings.model_fields.get(name)
    if field is None:
        return ConfigError(f"There is no setting {name!r}.", setting=name)
    needed = _SUBJECT.sub("", first["msg"]).replace(" after validation, not 0", "")
    if name in given:
        return ConfigError(f"{name} = {_shown(name, field, given[name])!r} makes no sense: it {needed}.", setting=name)
    at = found[name]
    value = _shown(name, field, at.value)
    place = at.origin.rpartition(" ")[0].replace("environment", "the environment")
    return ConfigError(
        f"{at.variable}={value} makes no sense: it {needed}.",
        setting=at.variable,
        hint=f"Change or unset {at.variable} (set in {place}).",
    )
