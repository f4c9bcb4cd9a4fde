"""Generate the blocking twins of the library's async modules, so that each thing is written once.

    python tools/async_to_sync.py            write queue_pg/*_sync.py
    python tools/async_to_sync.py --check    exit 1 and name the files that are not current

Names are replaced token by token; comments and layout stay. Strings change only in docstrings.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "store", "schedule_store", "batch_store", "artifact_store", "step_store", "pool", "waiting", "feed", "pulling",
    "reading", "scheduling", "stepping", "batching", "artifacts", "templating", "planning", "limit_store",
    "limiting", "action_store", "acting", "scaling", "bulk", "client",
)  # fmt: skip
TWINS = {f"{name}.py": f"{name}_sync.py" for name in MODULES}
NAMES = {
    "AsyncActing": "SyncActing",
    "AsyncArtifactReader": "SyncArtifactReader",
    "AsyncArtifacts": "SyncArtifacts",
    "AsyncBackground": "SyncBackground",
    "AsyncBatch": "SyncBatch",
    "AsyncBatching": "SyncBatching",
    "AsyncBulk": "SyncBulk",
    "AsyncCalls": "SyncCalls",
    "AsyncConnection": "Connection",
    "AsyncConnectionPool": "ConnectionPool",
    "AsyncCopy": "Copy",
    "AsyncCursor": "Cursor",
    "AsyncExitStack": "ExitStack",
    "AsyncGenerator": "Generator",
    "AbstractAsyncContextManager": "AbstractContextManager",
    "AsyncLimiting": "SyncLimiting",
    "AsyncPlanning": "SyncPlanning",
    "AsyncPool": "SyncPool",
    "AsyncPulling": "SyncPulling",
    "AsyncReading": "SyncReading",
    "AsyncScheduling": "SyncScheduling",
    "AsyncQueueCalls": "SyncQueueCalls",
    "AsyncScaling": "SyncScaling",
    "AsyncSignal": "SyncSignal",
    "AsyncSlots": "SyncSlots",
    "AsyncStepping": "SyncStepping",
    "Content": "BlockingContent",
    "AsyncTemplating": "SyncTemplating",
    "Queue": "SyncQueue",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "aclose": "close",
    "acting": "acting_sync",
    "aclosing": "closing",
    "asynccontextmanager": "contextmanager",
    "batching": "batching_sync",
    "chunks_async": "chunks_sync",
    "chunks_of_async": "chunks_of_sync",
    "connect_async": "connect",
    "each_async": "each_sync",
    "enter_async_context": "enter_context",
    "feed": "feed_sync",
    "fetch_async": "fetch_sync",
    "limiting": "limiting_sync",
    "planning": "planning_sync",
    "pulling": "pulling_sync",
    "reading": "reading_sync",
    "scaling": "scaling_sync",
    "scheduling": "scheduling_sync",
    "saving_async": "saving_sync",
    "upload_async": "upload_sync",
    "stepping": "stepping_sync",
    "templating": "templating_sync",
    "waiting": "waiting_sync",
}
HEADER = """# Generated from {source} by tools/async_to_sync.py; change that file and run the tool.
# fmt: off
# ruff: noqa: E501, I001, RUF100, SIM117
"""
# Whole lines for which replacing names does not do: (before, after), both in terms of the source's text.
LINES = {
    "from queue_pg.pool import AsyncPool, lend": "from queue_pg.pool_sync import SyncPool, lend",
    "NewJobs = Iterable[NewJob] | AsyncIterable[NewJob]": "NewJobs = Iterable[NewJob]",
    "from collections.abc import AsyncGenerator, AsyncIterable, Collection, Iterable, Mapping, Sequence": (
        "from collections.abc import Collection, Generator, Iterable, Mapping, Sequence"
    ),
    "from queue_pg.bulk import AsyncBulk": "from queue_pg.bulk_sync import SyncBulk",
    "from queue_pg import arguments, artifact_store": (
        "from queue_pg import arguments, artifact_store_sync as artifact_store"
    ),
    "from queue_pg.artifacts import AsyncArtifacts": "from queue_pg.artifacts_sync import SyncArtifacts",
    "from queue_pg import callers, store": "from queue_pg import callers, store_sync as store",
    "from queue_pg import arguments, batch_store, callbacks": (
        "from queue_pg import arguments, callbacks\nfrom queue_pg import batch_store_sync as batch_store"
    ),
    "Bite = Callable[[AsyncConnection[Any], UUID | None], Awaitable[tuple[int, UUID | None] | None]]": (
        "Bite = Callable[[AsyncConnection[Any], UUID | None], tuple[int, UUID | None] | None]"
    ),
    "from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping": (
        "from collections.abc import Callable, Iterable, Mapping"
    ),
    "from queue_pg import arguments, store": "from queue_pg import arguments, store_sync as store",
    "from queue_pg import action_store, arguments": (
        "from queue_pg import action_store_sync as action_store\nfrom queue_pg import arguments"
    ),
    "from queue_pg import arguments, limit_store": (
        "from queue_pg import arguments\nfrom queue_pg import limit_store_sync as limit_store"
    ),
    "from queue_pg import arguments, schedule_store": (
        "from queue_pg import arguments, schedule_store_sync as schedule_store"
    ),
    "from queue_pg import arguments, step_store, store": (
        "from queue_pg import arguments, step_store_sync as step_store, store_sync as store"
    ),
    "from queue_pg import arguments, step_store": "from queue_pg import arguments, step_store_sync as step_store",
    "States = Callable[[list[UUID]], Awaitable[dict[UUID, str]]]": "States = Callable[[list[UUID]], dict[UUID, str]]",
    "Jobs = Callable[[list[UUID]], Awaitable[list[Job]]]": "Jobs = Callable[[list[UUID]], list[Job]]",
    "from queue_pg import arguments, rows, store": "from queue_pg import arguments, rows, store_sync as store",
    "Follow = Callable[[list[UUID]], Awaitable[None]]": "Follow = Callable[[list[UUID]], None]",
    "Read = Callable[[list[tuple[UUID, int]]], Awaitable[list[EventsRead | None]]]": (
        "Read = Callable[[list[tuple[UUID, int]]], list[EventsRead | None]]"
    ),
    "from collections.abc import AsyncGenerator, Sequence": "from collections.abc import Generator, Sequence",
    "from collections.abc import Awaitable, Callable": "from collections.abc import Callable",
    "from collections.abc import Awaitable, Callable, Iterable": "from collections.abc import Callable, Iterable",
}
DOCSTRINGS = [
    (r"\basync with Queue", "with SyncQueue"),
    (r"\bwith `async ", "with `"),
    (r"\bawait ", ""),
    (r"\basync for ", "for "),
    (r"\basync with ", "with "),
    (r"\bAsyncBulk\b", "SyncBulk"),
    (r"`Queue`", "`SyncQueue`"),
    (r"\bthe Queue\b", "the SyncQueue"),
    (r"The Queue ", "The SyncQueue "),
    (r"one Queue ", "one SyncQueue "),
    (r"psycopg's or SQLAlchemy's:", "psycopg's, SQLAlchemy's or Django's:"),
    (r" `\w+_sync\.py` is\s+generated from this file(?: by tools/async_to_sync\.py)?\.", ""),
]


def convert(text: str, source: str) -> str:
    """Return the blocking twin of a module's text."""
    lines = [LINES.get(line, line) for line in text.splitlines()]
    text = "\n".join(lines) + "\n"
    pieces: list[str] = []
    row, column = 1, 0
    physical = [*text.splitlines(keepends=True), ""]
    skip_space = False

    def gap(until: tuple[int, int]) -> str:
        nonlocal row, column
        found = ""
        while row < until[0]:
            found += physical[row - 1][column:]
            row, column = row + 1, 0
        found += physical[row - 1][column : until[1]]
        column = until[1]
        return found

    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        between = gap(token.start)
        pieces.append(between.lstrip(" ") if skip_space else between)
        skip_space = False
        body = gap(token.end)
        if token.type == tokenize.NAME and token.string in ("async", "await"):
            skip_space = True
            continue
        if token.type == tokenize.NAME:
            body = NAMES.get(body, body)
        elif token.type == tokenize.STRING:
            body = _docstring(body)
        pieces.append(body)
    return HEADER.format(source=source) + "".join(pieces)


def _docstring(text: str) -> str:
    for pattern, replacement in DOCSTRINGS:
        text = re.sub(pattern, replacement, text)
    return text


def main(arguments: list[str]) -> int:
    stale: list[str] = []
    for source, target in TWINS.items():
        made = convert((ROOT / "queue_pg" / source).read_text(), f"queue_pg/{source}")
        path = ROOT / "queue_pg" / target
        if path.exists() and path.read_text() == made:
            continue
        stale.append(f"queue_pg/{target}")
        if "--check" not in arguments:
            path.write_text(made)
    if stale and "--check" in arguments:
        print(f"not current: {', '.join(stale)}; run: python tools/async_to_sync.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
