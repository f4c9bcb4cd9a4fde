"""`steps`, `signal`, `rerun`: what a job has done, what it waits for, and running it again to compare."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from queue_pg.cli.connect import open_queue
from queue_pg.cli.output import Column, DatabaseUrl, JsonFlag, print_json, print_line, print_table
from queue_pg.cli.text import printable
from queue_pg.cli.values import optional_duration, parse_id, parse_payload, parse_priority
from queue_pg.errors import InvalidJob
from queue_pg.models import Step
from queue_pg.payloads import parse_json

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("steps")(steps)
    app.command("signal")(signal)
    app.command("rerun")(rerun)


def steps(job_id: JobId, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """List the steps of a job: what is done, and what it waits for."""
    with open_queue(database_url) as queue:
        found = queue.steps(parse_id(job_id))
    if as_json:
        print_json({"steps": found})
        return
    print_table(
        [
            Column("step", whole=True),
            Column("type", whole=True),
            Column("state", whole=True),
            Column("try", right=True, whole=True),
            Column("begun", whole=True),
            Column("finished", whole=True),
            Column("until", whole=True, optional=True),
            Column("result"),
        ],
        [
            (step.name, step.type, _state(step), step.attempt, step.begun_at, step.finished_at, step.until, step.result)
            for step in found
        ],
        empty="No steps.",
    )


def signal(
    job_id: JobId,
    name: Annotated[str, typer.Argument(help="The event, as in job.wait_for_event(name).", show_default=False)],
    payload: Annotated[
        str | None, typer.Argument(help="What the handler gets: JSON, or @file, or - for standard input.")
    ] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Tell a job that an event has come; of one name the first signal counts."""
    known = parse_id(job_id)
    value: Any = None if payload is None else parse_payload(payload)
    with open_queue(database_url) as queue:
        created = queue.signal(known, name, value)
    if as_json:
        print_json({"id": known, "name": name, "created": created})
    else:
        print_line(f"{known} {printable(name)} {'signalled' if created else 'was signalled before'}")


def rerun(
    job_id: JobId,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a field of the payload, a.b=1 one inside a; JSON, or else text. May be repeated.",
        ),
    ] = None,
    payload: Annotated[
        str | None, typer.Option(help="Another payload as a whole: JSON, or @file, or - for standard input.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another model, of a job of kind chat.")] = None,
    queue: Annotated[str | None, typer.Option(help="Another queue.")] = None,
    priority: Annotated[
        str | None, typer.Option(help="Higher runs first: a number, or critical, high, normal, low, batch.")
    ] = None,
    delay: Annotated[str | None, typer.Option(help="Run after this time, such as 30s or 2h.")] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, max=1000, help="How often it may run in all.")] = None,
    timeout: Annotated[str | None, typer.Option(help="How long one attempt may take.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Other tags than the job's; may be repeated.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Run a job again as a new one that is linked to it, perhaps changed. Prints the new id."""
    known = parse_id(job_id)
    if changes and payload is not None:
        raise InvalidJob("set", "--set and --payload exclude each other.", hint="Give one of them.")
    with open_queue(database_url) as client:
        job = client.rerun(
            known,
            payload=None if payload is None else parse_payload(payload),
            payload_patch=_patch(changes) if changes else None,
            model=model,
            queue=queue,
            priority=None if priority is None else parse_priority(priority),
            delay=optional_duration(delay, field="delay"),
            max_attempts=max_attempts,
            timeout=optional_duration(timeout, field="timeout"),
            tags=tag or None,
        )
    print_json(job) if as_json else print_line(str(job.id))


def _state(step: Step) -> str:
    if step.timed_out:
        return "timed out"
    return "waits" if step.finished_at is None else "done"


def _patch(changes: list[str]) -> dict[str, Any]:
    """Return `a.b=1` and the like as an object to merge."""
    patch: dict[str, Any] = {}
    for change in changes:
        path, equals, text = change.partition("=")
        *outer, last = path.split(".")
        if not equals or not last or not all(outer):
            raise InvalidJob("set", f"{change!r} is not KEY=VALUE.", hint="Write it as --set temperature=0.2")
        inside = patch
        for key in outer:
            found = inside.setdefault(key, {})
            if not isinstance(found, dict):
                raise InvalidJob("set", f"{change!r} contradicts another change of {key!r}.")
            inside = cast("dict[str, Any]", found)
        if last in inside:
            raise InvalidJob("set", f"{change!r} contradicts another change of {last!r}.")
        inside[last] = _value(text)
    return patch


def _value(text: str) -> Any:
    try:
        return parse_json(text.encode("utf-8", "surrogateescape"), field="set")
    except InvalidJob:
        # Most values are words: model=large needs no quotes.
        return text
