"""What one worker process is told."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass, field

from queue_pg.errors import ConfigError
from queue_pg.logs import LogFormat
from queue_pg.models import InstanceDefaults
from queue_pg.settings import Settings
from queue_pg_workers.commands.settings import CommandSettings
from queue_pg_workers.providers.choice import ProviderSettings
from queue_pg_workers.webhooks.sender import WebhookSettings

MAX_POLL_SECONDS = 1.0
MAX_PORT = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """One process. `target` is `module` or `module:attribute`, None for the built-in kinds only.

    `listen_dsn` is for LISTEN alone, None the same as `dsn`. `lease_seconds` None means the queue's own lease; `index`
    tells the processes of one command apart.
    """

    dsn: str
    listen_dsn: str | None = None
    target: str | None = None
    queues: tuple[str, ...] = ("default",)
    concurrency: int = 8
    grace_seconds: float = 30.0
    lease_seconds: float | None = None
    poll_seconds: float = MAX_POLL_SECONDS
    notify: bool = True
    maintenance: bool = True
    worker_id: str | None = None
    index: int | None = None
    log_level: str = "INFO"
    log_format: LogFormat = "text"
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    provider: ProviderSettings = field(default_factory=ProviderSettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    commands: CommandSettings = field(default_factory=CommandSettings)
    defaults: InstanceDefaults = field(default_factory=InstanceDefaults)

    def identity(self) -> str:
        """Return the id of this process's row in `queue_pg.workers`."""
        if self.worker_id is None:
            return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        return self.worker_id if self.index is None else f"{self.worker_id}-{self.index}"


def from_settings(settings: Settings, *, dsn: str, target: str | None) -> WorkerConfig:
    """Return the configuration that settings (command line included) ask for."""
    return WorkerConfig(
        dsn=dsn,
        listen_dsn=settings.listen_database_url,
        target=target,
        queues=tuple(settings.queues),
        concurrency=settings.worker_concurrency,
        grace_seconds=settings.grace_seconds,
        # Only when somebody said so: a lease given to the claim overrides the one set for the queue.
        lease_seconds=settings.lease_seconds if "lease_seconds" in settings.model_fields_set else None,
        # Longer than a second would break the promise on pick-up latency when notifications are off.
        poll_seconds=min(settings.poll_interval_seconds, MAX_POLL_SECONDS),
        notify=settings.notify,
        worker_id=settings.worker_id,
        log_level=settings.log_level,
        log_format=settings.log_format,
        metrics_host=settings.metrics_host,
        metrics_port=settings.metrics_port,
        defaults=settings.instance_defaults,
        provider=ProviderSettings(
            provider=settings.llm_provider,
            openai_api_key=settings.openai_api_key,
            openai_base_url=settings.openai_base_url,
            openai_model=settings.openai_model,
            ollama_host=settings.ollama_host,
            ollama_model=settings.ollama_model,
        ),
        webhooks=WebhookSettings(
            secret=settings.webhook_secret,
            secrets=settings.webhook_secrets,
            allow_private=tuple(settings.webhook_allow_private),
            timeout_seconds=settings.webhook_timeout_seconds,
        ),
        commands=CommandSettings(
            commands=settings.commands,
            mode=settings.command_mode,
            mode_class=settings.command_class,
            temp_dir=None if settings.command_temp_dir is None else str(settings.command_temp_dir.absolute()),
            user=settings.command_user,
            grace_seconds=settings.command_grace_seconds,
            max_log_bytes=settings.command_max_log_bytes,
            max_log_lines=settings.command_max_log_lines,
            max_artifacts=settings.command_max_artifacts,
            max_artifact_bytes=settings.command_max_artifact_bytes,
            max_workspace_bytes=settings.command_max_workspace_bytes,
            cpu_seconds=settings.command_cpu_seconds,
            memory_bytes=settings.command_memory_bytes,
            file_bytes=settings.command_file_bytes,
            open_files=settings.command_open_files,
            processes=settings.command_processes,
            image=settings.command_image,
            network=settings.command_network,
            cpus=settings.command_cpus,
        ),
    )


def port_of(first: int | None, index: int) -> int | None:
    """Return the port for the metrics of the process with this index: each has its own. Port 0 is any free one."""
    if not first:
        return first
    if first + index > MAX_PORT:
        raise ConfigError(
            f"QUEUE_PG_METRICS_PORT={first} leaves no port for the metrics of process {index}.",
            setting="QUEUE_PG_METRICS_PORT",
            hint="Each process takes the next port: choose a lower one.",
        )
    return first + index
