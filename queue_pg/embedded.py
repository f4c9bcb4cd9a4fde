"""A Postgres of one's own, for machines that have none: `make demo`, `queue-pg dev`, tests.

    with EmbeddedPostgres(Path(".data/postgres")) as dsn:
        ...

The data folder is kept between runs. Whoever starts it while it runs shares the one server; the last user to leave
(or to die) stops it. It listens on 127.0.0.1 only, on a free port, with a random password, so every driver, psql and
other processes can use the DSN as it is. Blocking calls: use `asyncio.to_thread` in async code.

Inside the folder: `cluster/` (Postgres's own data; for root possibly a link to where an unprivileged account may work),
`server.log`, `port`, and three lock files: `start.lock` (one starter or stopper at a time), `users.lock` (shared by the
users), `guard.lock` (held while the server's parent process lives). Locks are `flock`s, which end with their process.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType

import psycopg

from queue_pg import embedded_guard
from queue_pg.embedded_binaries import (
    Account,
    available_versions,
    child_environment,
    programs_for,
    server_account,
    shared_places,
)
from queue_pg.embedded_failure import broken_folder, folder_failure, foreign_folder, server_failure, wrong_version
from queue_pg.errors import ConfigError

logger = logging.getLogger(__name__)

DATABASE = "queue_pg"
START_SECONDS = 120.0
STOP_SECONDS = 60.0
LOG_BYTES = 10_000_000
OWN_FILES = {"cluster", "server.log", "server.log.1", "port", "start.lock", "users.lock", "guard.lock"}
INITIAL_SETTINGS = {"max_connections": "200", "timezone": "UTC", "log_timezone": "UTC", "log_checkpoints": "off"}
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
        self._user_lock: TextIOWrapper | None = None

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
        if self._user_lock is not None:
            return self._dsn()
        self._prepare_folder()
        try:
            with self._starting():
                users = (self.data_dir / "users.lock").open("a")
                try:
                    fcntl.flock(users, fcntl.LOCK_SH)
                    self._ensure_running()
                    self._ensure_database()
                except BaseException:
                    users.close()
                    raise
                self._user_lock = users
        except OSError as error:
            raise folder_failure(self.data_dir, error) from error
        return self._dsn()

    def stop(self) -> bool:
        """Leave the server; stop it when no other process uses it. Return whether it was stopped."""
        users, self._user_lock = self._user_lock, None
        if users is None:
            return False
        with users, self._starting():
            fcntl.flock(users, fcntl.LOCK_UN)
            if not _try_exclusive(users, seconds=0.1):
                return False
            self._shut_down()
            return True

    def running(self) -> str | None:
        """Return the DSN when the server runs and takes connections, without starting or joining it."""
        try:
            return self._dsn() if self._status() == "ready" else None
        except (OSError, ConfigError):
            return None

    # -- the folder ----------------------------------------------------------------------------------------------

    def _prepare_folder(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                self.data_dir.chmod(0o711)  # the server's account passes through; the password file stays closed
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

    def _initialise(self, account: Account, programs: Path, version: int) -> None:
        """Make the data under another name and rename it: a killed first start leaves nothing half made."""
        home = self.data_dir
        if not account.can_enter(self.data_dir):
            home = self._place_elsewhere(account)
        for leftover in home.glob("cluster.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        # A unique name: the initdb of a killed starter may still be writing into the old one.
        fresh = Path(tempfile.mkdtemp(prefix="cluster.new-", dir=home))
        try:
            account.owns(fresh)
            with tempfile.NamedTemporaryFile("w", prefix=".queue-pg-", dir=home) as password:
                password.write(secrets.token_hex(24))
                password.flush()
                account.owns(Path(password.name))
                done = account.run(self._initdb(programs, version, fresh, Path(password.name)), env=child_environment())
                if done.returncode != 0:
                    self.log.write_text(done.stdout)
                    raise server_failure(self.data_dir, done.stdout, log=self.log)
                kept = fresh / "queue_pg.password"
                kept.touch(mode=0o600)
                kept.write_text(Path(password.name).read_text())
                account.owns(kept)
            fresh.rename(home / "cluster")
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if home != self.data_dir:
            self.cluster.symlink_to(home / "cluster", target_is_directory=True)

    def _initdb(self, programs: Path, version: int, cluster: Path, password: Path) -> list[str]:
        command = [str(programs / "initdb"), "--pgdata", str(cluster), "--username=postgres", f"--pwfile={password}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        if version >= 17:  # Unicode rules that need no locale of the system
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        settings = dict(INITIAL_SETTINGS)
        if not self._durable:
            command += ["--no-sync"]
            settings["scram_iterations"] = "1"  # connecting is most of what a small test does
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        return command

    def _place_elsewhere(self, account: Account) -> Path:
        for place in shared_places("data"):
            if account.can_enter(place):
                home = Path(tempfile.mkdtemp(prefix=f"{self.data_dir.parent.name.lstrip('.') or 'data'}-", dir=place))
                home.chmod(0o711)
                self._notice(
                    f"Postgres cannot run as root, and the account {account.name!r} that runs it may not enter "
                    f"{self.data_dir}: its files are in {home}."
                )
                return home
        raise ConfigError(
            f"Postgres cannot run as root, and its account {account.name!r} may not enter {self.data_dir}.",
            setting="QUEUE_PG_DATA_DIR",
            hint="Name a folder that all accounts may enter, run as an ordinary user, or set DATABASE_URL.",
        )

    # -- the server ----------------------------------------------------------------------------------------------

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
            self._initialise(account, programs_for(account, versions[newest]), int(newest))
        version = self._data_version()
        if version not in versions:
            raise wrong_version(self.data_dir, version, list(versions))
        programs = programs_for(account, versions[version])
        real = self.cluster.resolve()
        if not account.can_enter(real):
            raise folder_failure(real, PermissionError(13, "Permission denied"))
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
        while True:
            port = self._choose_port()
            before = self.log.stat().st_size if self.log.exists() else 0
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
                    [sys.executable, "-I", "-S", embedded_guard.__file__, json.dumps(spec)],
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
        pid = self._live_pid()
        for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, STOP_SECONDS)):
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if not self._guarded() and self._live_pid() is None:
                    return
                time.sleep(0.01)
        logger.warning("The embedded Postgres in %s does not end (process %s).", self.data_dir, pid)

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
            return not _try_exclusive(lock, seconds=0)

    def _password(self) -> str:
        try:
            return (self.cluster / "queue_pg.password").read_text().strip()
        except FileNotFoundError:
            raise broken_folder(self.data_dir, "cluster/queue_pg.password is missing") from None

    def _dsn(self) -> str:
        lines = self._pid_file()
        if len(lines) < 4:
            raise broken_folder(self.data_dir, "cluster/postmaster.pid has no port", log=self.log)
        return f"postgresql://postgres:{self._password()}@127.0.0.1:{int(lines[3])}/{DATABASE}"

    def _ensure_database(self) -> None:
        """Create the database; every start looks, since a killed first start may have ended before it."""
        # The caller's PG* variables (PGSSLMODE, PGOPTIONS) are about other servers.
        plain = {"sslmode": "disable", "gssencmode": "disable", "options": "", "connect_timeout": 30}
        try:
            with psycopg.connect(self._dsn(), dbname="postgres", autocommit=True, **plain) as connection:  # pyright: ignore[reportArgumentType]
                found = connection.execute("select 1 from pg_database where datname = 'queue_pg'").fetchone()
                if found is None:
                    connection.execute("create database queue_pg")
        except psycopg.errors.InsufficientResources as error:
            raise server_failure(self.data_dir, str(error), log=self.log) from error
        except psycopg.Error as error:
            reason = str(error).strip().splitlines()[-1]
            raise broken_folder(self.data_dir, f"its server does not let us in: {reason}", log=self.log) from error

    def _notice(self, text: str) -> None:
        self.notices.append(text)
        logger.warning("%s", text)


def _try_exclusive(lock: TextIOWrapper, *, seconds: float) -> bool:
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
