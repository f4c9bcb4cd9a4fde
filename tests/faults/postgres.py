"""A Postgres of a run's own, durable, that can be killed, kept down and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks import proc
from queue_pg.embedded.cluster import PASSWORD_FILE, make_cluster
from queue_pg.embedded.programs import available_versions, child_environment, programs_for, server_account
from tests.faults import leftovers

# Another Postgres than the embedded one, such as /usr/lib/postgresql/15.
CHOICE: Final = os.environ.get("QUEUE_PG_FAULTS_POSTGRES", "")
START_SECONDS: Final = 60.0
LATER_SECONDS: Final = 0.02
# Not what a test of correctness is about: no waiting for disks that nobody pulls the plug of. A killed server loses
# nothing that was written, flushed or not; what would be lost with `synchronous_commit` off was never written.
SETTINGS: Final = {
    "max_connections": "200",
    "max_wal_size": "1GB",
    "restart_after_crash": "on",
    "log_min_messages": "warning",
    "deadlock_timeout": "100ms",
}


def installed() -> tuple[str, Path]:
    """Return which Postgres runs are made with, by its major version and the folder of its `bin`."""
    if not CHOICE:
        return max(available_versions().items(), key=lambda item: int(item[0]))
    said = subprocess.run([Path(CHOICE, "bin", "postgres"), "--version"], capture_output=True, text=True, check=True)
    return said.stdout.partition(") ")[2].partition(".")[0], Path(CHOICE)


def too_old_for_small_notify_queues() -> str | None:
    """Whether the queue of notifications cannot be made small."""
    version, _ = installed()
    return None if int(version) >= 17 else f"max_notify_queue_pages came after PostgreSQL {version}"


class Postgres:
    """The server of one run, with its data in `folder`."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        primary: Postgres | None = None,
        through: str | None = None,
    ) -> None:
        self.folder = folder
        self.kills = 0
        self._settings = {**SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        version, home = installed()
        self.version = version
        self._account = server_account(folder / "cluster")
        self._programs = Path(CHOICE, "bin") if CHOICE else programs_for(self._account, home)
        folder.mkdir(parents=True, exist_ok=True)
        if primary is None:
            make_cluster(folder, account=self._account, programs=self._programs, version=int(version), durable=True)
        else:
            self._copy(primary, through or primary.dsn)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    @property
    def port(self) -> int:
        """Where it listens, on this machine."""
        return int(self._port)

    @property
    def data(self) -> Path:
        """Where its data are."""
        return (self.folder / "cluster").resolve()

    @property
    def dsn(self) -> str:
        """Where it is, and stays."""
        password = (self.folder / "cluster" / PASSWORD_FILE).read_text().strip()
        return f"postgresql://postgres:{password}@127.0.0.1:{self._port}/postgres"

    def _copy(self, primary: Postgres, through: str) -> None:
        """Become a standby of a server that runs, and follow it at the address `through`."""
        original = primary.data
        # Beside it, where the account may go; a standby's standby has no longer name than the first.
        data = original.with_name(f"{original.name.partition('-standby-')[0]}-{self.folder.name}")
        data.mkdir(mode=0o700)
        self._account = primary._account
        self._account.owns(data)
        command = [str(self._programs / "pg_basebackup"), "--pgdata", str(data), "--write-recovery-conf"]
        done = self._account.run([*command, "--checkpoint=fast", "--dbname", through], env=child_environment())
        if done.returncode != 0:
            raise RuntimeError(f"pg_basebackup: {done.stdout}")
        (self.folder / "cluster").symlink_to(data, target_is_directory=True)

    def program(self, name: str) -> str:
        """Return where a program of this server's version is."""
        return str(self._programs / name)

    def start(self) -> None:
        """Start it and wait until it takes connections; one that starts already is waited for."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self._process is None or self._process.poll() is not None:
                self._launch()
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.dsn, connect_timeout=5).close()
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server does not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def starts(self) -> bool:
        """Start it once; return whether it takes connections, and does not give up instead."""
        if self._process is None or self._process.poll() is not None:
            self._launch()
        deadline = time.monotonic() + START_SECONDS
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.dsn, connect_timeout=5).close()
                return True
            time.sleep(0.05)
        return False

    def kill(self, *, last: int | None = None) -> None:
        """Kill it and all its children at once, as losing power does to processes; `last`, a child, a little later."""
        if self._process is None:
            return
        # Else it ends its other children in an orderly way, when there are some left.
        os.kill(self._process.pid, signal.SIGSTOP)
        everybody = [one.pid for one in proc.tree(self._process.pid)]
        parent = self._process.pid
        for pid in sorted(everybody, key=lambda pid: (pid == parent, pid == last)):
            if pid == last:
                time.sleep(LATER_SECONDS)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self.kills += 1

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGTERM smart, SIGINT fast, SIGQUIT immediate."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def demote(self) -> None:
        """Have it be a standby of nobody when it is started next."""
        (self.folder / "cluster" / "standby.signal").touch()

    def remove(self) -> None:
        """End it and leave nothing of its data."""
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)

    def execute(self, statement: str, parameters: Any = None) -> Sequence[tuple[Any, ...]]:
        """Run one statement on a connection of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def _launch(self) -> None:
        settings = {"listen_addresses": "127.0.0.1", "port": str(self._port), "unix_socket_directories": ""}
        command = [str(self._programs / "postgres"), "-D", str(self.data)]
        for name, value in (settings | self._settings).items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**child_environment(), **leftovers.handed_on()},
                user=self._account.uid,
                group=self._account.gid,
                extra_groups=None if self._account.uid is None else [],
                start_new_session=True,
            )
