"""Folders of running commands, one per attempt, removed afterwards; those of killed workers at the next start.

Below the folder of all workers of a user (`COMMAND_TEMP_DIR`) each worker has one, with a lock that it holds until it
dies, and in that one for each attempt. What a command has made there is not to be trusted: nothing is followed out of
it, however it is named, nested or linked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import pwd
import secrets
import socket
import stat
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from queue_pg.errors import ConfigError

log = logging.getLogger(__name__)

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ARTIFACTS, TMP = "artifacts", "tmp"
LOCK = "lock"


@dataclass(frozen=True, slots=True)
class User:
    """Whom commands run as."""

    uid: int
    gid: int


@dataclass(slots=True)
class Workspace:
    """The folder of one attempt. `descriptor` stays the folder's whatever happens to its name."""

    path: Path
    descriptor: int

    @property
    def token(self) -> str:
        """What no other attempt has in its environment."""
        return self.path.name


def find_user(given: str | None) -> User | None:
    """Return whom COMMAND_USER means: a name, `uid` or `uid:gid`. Raises ConfigError."""
    if given is None:
        return None
    name, _, group = given.partition(":")
    try:
        account = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
        found = User(account.pw_uid, int(group) if group else account.pw_gid)
    except KeyError:
        if not (name.isdigit() and group.isdigit()):
            raise _unusable_user(given, "there is no such user") from None
        found = User(int(name), int(group))
    except ValueError:
        raise _unusable_user(given, "the group must be a number") from None
    if os.geteuid() != 0 and found.uid != os.geteuid():
        raise _unusable_user(given, "only a worker that runs as root can run commands as somebody else")
    if found.uid == 0:
        raise _unusable_user(given, "commands shall not run as root by name; leave it out to run them as the worker")
    return found if os.geteuid() == 0 else None


class Workspaces:
    """The workspaces of this worker."""

    def __init__(self, folder: Path | None, user: User | None = None) -> None:
        self._user = user
        # Who may pass through to a workspace cannot list the others.
        self._mode = 0o711 if user is not None else 0o700
        self._active: set[str] = set()
        self.root = folder or Path(tempfile.gettempdir()) / f"queue-pg-commands-{os.geteuid()}"
        self._own_root()
        with self._alone():
            name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
            self.path = self.root / name
            os.mkdir(self.path, self._mode)
            os.chmod(self.path, self._mode)
            self._descriptor = os.open(self.path, FOLDER)
            self._lock = _locked(self.path / LOCK)

    def make(self) -> Workspace:
        """Make the folder of an attempt, with `artifacts` and `tmp` in it."""
        name = secrets.token_hex(16)
        self._active.add(name)
        os.mkdir(name, 0o700, dir_fd=self._descriptor)
        workspace = Workspace(self.path / name, os.open(name, FOLDER, dir_fd=self._descriptor))
        for folder in (ARTIFACTS, TMP):
            os.mkdir(folder, 0o700, dir_fd=workspace.descriptor)
            if self._user is not None:
                os.chown(folder, self._user.uid, self._user.gid, dir_fd=workspace.descriptor)
        if self._user is not None:
            os.chown(workspace.descriptor, self._user.uid, self._user.gid)
        return workspace

    def remove(self, workspace: Workspace) -> None:
        """Remove the folder of an attempt that has ended, and what the command has put beside it or in its place.

        What cannot be removed is logged, and tried again with the next one.
        """
        self._active.discard(workspace.path.name)
        try:
            empty(workspace.descriptor)
            for name in os.listdir(self._descriptor):
                if name != LOCK and name not in self._active:
                    _remove_entry(self._descriptor, name)
        except OSError as error:
            log.warning("the workspace %s could not be removed: %s", workspace.path, error)
        finally:
            os.close(workspace.descriptor)

    def close(self) -> None:
        """Remove this worker's folder; what is still in use is left to the next worker's start."""
        try:
            _remove(self.path)
        except OSError as error:
            log.warning("the folder %s could not be removed: %s", self.path, error)
        os.close(self._descriptor)
        os.close(self._lock)

    def sweep(self) -> None:
        """Remove what workers have left that are dead."""
        with self._alone():
            dead = [folder for folder in self.root.iterdir() if folder.name != LOCK and not self.is_alive(folder)]
        for folder in dead:
            log.info("removing %s, which a dead worker has left", folder)
            try:
                _remove(folder)
            except OSError as error:
                log.warning("%s could not be removed: %s", folder, error)

    def is_alive(self, folder: Path) -> bool:
        """Tell whether the worker lives that has a folder like this one's."""
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _own_root(self) -> None:
        """Make the folder of all, or see that nobody else can change what is in it."""
        try:
            self.root.mkdir(mode=self._mode, parents=True, exist_ok=True)
            found = os.lstat(self.root)
        except OSError as error:
            raise _unusable(self.root, f"cannot be made: {error.strerror}") from None
        if not stat.S_ISDIR(found.st_mode):
            raise _unusable(self.root, "is no folder")
        if found.st_uid != os.geteuid():
            raise _unusable(self.root, "belongs to somebody else")
        if found.st_mode & 0o022:
            raise _unusable(self.root, "can be written by others")
        if self._user is not None:
            os.chmod(self.root, found.st_mode | 0o111)  # noqa: S103 - to pass through, not to list

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """Keep other workers from taking a folder for a dead one's before it has its lock."""
        descriptor = _locked(self.root / LOCK)
        try:
            yield
        finally:
            os.close(descriptor)


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _remove(folder: Path) -> None:
    parent = os.open(folder.parent, FOLDER)
    try:
        _remove_entry(parent, folder.name)
    finally:
        os.close(parent)


def _remove_entry(folder: int, name: str) -> None:
    # Another attempt that ends may be removing it too.
    with contextlib.suppress(FileNotFoundError):
        try:
            child = _open_to_change(folder, name)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            os.unlink(name, dir_fd=folder)
            return
        try:
            empty(child)
        finally:
            os.close(child)
        os.rmdir(name, dir_fd=folder)


def empty(folder: int) -> None:
    """Remove all that is in a folder.

    Folders in folders are moved up and emptied there: no depth is too deep, and no more than two are open at once.
    """
    with contextlib.suppress(PermissionError):
        os.fchmod(folder, 0o700)
    while folders := _unlink_files(folder):
        for name in folders:
            child = _open_to_change(folder, name)
            try:
                for inner in _unlink_files(child):
                    os.close(_open_to_change(child, inner))
                    os.rename(inner, secrets.token_hex(16), src_dir_fd=child, dst_dir_fd=folder)
            finally:
                os.close(child)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=folder)


def _unlink_files(folder: int) -> list[str]:
    """Remove all in a folder that is no folder; return the names of those."""
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=folder)
    return folders


def _open_to_change(folder: int, name: str) -> int:
    """Open a folder that its owner may have made inaccessible even to himself."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(name, FOLDER, dir_fd=folder)
        if os.fstat(descriptor).st_mode & 0o700 != 0o700:
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, 0o700)
        return descriptor
    if hasattr(os, "O_PATH"):
        # By descriptor: the name may have become a link meanwhile.
        found = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.chmod(f"/proc/self/fd/{found}", 0o700)
        finally:
            os.close(found)
    else:
        os.chmod(name, 0o700, dir_fd=folder, follow_symlinks=False)
    return os.open(name, FOLDER, dir_fd=folder)


def used_bytes(workspace: Workspace, limit: int) -> int:
    """Return what the files of a workspace take on disk, or something above `limit` as soon as that is known."""
    total = 0
    # By descriptor, where that has a path: the command may have renamed its folder.
    below = [f"/proc/self/fd/{workspace.descriptor}" if sys.platform == "linux" else os.fspath(workspace.path)]
    while below and total <= limit:
        try:
            with os.scandir(below.pop()) as entries:
                for entry in entries:
                    # The command changes things meanwhile.
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        # An entry itself takes room too: a million empty files are not nothing.
                        total += found.st_blocks * 512 + 256
                        if stat.S_ISDIR(found.st_mode):
                            below.append(entry.path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                # Nested deeper than a path can say, so deeper than one can look.
                return limit + 1
    return total


def _unusable(folder: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"The folder of commands {folder} {reason}.",
        setting="COMMAND_TEMP_DIR",
        hint="Set COMMAND_TEMP_DIR to a folder that is the worker's alone.",
    )


def _unusable_user(given: str, reason: str) -> ConfigError:
    return ConfigError(
        f"COMMAND_USER={given} cannot be used: {reason}.",
        setting="COMMAND_USER",
        hint="Name a user of this machine, or uid:gid.",
    )
