"""Start, join, leave and stop the one server of a data folder."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg.conninfo import make_conninfo

from queue_pg.embedded import guard
from queue_pg.embedded.cluster import PASSWORD_FILE, make_cluster
from queue_pg.embedded.failure import broken_folder, folder_failure, foreign_folder, server_failure, wrong_version
from queue_pg.embedded.programs import (
    Account,
    available_versions,
    child_environment,
    programs_for,
    server_account,
)
from queue_pg.errors import ConfigError

logger = logging.getLogger(__name__)

DATABASE = "queue_pg"
START_SECONDS = 120.0
STOP_SECONDS = 60.0
REFUSED_SECONDS = 5.0
PATH_BYTES = 900  # Postgres allows 1,023 for its own files
LOG_BYTES = 10_000_000
OWN_FILES = {"cluster", "server.log", "server.log.1", "port", "start.lock", "users.lock", "guard.lock"}
TEST_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedPostgres:
    """One Postgres server with its data in `data_dir`, started on demand and shared by all who name that folder.

    `port` demands that port; otherwise the last one is taken again if it is free. `durable=False` trades the data's
    safety for speed and is for tests only. `notices` tells a person about unusual places in use.
    """

    def __init__(self, data_dir: Path | str, *, port: int | None = None, durable: bool = True) -> None:
        self.data_dir = Path(os.path.abspath(Path(data_dir).expanduser()))
        self.notices: list[str] = []
        self._port = port
        self._durable = durable
        self._user_lock: int | None = None
        self._joined: str | None = None

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def cluster(self) -> Path:
        """Postgres's own data folder."""
        return self.data_dir / "cluster"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.data_dir / "server.log"

    def start(self) -> str:
        """Start the server, or join the one that runs; return the DSN of its database `queue_pg`.

        Raises ConfigError, whose message says what to do, for anything the user must mend.
        """
        if self._joined is not None:
            return self._joined
        self._prepare_folder()
        try:
            with self._starting():
                # A bare descriptor: forgetting this object does not close it, so the caller stays a user until it ends.
                users = os.open(self.data_dir / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(users, fcntl.LOCK_SH)
                    self._ensure_ready()
                    self._user_lock, self._joined = users, self._dsn()
                except BaseException:
                    os.close(users)
                    raise
        except OSError as error:
            raise folder_failure(self.data_dir, error) from error
        return self._joined

    def stop(self) -> bool:
        """Leave the server; stop it when no other process uses it. Return whether it was stopped."""
        users, self._user_lock, self._joined = self._user_lock, None, None
        if users is None:
            return False
        try:
            with self._starting():
                fcntl.flock(users, fcntl.LOCK_UN)
                if not _try_exclusive(users, seconds=0.1):
                    return False
                self._shut_down()
                return True
        finally:
            os.close(users)

    def running(self) -> str | None:
        """Return the DSN when the server runs and takes connections, without starting or joining it."""
        try:
            return self._dsn() if self._status() == "ready" else None
        except (OSError, ConfigError):
            return None

    # -- the folder ----------------------------------------------------------------------------------------------

    def _prepare_folder(self) -> None:
        if len(os.fsencode(self.data_dir)) > PATH_BYTES:
            raise folder_failure(self.data_dir, OSError(errno.ENAMETOOLONG, ""))
        try:
            if not self.data_dir.exists():
                self.data_dir.mkdir(parents=True, exist_ok=True)
                # Root's server account passes through. A folder that was there keeps its permissions.
                self.data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)
            present = {entry.name for entry in self.data_dir.iterdir() if not entry.name.startswith(".")}
            foreign = sorted(name for name in present - OWN_FILES if not name.startswith("cluster.new-"))
            if foreign:
                raise foreign_folder(self.data_dir, foreign[0])
            with (self.data_dir / "start.lock").open("a"):
                pass
        except OSError as error:
            raise folder_failure(self.data_dir, error) from error

    @contextmanager
    def _starting(self) -> Generator[None]:
        """Exclude everybody else who would initialise, start or stop this server."""
        with (self.data_dir / "start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # -- the server ----------------------------------------------------------------------------------------------

    def _ensure_ready(self) -> None:
        """Have the server run and the database in it."""
        patience = time.monotonic() + REFUSED_SECONDS
        while True:
            self._ensure_running()
            try:
                return self._ensure_database()
            except psycopg.OperationalError as error:
                # A server that was killed this instant still looks ready; its guard is about to start it again.
                if time.monotonic() > patience:
                    reason = " ".join(str(error).split())
                    raise broken_folder(
                        self.data_dir, f"its server does not let us in: {reason}", log=self.log
                    ) from error
                time.sleep(0.1)

    def _ensure_running(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self._guarded() or self._live_pid() is not None:
            # Somebody's server: running, still recovering from a crash, or on its way down.
            if self._status() == "ready":
                return
            if time.monotonic() > deadline:
                raise server_failure(self.data_dir, "the server that runs there does not get ready", log=self.log)
            time.sleep(0.05)
        account = server_account(self.cluster)
        versions = available_versions()
        if self.cluster.is_symlink() and not self.cluster.exists():
            raise broken_folder(self.data_dir, f"{os.readlink(self.cluster)}, which it points to, is gone")
        if not self.cluster.exists():
            newest = max(versions, key=int)
            programs = programs_for(account, versions[newest])
            notice = make_cluster(
                self.data_dir, account=account, programs=programs, version=int(newest), durable=self._durable
            )
            if notice is not None:
                self.notices.append(notice)
                logger.warning("%s", notice)
        version = self._data_version()
        if version not in versions:
            raise wrong_version(self.data_dir, version, list(versions))
        programs = programs_for(account, versions[version])
        real = self.cluster.resolve()
        if not account.can_enter(real):
            raise folder_failure(real, PermissionError(errno.EACCES, ""))
        (real / "postmaster.pid").unlink(missing_ok=True)  # stale: its process is gone, its number may be taken
        self._launch(account, programs, deadline)

    def _data_version(self) -> str:
        try:
            return (self.cluster / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise broken_folder(self.data_dir, "cluster/PG_VERSION is missing") from None

    def _launch(self, account: Account, programs: Path, deadline: float) -> None:
        """Run the server under its guard until it takes connections; try again where trying again helps."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_name("server.log.1"))
        self.log.touch(mode=0o600)  # it quotes failed statements, thus payloads
        while True:
            port = self._choose_port()
            before = self.log.stat().st_size
            if self._try_launch(account, programs, port, deadline):
                (self.data_dir / "port").write_text(f"{port}\n")
                return
            with self.log.open("rb") as log:
                log.seek(before)
                said = log.read().decode(errors="replace")
            # Between looking and binding somebody can take the port; after `kill -9` of the server its children need a
            # moment to see it and to let go of the shared memory.
            taken = "Address already in use" in said and self._port is None
            if not (taken or "pre-existing shared memory block" in said) or time.monotonic() > deadline:
                raise server_failure(self.data_dir, said, log=self.log)
            (self.data_dir / "port").unlink(missing_ok=True)
            time.sleep(0.1)

    def _try_launch(self, account: Account, programs: Path, port: int, deadline: float) -> bool:
        settings = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
        if not self._durable:
            settings |= TEST_SETTINGS
        spec = {
            "folder": str(self.data_dir),
            "log": str(self.log),
            "command": [str(programs / "postgres"), "-D", str(self.cluster.resolve())]
            + [word for name, value in settings.items() for word in ("-c", f"{name}={value}")],
            "env": child_environment(),
            "uid": account.uid,
            "gid": account.gid,
        }
        alive, held = os.pipe()  # the guard keeps `held` open while the server runs
        try:
            with self.log.open("ab") as log:
                subprocess.run(  # noqa: S603 - this package's own script
                    [sys.executable, "-I", "-S", guard.__file__, json.dumps(spec)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    pass_fds=(held,),
                    check=True,
                )
            os.close(held)
            held = -1
            while time.monotonic() < deadline:
                if select.select([alive], [], [], 0.02)[0]:
                    return False
                if self._status() == "ready":
                    return True
            raise server_failure(self.data_dir, f"the server was not ready after {START_SECONDS:g} s", log=self.log)
        finally:
            os.close(alive)
            if held != -1:
                os.close(held)

    def _choose_port(self) -> int:
        if self._port is not None:
            if not _is_free(self._port):
                raise ConfigError(
                    f"Port {self._port}, asked for by the embedded Postgres, is in use.",
                    hint="Choose another port, or none to have a free one found.",
                )
            return self._port
        with suppress(OSError, ValueError):
            last = int((self.data_dir / "port").read_text())
            if _is_free(last):
                return last
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def _shut_down(self) -> None:
        """End the server (the caller is its last user) and wait until it and its guard are gone."""
        for number in (signal.SIGINT, signal.SIGQUIT):
            deadline = time.monotonic() + STOP_SECONDS
            told: int | None = None
            while time.monotonic() < deadline:
                pid = self._live_pid()
                if pid is None and not self._guarded():
                    return
                if pid is not None and pid != told:  # after a crash its guard may just have started another one
                    told = pid
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(0.01)
        logger.warning("The embedded Postgres in %s does not end.", self.data_dir)

    # -- what is known of the running server ---------------------------------------------------------------------

    def _pid_file(self) -> list[str]:
        """Return the lines of postmaster.pid: pid, folder, start time, port, socket folder, address, memory, status."""
        try:
            return (self.cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _status(self) -> str | None:
        lines = self._pid_file()
        return lines[7].strip() if len(lines) > 7 and self._live_pid() is not None else None

    def _live_pid(self) -> int | None:
        """Return the server's pid; a number that belongs to another process by now (crash, reboot) is no server."""
        lines = self._pid_file()
        if not lines or not lines[0].strip().isdigit():
            return None
        pid = int(lines[0])
        cluster = str(self.cluster.resolve())
        if Path("/proc/self/cwd").exists():
            with suppress(OSError):
                return pid if os.readlink(f"/proc/{pid}/cwd") == cluster else None
            return None
        command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        return pid if cluster in shown.stdout else None

    def _guarded(self) -> bool:
        with (self.data_dir / "guard.lock").open("a") as lock:
            return not _try_exclusive(lock.fileno(), seconds=0)

    def _password(self) -> str:
        try:
            return (self.cluster / PASSWORD_FILE).read_text().strip()
        except FileNotFoundError:
            raise broken_folder(self.data_dir, f"cluster/{PASSWORD_FILE} is missing") from None

    def _dsn(self) -> str:
        lines = self._pid_file()
        if len(lines) < 4:
            raise broken_folder(self.data_dir, "cluster/postmaster.pid has no port", log=self.log)
        return f"postgresql://postgres:{self._password()}@127.0.0.1:{int(lines[3])}/{DATABASE}"

    def _ensure_database(self) -> None:
        """Create the database; every start looks, since a killed first start may have ended before it."""
        # The caller's PG* variables (PGSSLMODE, PGOPTIONS) are about other servers.
        plain = make_conninfo(
            self._dsn(), dbname="postgres", sslmode="disable", gssencmode="disable", options="-c statement_timeout=60s",
            connect_timeout=30,
        )  # fmt: skip
        with psycopg.connect(plain, autocommit=True) as connection:
            found = connection.execute("select 1 from pg_database where datname = 'queue_pg'").fetchone()
            try:
                if found is None:
                    connection.execute("create database queue_pg")
            except psycopg.Error as error:
                raise server_failure(self.data_dir, f"ERROR:  {error}", log=self.log) from error


def _try_exclusive(lock: int, *, seconds: float) -> bool:
    """Take an exclusive lock if nobody holds it. The guard takes it for an instant now and then, hence `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
