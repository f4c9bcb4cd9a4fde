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

    Every worker can do this too, and one process at a time does: run it alone where jobs are pulled over HTTP only.
    """
    settings = load_settings(database_url)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_run(find_database(settings), settings))
    say("Stopped.")


async def _run(dsn: str, settings: Settings) -> None:
    from queue_pg.maintenance import MaintenanceLoop
    from queue_pg.wakeup import DUE, Wakeups

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    say("Maintenance runs: expired leases, due jobs, deadlines, history.")
    with Wakeups(settings.listen_database_url or dsn, (DUE,), enabled=settings.notify) as wakeups:
        await MaintenanceLoop(dsn, wakeups, defaults=settings.instance_defaults).run(stop)
