"""What happened, by three witnesses: who submitted, who ran, and a trigger that the logic under test does not know.

The first two are files that outlive whoever writes them. A line is written whole or not at all, and a producer's is on
disk before it goes on.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psycopg

EDGES_SQL: Final = Path(__file__).with_name("edges.sql")
ACKED, FAILED, UNKNOWN = "acked", "failed", "unknown"
# An application that retries on its own has one number for all its tries.
WORDS: Final = (ACKED, FAILED, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Submission:
    """How a submission ended for the one who made it. `number` is in the job's payload; `id` only of those acked, and
    not even then if nobody asked for it."""

    number: int
    word: str
    id: str | None = None
    # Those with the same group were submitted by one call.
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One execution: a handler began with this lease. `end_ns` is None when it never got to its end; `left_ns` is
    when it was stopped or failed, where somebody has seen that."""

    number: int
    job: str
    token: int
    pid: int
    begin_ns: int
    end_ns: int | None
    left_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """One change of a job's row; see edges.sql. Times are the server's, in seconds."""

    seq: int
    at: float
    xid: int
    job: str
    what: str
    before: str | None
    after: str | None
    token: int
    losses: int
    worker: str | None
    lease_before: float | None
    lease_after: float | None


@dataclass(frozen=True, slots=True)
class Stored:
    """A job's row at the end, live or finished. `told` is the lease that its result names."""

    id: str
    number: int | None
    state: str
    token: int
    losses: int
    told: int | None
    unique_key: str | None
    live: bool
    kind: str | None = None


class LineFile:
    """Appends lines; `durable` ones are on disk when `write` returns."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._durable = durable
        self._lock = threading.Lock()

    def write(self, *words: Any) -> None:
        """Append one line of JSON."""
        line = json.dumps(words).encode() + b"\n"
        with self._lock:
            os.write(self._file, line)
            if self._durable:
                os.fdatasync(self._file)

    def write_all(self, lines: Iterable[Sequence[Any]]) -> None:
        """Append a line for each; all are on disk when this returns."""
        text = b"".join(json.dumps(words).encode() + b"\n" for words in lines)
        with self._lock:
            while text:
                text = text[os.write(self._file, text) :]
            if self._durable:
                os.fdatasync(self._file)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def read_lines(path: Path) -> Iterator[list[Any]]:
    """Return the lines of one file; one that was cut off by a crash of the machine is none."""
    if path.exists():
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield json.loads(line)


def read_submissions(folder: Path) -> list[Submission]:
    """Return what producers have written; for a number that was tried again, how it ended at last."""
    last: dict[int, Submission] = {}
    for path in sorted(folder.glob("submissions-*.jsonl")):
        for number, word, job, *group in read_lines(path):
            last[number] = Submission(number, word, job, *group)
    return list(last.values())


def read_runs(folder: Path) -> list[Run]:
    """Return what handlers have written, each execution once."""
    runs: list[Run] = []
    for path in sorted(folder.glob("effects-*.jsonl")):
        begun: dict[tuple[str, int], int] = {}
        for word, number, job, token, pid, nanoseconds in read_lines(path):
            if word == "begin":
                begun[job, token] = len(runs)
                runs.append(Run(number, job, token, pid, nanoseconds, None))
            else:
                index = begun[job, token]
                runs[index] = replace(runs[index], end_ns=nanoseconds)
    return sorted(runs, key=lambda run: run.begin_ns)


def install(dsn: str) -> None:
    """Add the trigger that writes the edges."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(EDGES_SQL.read_bytes())


def read_edges(connection: psycopg.Connection[Any]) -> list[Edge]:
    """Return all edges; those of one job come in their true order, for its row was locked."""
    rows = connection.execute(
        "select seq, extract(epoch from at)::float8, xid::text::bigint, job::text, what, before, after, token, losses,"
        " worker, extract(epoch from lease_before)::float8, extract(epoch from lease_after)::float8"
        " from faults.edges order by seq"
    )
    # One string for each name: there may be millions of edges.
    names: dict[str, str] = {}

    def once(value: Any) -> Any:
        return names.setdefault(value, value) if isinstance(value, str) else value

    return [Edge(*map(once, row)) for row in rows]


def read_stored(connection: psycopg.Connection[Any]) -> list[Stored]:
    """Return all jobs there are."""
    rows = connection.execute(
        "select id::text, coalesce(payload ->> 'n', payload -> 'env' ->> 'N')::bigint, state::text,"
        " lease_token, lease_losses,"
        " case when jsonb_typeof(result) = 'object' then (result ->> 'token')::bigint end, unique_key, live, kind"
        " from (select id, payload, state, lease_token, lease_losses, null::jsonb as result, unique_key, true as live,"
        " kind from queue_pg.jobs"
        " union all select id, payload, state, lease_token, lease_losses, result, unique_key, false, kind"
        " from queue_pg.finished_jobs) j"
    )
    return [Stored(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All three ledgers of a run, and the rows that it left."""

    submissions: Sequence[Submission]
    runs: Sequence[Run]
    edges: Sequence[Edge]
    stored: Sequence[Stored]


def read_evidence(folder: Path, dsn: str) -> Evidence:
    """Return what is known of a run that has come to rest."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return Evidence(read_submissions(folder), read_runs(folder), read_edges(connection), read_stored(connection))
