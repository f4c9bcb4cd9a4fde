"""Which database a command talks to, and talking to it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from queue_pg.errors import ConfigError, DatabaseUnavailable, NotMigrated, QueuePgError

if TYPE_CHECKING:
    from queue_pg.client_sync import SyncQueue
    from queue_pg.settings import Settings


def load_settings(database_url: str | None = None) -> Settings:
    """Return the settings in force; the option `--database-url` wins over them."""
    from queue_pg.settings import Settings

    return Settings.load(database_url=database_url) if database_url else Settings.load()


def served_queues(settings: Settings) -> str:
    """Return the queues of workers that are to run all there is: QUEUES, else also that of subtasks."""
    queues = settings.queues
    if "queues" not in settings.model_fields_set and settings.subtask_queue not in queues:
        queues = [*queues, settings.subtask_queue]
    return ",".join(queues)


def embedded_dsn(data_dir: Path) -> str | None:
    """Return the DSN of the embedded server of `data_dir` when it runs."""
    if not data_dir.is_dir():
        return None
    from queue_pg.embedded import EmbeddedPostgres

    return EmbeddedPostgres(data_dir).running()


def find_database(settings: Settings) -> str:
    """Return the DSN in force: the configured one, else that of this folder's embedded server.

    So `queue-pg list` in a second terminal works against a running `queue-pg demo` without any setting.
    """
    if settings.database_url:
        return settings.database_url
    found = embedded_dsn(settings.data_dir)
    if found is not None:
        return found
    raise ConfigError(
        "No database: DATABASE_URL is not set and no embedded Postgres runs in this folder.",
        setting="DATABASE_URL",
        hint="Set DATABASE_URL, or start one here with: queue-pg dev",
    )


@contextmanager
def open_queue(database_url: str | None) -> Generator[SyncQueue]:
    """Open the library's client on the database in force."""
    from queue_pg.client_sync import SyncQueue

    with SyncQueue(find_database(load_settings(database_url))) as queue:
        yield queue


def understood_database_error(error: Exception) -> QueuePgError | None:
    """Return what a raw driver error means for the person who typed the command, or None for a defect."""
    import psycopg
    import psycopg_pool

    if isinstance(
        error, psycopg.errors.InvalidSchemaName | psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction
    ):
        return NotMigrated(["schema queue_pg"])
    if isinstance(error, psycopg.OperationalError | psycopg_pool.PoolTimeout):
        reason = " ".join(str(error).split())
        return DatabaseUnavailable(
            f"Postgres cannot be reached: {reason}", hint="Check DATABASE_URL; see: queue-pg doctor"
        )
    return None
