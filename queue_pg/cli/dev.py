"""`dev`: Postgres, API and a worker on this machine, restarted when code changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from queue_pg.cli.output import DatabaseUrl

if TYPE_CHECKING:
    from queue_pg.cli.system import Signals, System

EXAMPLE = """submit chat '{"prompt": "Hello"}' --wait"""
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="The API's port; default: API_PORT, else 8000.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dev")(dev)


def dev(
    module: Annotated[
        str | None, typer.Argument(metavar="[MODULE:WORKER]", help="Your tasks, as for queue-pg worker.")
    ] = None,
    port: Port = None,
    reload: Annotated[bool, typer.Option(help="Restart the worker and the API when code changes.")] = True,
    database_url: DatabaseUrl = None,
) -> None:
    """Run all of queue-pg here for development: an embedded Postgres, the API and a worker.

    Nothing needs to be set up; DATABASE_URL replaces the embedded Postgres. Ctrl-C stops everything.
    """
    from queue_pg.cli.connect import load_settings, served_queues
    from queue_pg.cli.system import Interrupted, Plan, require_free_port, run_system
    from queue_pg.cli.terminal import Screen

    settings = load_settings(database_url)
    api_port = port or settings.api_port
    require_free_port(api_port, command="queue-pg dev")
    again = ["--reload"] if reload else []
    plan = Plan(
        database_url=settings.database_url,
        data_dir=settings.data_dir,
        port=api_port,
        api=["serve", "--host", "127.0.0.1", "--port", str(api_port), *again],
        workers=[
            ["worker", *([module] if module else []), "--queues", served_queues(settings), "--grace", "5", *again]
        ],
        patient_workers=reload,
    )
    screen = Screen(logs=True)

    async def work(system: System, signals: Signals) -> int:
        for line in addresses(system.url, system.dsn):
            screen.say(line)
        screen.say("Ctrl-C stops it.")
        await signals.stop.wait()
        return 0

    try:
        raise typer.Exit(asyncio.run(run_system(plan, work, say=screen.say, show=screen.show)))
    except Interrupted:
        raise typer.Exit(0) from None


def command_name() -> str:
    """Return what to type to start this command line again: it need not be on PATH, as in a checkout."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return shlex.join([sys.executable, "-m", "queue_pg.cli"])
    found = shutil.which("queue-pg")
    if started.name != "queue-pg" or (found is not None and started.exists() and os.path.samefile(found, started)):
        return "queue-pg"
    with contextlib.suppress(ValueError):
        return shlex.quote(str(started.absolute().relative_to(Path.cwd())))
    return shlex.quote(str(started.absolute()))


def addresses(url: str, dsn: str) -> list[str]:
    """Return the lines that say where everything is."""
    return [
        f"API        {url}/docs",
        f"Postgres   psql '{dsn}'",
        f"Try        {command_name()} {EXAMPLE}     (in another terminal, same folder)",
    ]
