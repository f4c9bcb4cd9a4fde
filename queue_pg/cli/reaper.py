"""`reaper`: maintenance alone, for installations whose workers are all remote."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

import typer

from queue_pg.cli.connect import find_database, load_settings
from queue_pg.cli.output import DatabaseUrl, say

if TYPE_CHECKING:
    from queue_pg.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reaper")(reaper)


def reaper(database_url: DatabaseUrl = None) -> None:
    """Take back expired leases, start due jobs, drop old history; until SIGTERM or Ctrl-C.

    Every worker does this too: run it alone where jobs are pulled over HTTP only. Several at once do no harm.
    """
    settings = load_settings(database_url)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_run(find_database(settings), settings))
    say("Stopped.")


async def _run(dsn: str, settings: Settings) -> None:
    from queue_pg.maintenance import MaintenanceLoop

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    say("Maintenance runs: expired leases, due jobs, deadlines, history.")
    await MaintenanceLoop(dsn, defaults=settings.instance_defaults).run(stop)
