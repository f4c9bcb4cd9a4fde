"""`attempts`, `events` and `logs`: what happened to a job and what its handler said, up to now or as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from queue_pg.cli.connect import open_queue
from queue_pg.cli.jobs import JobId
from queue_pg.cli.output import (
    Column,
    DatabaseUrl,
    JsonFlag,
    cell,
    duration,
    plain,
    print_json,
    print_line,
    print_table,
    print_text,
    say,
)
from queue_pg.cli.values import parse_id

if TYPE_CHECKING:
    from queue_pg.attempt_model import Attempt
    from queue_pg.client_sync import SyncQueue
    from queue_pg.models import JobEvent

PAGE = 1000

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")]
After = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Only events after this number.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("attempts")(attempts)
    app.command("events")(events)
    app.command("logs")(logs)


def attempts(
    job_id: JobId,
    limit: Annotated[int, typer.Option(min=1, max=PAGE, help="At most so many.")] = 100,
    after: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Only those that started after this event.")] = 0,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List the attempts of a job, oldest first: who ran it, how long, and how each ended."""
    with open_queue(database_url) as queue:
        page = queue.attempts(parse_id(job_id), after=after, limit=limit)
    if as_json:
        print_json(page)
        return
    print_table(
        [
            Column("try", right=True, whole=True),
            Column("worker"),
            Column("started", whole=True),
            Column("waited", right=True, whole=True),
            Column("ran", right=True, whole=True),
            Column("outcome", style_by_value=True, whole=True),
            Column("again at", whole=True, optional=True),
            Column("error", wrap=True),
        ],
        [
            (
                each.attempt,
                each.worker_id,
                each.started_at,
                duration(each.waited_seconds),
                duration(each.ran_seconds),
                each.outcome or "forgotten",
                each.run_at,
                _error(each),
            )
            for each in page.attempts
        ],
        empty="No attempts.",
    )
    if page.forgotten_to is not None:
        say(f"Events up to number {page.forgotten_to} are forgotten; attempts that ended by then are missing.")
    if page.next_after is not None:
        say(f"More: queue-pg attempts {job_id} --after {page.next_after}")


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


def _error(attempt: Attempt) -> str:
    # What plain SQL stored may be anything.
    error: Any = attempt.error
    return f"{error.get('code')}: {error.get('message')}" if isinstance(error, dict) else cell(plain(error))  # pyright: ignore[reportUnknownMemberType]


def _fields(event: JobEvent) -> dict[str, Any]:
    # What plain SQL stored may be more than Python can hold.
    return cast("dict[str, Any]", event.data) if isinstance(event.data, dict) else {"data": event.data}
