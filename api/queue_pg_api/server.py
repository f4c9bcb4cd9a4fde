"""uvicorn, started so that it stops: long-polls end as soon as the process is asked to, not one wait later."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import ChangeReload

from queue_pg.errors import ConfigError
from queue_pg.logs import LogFormat
from queue_pg_api.app import STATE_KEY
from queue_pg_api.following import ABORT_KEY

# Requests that are under way when the process is asked to stop have this long; waits end at once.
GRACEFUL_SECONDS = 5
# Of one line or header block that has not ended yet.
MAX_HEADER_BYTES = 64 * 1024
BACKLOG = 2048
# Of one message of a WebSocket's client.
MAX_MESSAGE_BYTES = 64 * 1024


class Protocol(H11Protocol):
    """Leaves the means to break its connection to streams whose client does not read (following.py)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT_KEY: transport.abort}


class Server(uvicorn.Server):
    """Ends the waits of the service before it waits for requests, and exits 0 after SIGTERM and Ctrl-C."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = self.lifespan.state.get(STATE_KEY)
        if service is not None:
            service.stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own records the signal and dies of it at the end; a second one of any sort is to be obeyed at once.
        del sig, frame
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def configure(
    app: Any,
    *,
    host: str,
    port: int,
    log_level: str,
    access_log: bool,
    reload: bool,
    log_format: LogFormat = "text",
) -> uvicorn.Config:
    """Return the configuration; `app` is the application, or with `reload` the name of its factory."""
    return uvicorn.Config(
        app,
        factory=reload,
        host=host,
        port=port,
        lifespan="on",
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        log_config=_logging(log_level, log_format, access_log=access_log),
        access_log=access_log,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        # The other parser that uvicorn would take if it is installed does not bound headers.
        http=Protocol,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        reload=reload,
        reload_dirs=[str(Path(__file__).parent), str(Path.cwd())] if reload else None,
        reload_includes=["*.py"] if reload else None,
        reload_excludes=_hidden_folders(Path.cwd()) if reload else None,
    )


def _hidden_folders(folder: Path) -> list[str]:
    """Return the folders that hold no code of the person who edits: .venv, .data, .git."""
    return [str(entry) for entry in folder.iterdir() if entry.name.startswith(".") and entry.is_dir()]


def run(config: uvicorn.Config, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one ends it without waiting for requests."""
    server = Server(config)
    if config.should_reload:
        ChangeReload(config, target=server.run, sockets=[listener]).run()
    else:
        server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Bind and return the listening socket; ConfigError says what to do when that fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it on, head and body of an answer
    # are two packets, and the second waits 40 ms for a delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # From here on nobody else can bind it, and connections wait in line while the application starts.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _refusal(error, host, port) from None
    listener.set_inheritable(True)
    return listener


def _refusal(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"Port {port} on {host} is in use.",
            setting="API_PORT",
            hint=f"Stop what uses it, or choose another one: --port {port + 1 if port < 65_535 else 8000}",
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"Port {port} needs root.", setting="API_PORT", hint="Choose one above 1023: --port 8000")
    reason = error.strerror or str(error)
    return ConfigError(
        f"Cannot listen on {host!r}: {reason}.",
        setting="API_HOST",
        hint="Give an address of this machine: 127.0.0.1 for itself alone, 0.0.0.0 for all its networks.",
    )


def _logging(level: str, log_format: LogFormat, *, access_log: bool) -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": "queue_pg.logs.formatter", "log_format": log_format}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            "uvicorn.error": {"level": "WARNING"},
            "uvicorn.access": {"level": "INFO" if access_log else "CRITICAL"},
            # It reports every attempt to reconnect; the library's own loggers tell of an outage once.
            "psycopg.pool": {"level": "ERROR"},
            # With --reload it reports each change of any file, its own log's too; uvicorn says which ones count.
            "watchfiles": {"level": "WARNING"},
        },
    }
