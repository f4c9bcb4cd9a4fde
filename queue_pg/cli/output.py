"""What commands print: results on standard output, everything else on standard error.

On a terminal results are rich tables. In a pipe they are plain text without colour, and `list` and `submit` print one
id per line. With `--json` they are JSON, one document, or one object per line where results come one by one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from queue_pg.cli.text import one_line, printable, printable_json, printable_lines
from queue_pg.payloads import Unreadable

if TYPE_CHECKING:
    from queue_pg.models import Job

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="The database; default: DATABASE_URL, else the embedded Postgres of this folder.",
        show_default=False,
    ),
]

# Lists of words, which read best on one line.
INLINE_FIELDS = frozenset({"tags"})

STATE_STYLES = {
    "scheduled": "cyan",
    "waiting": "cyan",
    "queued": "blue",
    "running": "yellow",
    "open": "blue",
    "closed": "yellow",
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
    "live": "green",
    "stopping": "yellow",
    "gone": "red",
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    `style_by_value` colours cells that are state names. On a narrow terminal a column shrinks, unless it is to be kept
    `whole` (ids are there to be copied) or may `wrap`. An `optional` one is left out on a terminal
    when it says nothing.
    """

    title: str
    right: bool = False
    style_by_value: bool = False
    wrap: bool = False
    whole: bool = False
    optional: bool = False


def plain(value: Any) -> Any:
    """Return `value` as what JSON can hold: ids and times as text, durations in seconds under `<name>_seconds`."""
    if isinstance(value, Unreadable):
        return {"unreadable": value.reason, "text": value.text}
    if is_dataclass(value) and not isinstance(value, type):
        found: dict[str, Any] = {}
        for field in fields(value):
            item = getattr(value, field.name)
            # By its type, so that one that is None has the same name.
            if "timedelta" in str(field.type):
                found[f"{field.name}_seconds"] = plain(item)
            else:
                found[field.name] = plain(item)
        return found
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def print_json(value: Any, *, one_line: bool = False) -> None:
    """Print `value` as JSON; indented for people at a terminal, on one line for programs."""
    indent = 2 if sys.stdout.isatty() and not one_line else None
    print_line(printable_json(json.dumps(plain(value), ensure_ascii=False, indent=indent, default=str)))


def print_line(text: str) -> None:
    """Print one result. `text` must be safe to print already."""
    sys.stdout.write(text + "\n")


def say(text: str) -> None:
    """Print a status line for people, on standard error."""
    sys.stderr.write(one_line(text) + "\n")
    sys.stderr.flush()


def cell(value: Any) -> str:
    """Return `value` as the text of one table cell."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return _local_time(value)
    if isinstance(value, timedelta):
        return duration(value.total_seconds())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return printable(json.dumps(plain(value), ensure_ascii=False, default=str))
    return printable(str(value))


def _local_time(value: datetime) -> str:
    with suppress(OverflowError):  # the ends of the calendar have no local time
        value = value.astimezone()
    return value.strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float | None) -> str:
    """Return a length of time as people read it: `0.4 s`, `12 s`, `3 min 20 s`, `5 h 2 min`, `2 d 4 h`."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def age(seconds: float | None) -> str:
    """Return a length of time for a narrow column, in its largest unit: `5s`, `11m`, `3h`, `2d`."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(int(seconds), 0)}s"


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """Print rows of values; on a terminal as a table, in a pipe as aligned plain text with a header."""
    texts = [[cell(value) for value in row] for row in rows]
    if not texts:
        say(empty)
        return
    if sys.stdout.isatty():
        _print_rich(columns, texts)
        return
    widths = [max(len(column.title), *(len(row[n]) for row in texts)) for n, column in enumerate(columns)]
    for row in ([column.title for column in columns], *texts):
        padded = (
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(row, widths, columns, strict=True)
        )
        print_line("  ".join(padded).rstrip())


def _print_rich(columns: Sequence[Column], texts: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [
        n for n, column in enumerate(columns) if not column.optional or any(row[n] not in {"", "0"} for row in texts)
    ]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for n in shown:
        column = columns[n]
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.wrap,
            overflow="fold" if column.wrap else "ellipsis",
            min_width=max(len(row[n]) for row in texts) if column.whole else None,
        )
    for row in texts:
        # Text, not str: square brackets in stored text are no markup.
        table.add_row(
            *(Text(row[n], style=STATE_STYLES.get(row[n], "") if columns[n].style_by_value else "") for n in shown)
        )
    Console().print(table)


def print_fields(pairs: Sequence[tuple[str, Any]]) -> None:
    """Print `name  value` lines; JSON values are printed indented below their name."""
    readable = [(name, plain(value) if isinstance(value, Unreadable) else value) for name, value in pairs]
    shown = [(name, value) for name, value in readable if value not in (None, [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        if isinstance(value, dict) or (isinstance(value, list) and name not in INLINE_FIELDS):
            text = printable_json(json.dumps(plain(value), ensure_ascii=False, indent=2, default=str))
            print_line(name)
            print_line("\n".join("  " + line for line in text.split("\n")))
        else:
            print_line(f"{name.ljust(width)}  {cell(value)}")


def error_text(job: Job) -> str:
    """Return why a job did not complete, as `<code>: <message>`."""
    error: Any = job.error  # an Unreadable, when plain SQL stored what Python cannot hold
    return f"{error.get('code')}: {error.get('message')}" if isinstance(error, dict) else str(plain(error) or job.state)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def print_text(text: str) -> None:
    """Print stored text of several lines."""
    print_line(printable_lines(text))
