"""`events` and `logs`: what happened to a job and what its handler said, up to now or as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from queue_pg.cli.connect import open_queue
from queue_pg.cli.jobs import JobId
from queue_pg.cli.output import DatabaseUrl, JsonFlag, cell, print_json, print_line, print_text
from queue_pg.cli.values import parse_id

if TYPE_CHECKING:
    from queue_pg.client_sync import SyncQueue
    from queue_pg.models import JobEvent

PAGE = 1000

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")]
After = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Only events after this number.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("events")(events)
    app.command("logs")(logs)


def events(
    job_id: JobId, follow: Follow = False, after: After = 0, as_json: JsonFlag = False, database_url: DatabaseUrl = None
) -> None:
    """List what happened to a job and what its handler said. With --json one object a line."""
    with open_queue(database_url) as queue:
        for event in _events(queue, job_id, after, follow=follow):
            if as_json:
                print_json(event, one_line=True)
            else:
                said = " ".join(f"{name}={cell(value)}" for name, value in _fields(event).items())
                print_line(f"{event.seq:>5}  {cell(event.at) or '-'}  {event.type}  {said}".rstrip())


def logs(
    job_id: JobId,
    follow: Follow = False,
    after: After = 0,
    stream: Annotated[str | None, typer.Option(help="Only this stream, such as stderr.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Print the lines that a job's handler has logged. With --json one object a line."""
    with open_queue(database_url) as queue:
        for event in _events(queue, job_id, after, follow=follow):
            fields = _fields(event)
            if event.type != "log" or (stream is not None and fields.get("stream") != stream):
                continue
            if as_json:
                print_json(event, one_line=True)
            else:
                print_text(str(fields.get("line", "")))


def _events(queue: SyncQueue, job_id: str, after: int, *, follow: bool) -> Iterator[JobEvent]:
    known = parse_id(job_id)
    if follow:
        yield from queue.events(known, after=after)
        return
    while True:
        page = queue.events_page(known, after=after, limit=PAGE)
        yield from page.events
        if not page.events or page.events[-1].seq >= page.last_seq:
            return
        after = page.events[-1].seq


def _fields(event: JobEvent) -> dict[str, Any]:
    # What plain SQL stored may be more than Python can hold.
    return cast("dict[str, Any]", event.data) if isinstance(event.data, dict) else {"data": event.data}
