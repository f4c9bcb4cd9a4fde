"""Turn what can go wrong with an embedded server into one sentence that says what to do."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from queue_pg.errors import ConfigError

ELSEWHERE = "set QUEUE_PG_DATA_DIR to another folder, or DATABASE_URL to a Postgres you run"
_SEVERITY = re.compile(r"(?:^|\s)(?:FATAL|PANIC|ERROR|initdb: error):\s+(.*)")


def folder_failure(data_dir: Path, error: OSError) -> ConfigError:
    """Explain why the data folder could not be made or written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(data_dir)
    reasons = {
        errno.EACCES: "it is not writable for this user",
        errno.EPERM: "it is not writable for this user",
        errno.EROFS: "it is on a read-only file system",
        errno.ENOTDIR: "part of its path is a file",
        errno.EEXIST: "a file is in its place",
        errno.ENAMETOOLONG: "its path is too long",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return ConfigError(
        f"The embedded Postgres cannot keep its data in {data_dir}: {reason}.",
        setting="QUEUE_PG_DATA_DIR",
        hint=f"Make the folder writable, {ELSEWHERE}.",
    )


def disk_full(data_dir: Path) -> ConfigError:
    """Say that the disk is full."""
    return ConfigError(
        f"No space is left for the embedded Postgres in {data_dir}.",
        setting="QUEUE_PG_DATA_DIR",
        hint=f"Free some space there, {ELSEWHERE}.",
    )


def foreign_folder(data_dir: Path, found: str) -> ConfigError:
    """Say that the folder holds something else, which is left alone."""
    return ConfigError(
        f"{data_dir} is not a data folder of queue-pg: it holds {found!r}.",
        setting="QUEUE_PG_DATA_DIR",
        hint=f"Name an empty or new folder: {ELSEWHERE}.",
    )


def broken_folder(data_dir: Path, reason: str, *, log: Path | None = None) -> ConfigError:
    """Say that the stored data cannot be used, and how to start afresh without deleting anything."""
    more = f" Details: {log}" if log is not None else ""
    return ConfigError(
        f"The data folder {data_dir} is broken: {reason}.",
        setting="QUEUE_PG_DATA_DIR",
        hint=f"Restore it from a backup, or start afresh: mv '{data_dir}' '{data_dir}.broken'.{more}",
    )


def wrong_version(data_dir: Path, found: str, available: list[str]) -> ConfigError:
    """Say that another major version of Postgres made the data."""
    return ConfigError(
        f"The data folder {data_dir} was made by PostgreSQL {found}; installed is {' and '.join(sorted(available))}.",
        setting="QUEUE_PG_DATA_DIR",
        hint=f"Install the version that made it, or start afresh: mv '{data_dir}' '{data_dir}.pg{found}'.",
    )


def server_failure(data_dir: Path, said: str, *, log: Path) -> ConfigError:
    """Explain what the server (or initdb) said before it gave up."""
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return disk_full(data_dir)
    if re.search(r"could not look up effective user ID (\d+)", said):
        return ConfigError(
            "The embedded Postgres needs an account with a name, and this user has none in the password database.",
            hint="Run as a user that has one, or set DATABASE_URL to a Postgres you run.",
        )
    if re.search(r"could not (create|resize) shared memory|could not map anonymous shared memory", said):
        return ConfigError(
            "The embedded Postgres gets no shared memory from this machine.",
            hint="Give the machine or container more memory, or set DATABASE_URL to a Postgres you run.",
        )
    reasons = [found.group(1) for line in said.splitlines() if (found := _SEVERITY.search(line))]
    if re.search(r"has (wrong ownership|invalid permissions|group or world access)|Permission denied", said):
        return ConfigError(
            f"The embedded Postgres may not use its files in {data_dir}: {_sentence(reasons, said)}.",
            setting="QUEUE_PG_DATA_DIR",
            hint=f"Give the folder back to the user who made it, {ELSEWHERE}. Details: {log}",
        )
    return broken_folder(data_dir, _sentence(reasons, said), log=log)


def _sentence(reasons: list[str], said: str) -> str:
    # The first reason is the cause; later lines (startup process ended, shutting down) follow from it.
    lines = reasons[:1] or [line for line in said.strip().splitlines()[-1:] if line]
    return lines[0].rstrip(" .") if lines else "the server ended without a word"
