"""PgBouncer in transaction mode in front of a database."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

PROGRAM = os.environ.get("QUEUE_PG_TEST_PGBOUNCER") or shutil.which("pgbouncer")

CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
{extra}
"""


def pooler_version() -> str:
    """Return what is installed, such as `PgBouncer 1.18.0`."""
    if PROGRAM is None:
        return "no PgBouncer"
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]


@contextmanager
def pooled(
    dsn: str, *, connections: int = 6, extra: str = "ignore_startup_parameters = extra_float_digits"
) -> Generator[str]:
    """Give the DSN of the same database through a pooler, of so many server connections, while the block lasts."""
    server = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="queue-pg-bouncer-") as folder:
        Path(folder).chmod(0o755)  # as root, the pooler's account has to read it
        configuration = Path(folder, "pgbouncer.ini")
        configuration.write_text(
            CONFIGURATION.format(
                **{"password": "", **server, "listen": listen, "connections": connections, "extra": extra}
            )
        )
        as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen([str(PROGRAM), "-q", *as_nobody, str(configuration)], stderr=subprocess.DEVNULL)
        through = f"postgresql://{server['user']}@127.0.0.1:{listen}/{server['dbname']}"
        try:
            _until_it_answers(process, through)
            yield through
        finally:
            process.terminate()
            process.wait()


def _until_it_answers(process: subprocess.Popen[bytes], dsn: str) -> None:
    while process.poll() is None:
        with suppress(psycopg.OperationalError):
            psycopg.connect(dsn, connect_timeout=2).close()
            return
