"""`queue-pg serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from queue_pg.cli.connect import find_database
from queue_pg.cli.output import DatabaseUrl, say
from queue_pg.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: API_HOST, else 127.0.0.1.", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; default: API_PORT or PORT, else 8000.", show_default=False)
    ] = None,
    reload: Annotated[bool, typer.Option(help="Restart when code changes.")] = False,
    access_log: Annotated[bool, typer.Option(help="Log every request.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Serve the HTTP API until SIGTERM or Ctrl-C.

    Starts and stays up while the database is away, and answers 503 until it is back.
    """
    # Imported here: --help of another command needs no web server.
    from queue_pg.tracing import configure_from_environment
    from queue_pg_api.hosts import LOOPBACK_HOSTS, served_app
    from queue_pg_api.server import configure, listen, run

    settings = Settings.load(api_host=host, api_port=port, database_url=database_url)
    settings = settings.model_copy(update={"database_url": find_database(settings)})
    configure_from_environment("queue-pg-api")
    listener = listen(settings.api_host, settings.api_port)
    with listener:
        name, bound_port = listener.getsockname()[:2]
        if reload:
            # The child makes the application anew from its settings after each change.
            os.environ["DATABASE_URL"] = settings.database_url or ""
            os.environ["API_HOST"] = settings.api_host
        config = configure(
            "queue_pg_api.hosts:served_app" if reload else served_app(settings),
            host=settings.api_host,
            port=bound_port,
            log_level=settings.log_level,
            log_format=settings.log_format,
            access_log=access_log,
            reload=reload,
        )
        shown = f"[{name}]" if ":" in name else name
        say(f"API on http://{shown}:{bound_port}, its description on http://{shown}:{bound_port}/docs")
        if settings.api_host not in LOOPBACK_HOSTS:
            say("warning: Everybody who reaches this address can submit, read and cancel jobs: there are no keys yet.")
        run(config, listener)
    say("Stopped.")
