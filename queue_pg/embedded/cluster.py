"""Make the data of a new server, whole or not at all."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path

from queue_pg.embedded.failure import server_failure
from queue_pg.embedded.programs import Account, child_environment, shared_places
from queue_pg.errors import ConfigError

PASSWORD_FILE = "queue_pg.password"  # noqa: S105 - the name of a file
SETTINGS = {"max_connections": "200", "timezone": "UTC", "log_timezone": "UTC", "log_checkpoints": "off"}


def make_cluster(data_dir: Path, *, account: Account, programs: Path, version: int, durable: bool) -> str | None:
    """Make `data_dir/cluster`, under another name first: a killed start leaves nothing half made behind.

    Return a notice for people when the files had to go elsewhere, with `cluster` a link to them.
    """
    home = data_dir if account.can_enter(data_dir) else _place_elsewhere(data_dir, account)
    for leftover in home.glob("cluster.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    # A unique name: the initdb of a killed starter may still be writing into the old one.
    fresh = Path(tempfile.mkdtemp(prefix="cluster.new-", dir=home))
    try:
        account.owns(fresh)
        password = secrets.token_hex(24)
        with tempfile.NamedTemporaryFile("w", prefix=".queue-pg-", dir=home) as file:
            file.write(password)
            file.flush()
            account.owns(Path(file.name))
            command = _initdb(programs, version=version, cluster=fresh, password_file=file.name, durable=durable)
            done = account.run(command, env=child_environment())
        if done.returncode != 0:
            log = data_dir / "server.log"
            log.touch(mode=0o600)
            log.write_text(done.stdout)
            raise server_failure(data_dir, done.stdout, log=log)
        kept = fresh / PASSWORD_FILE
        kept.touch(mode=0o600)
        kept.write_text(password)
        account.owns(kept)
        fresh.rename(home / "cluster")
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if home == data_dir:
        return None
    (data_dir / "cluster").symlink_to(home / "cluster", target_is_directory=True)
    return (
        f"Postgres cannot run as root, and the account {account.name!r} that runs it may not enter {data_dir}: "
        f"its files are in {home}."
    )


def _initdb(programs: Path, *, version: int, cluster: Path, password_file: str, durable: bool) -> list[str]:
    command = [str(programs / "initdb"), "--pgdata", str(cluster), "--username=postgres", f"--pwfile={password_file}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    if version >= 17:  # Unicode rules that need no locale of the system
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    settings = dict(SETTINGS)
    if not durable:
        command += ["--no-sync", "--wal-segsize=1"]
        # Connecting is most of what a small test does.
        settings |= {"scram_iterations": "1", "max_wal_size": "1GB", "min_wal_size": "16MB"}
    # Older ones, which only tests take, know of no such option.
    for name, value in settings.items() if version >= 16 else ():
        command += ["--set", f"{name}={value}"]
    return command


def _place_elsewhere(data_dir: Path, account: Account) -> Path:
    for place in shared_places("data"):
        if account.can_enter(place):
            # A random name, so that a folder that was deleted and made again does not find its old data.
            home = Path(tempfile.mkdtemp(prefix="postgres-", dir=place))
            home.chmod(0o711)
            return home
    raise ConfigError(
        f"Postgres cannot run as root, and its account {account.name!r} may not enter {data_dir}.",
        setting="QUEUE_PG_DATA_DIR",
        hint="Name a folder that all accounts may enter, run as an ordinary user, or set DATABASE_URL.",
    )
