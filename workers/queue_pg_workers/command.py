"""The command `queue-pg worker`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from queue_pg.cli.connect import find_database
from queue_pg.cli.output import DatabaseUrl
from queue_pg.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command to the command line (entry point group `queue_pg.commands`)."""
    app.command("worker")(worker)


def worker(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE[:TASKS]]", help="Module with your tasks; without it only the built-in kinds are run."
        ),
    ] = None,
    queues: Annotated[
        str | None, typer.Option("--queues", "-q", metavar="A,B", help="Queues to serve; default: QUEUES or default.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", help="Jobs at once in each process.", show_default="8")
    ] = None,
    processes: Annotated[int | None, typer.Option("--processes", "-p", help="Processes.", show_default="1")] = None,
    grace: Annotated[
        float | None,
        typer.Option(help="Seconds that running jobs get to end after SIGTERM or Ctrl-C.", show_default="30"),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart when a Python file of this folder changes.")
    ] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Claim jobs and run them, until SIGTERM or Ctrl-C; a second one hands running jobs back at once.

    Survives restarts of Postgres. Ends with code 3 when the database's schema does not fit.
    """
    settings = Settings.load(
        database_url=database_url,
        queues=queues,
        worker_concurrency=concurrency,
        worker_processes=processes,
        grace_seconds=grace,
    )
    # Imported late: `queue-pg --help` shall not wait for what only a worker needs.
    from queue_pg_workers.commands.hiding import hide_process
    from queue_pg_workers.config import from_settings, port_of
    from queue_pg_workers.main import work
    from queue_pg_workers.supervisor import supervise

    config = from_settings(settings, dsn=find_database(settings), target=target)
    if settings.worker_processes == 1 and not reload:
        raise typer.Exit(work(config))
    if settings.commands is not None:
        # Our environment is that of the processes below us.
        hide_process()
    configs = [
        replace(
            config,
            index=index if settings.worker_processes > 1 else None,
            metrics_port=port_of(settings.metrics_port, index),
        )
        for index in range(settings.worker_processes)
    ]
    raise typer.Exit(supervise(configs, reload=reload))
