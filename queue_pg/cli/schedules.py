"""`schedules`: work that starts by the clock."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from queue_pg.cli.connect import find_database, load_settings, open_queue
from queue_pg.cli.output import (
    Column,
    DatabaseUrl,
    JsonFlag,
    cell,
    duration,
    print_fields,
    print_json,
    print_line,
    print_table,
)
from queue_pg.cli.submit import check_kind, parse_metadata
from queue_pg.cli.text import printable
from queue_pg.cli.values import choice, optional_duration, optional_time, parse_payload, parse_priority
from queue_pg.errors import InvalidJob
from queue_pg.models import NewJob

if TYPE_CHECKING:
    from queue_pg.schedules import Schedule, Timing

MISSED = ("skip", "once", "all")
PAGE = 200

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule.", show_default=False)]
Every = Annotated[str | None, typer.Option(help="Every so long, such as 30s or 2h.")]
At = Annotated[str | None, typer.Option(help="Once, at this time, such as 2026-01-31T09:00:00Z.")]
TimeZone = Annotated[str, typer.Option(help="In which the cron expression is read, such as Europe/Berlin.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    schedules = typer.Typer(
        invoke_without_command=True, help="List schedules; make, pause, run and remove them.", rich_markup_mode=None
    )
    schedules.callback()(list_schedules)
    schedules.command("list")(list_schedules_again)
    schedules.command("add")(add)
    schedules.command("show")(show)
    schedules.command("pause")(pause)
    schedules.command("resume")(resume)
    schedules.command("run")(run)
    schedules.command("remove")(remove)
    schedules.command("next")(next_fires)
    app.add_typer(schedules, name="schedules")


def list_schedules(context: typer.Context, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """List schedules; make, pause, run and remove them."""
    context.obj = (as_json, database_url)
    if context.invoked_subcommand is None:
        _list(as_json=as_json, database_url=database_url)


def list_schedules_again(context: typer.Context, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """List schedules with their next fires."""
    before = _outer(context)
    _list(as_json=as_json or before[0], database_url=database_url or before[1])


def add(
    context: typer.Context,
    name: Name,
    kind: Annotated[str, typer.Argument(help="Which handler runs the jobs.", show_default=False)],
    payload: Annotated[
        str | None,
        typer.Argument(help="JSON, or @file, or - for standard input. Default: {}", show_default=False),
    ] = None,
    cron: Annotated[str | None, typer.Option(help="Minute hour day month weekday, such as '0 9 * * mon-fri'.")] = None,
    every: Every = None,
    at: At = None,
    time_zone: TimeZone = "UTC",
    starts_at: Annotated[str | None, typer.Option(help="No fire before this time.")] = None,
    ends_at: Annotated[str | None, typer.Option(help="No fire after this time.")] = None,
    jitter: Annotated[str | None, typer.Option(help="Start each job up to so much later, at random.")] = None,
    missed: Annotated[str, typer.Option(help="Fires that nobody was there for: skip, once (one job for all), all.")] = (
        "once"
    ),
    queue: Annotated[str, typer.Option(help="The queue of the jobs.")] = "default",
    priority: Annotated[str, typer.Option(help="A number, or critical, high, normal, low, batch.")] = "normal",
    max_attempts: Annotated[int | None, typer.Option(min=1, max=1000, help="How often a job may run in all.")] = None,
    timeout: Annotated[str | None, typer.Option(help="How long one attempt may take.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find the jobs by; may be repeated.")] = None,
    metadata: Annotated[str | None, typer.Option(help="JSON object kept with the jobs; JSON, @file or -.")] = None,
    limit_key: Annotated[str | None, typer.Option(help="Share the limit of this key; see queue-pg limits.")] = None,
    cost: Annotated[int | None, typer.Option(min=0, help="Units each attempt takes from a rate; default: 1.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Refuse when there is a schedule of this name.")] = False,
    any_kind: Annotated[bool, typer.Option("--any-kind", help="Accept a kind that no worker is known for.")] = False,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a schedule, or change the one of that name. Prints its next fires."""
    from queue_pg.client_sync import SyncQueue
    from queue_pg.schedules import NewSchedule

    before = _outer(context)
    job = NewJob(
        kind=kind,
        payload={} if payload is None else parse_payload(payload),
        queue=queue,
        priority=parse_priority(priority),
        max_attempts=max_attempts,
        timeout=optional_duration(timeout, field="timeout"),
        tags=tag or (),
        metadata=parse_metadata(metadata) or {},
        limit_key=limit_key,
        cost=1 if cost is None else cost,
    )
    wanted: Any = choice(missed, MISSED, field="missed")
    schedule = NewSchedule(
        name=name,
        timing=_timing(cron, every, at, time_zone, starts_at=starts_at, ends_at=ends_at),
        job=job,
        jitter=optional_duration(jitter, field="jitter") or 0,
        missed=wanted,
    )
    settings = load_settings(database_url or before[1])
    with SyncQueue(find_database(settings)) as client:
        check_kind(client, kind, queue, policy="accept" if any_kind else settings.unknown_kinds)
        made, _ = client.put_schedule(schedule, create_only=new)
    if as_json or before[0]:
        print_json(made)
    else:
        _print_fires(made.next_fires)


def show(context: typer.Context, name: Name, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Show a schedule with its next fires."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        found = queue.get_schedule(name)
    if as_json or before[0]:
        print_json(found)
        return
    hidden = {"id", "every", "jitter", "timeout", "next_fires"}
    print_fields(
        [
            ("name", found.name),
            ("when", _when(found)),
            ("next fires", [cell(fire) for fire in found.next_fires]),
            *(
                (field, getattr(found, field))
                for field in _fields(found)
                if field not in {"name", "cron", "at", *hidden}
            ),
            ("jitter", duration(found.jitter.total_seconds()) if found.jitter else None),
            ("timeout", found.timeout),
        ]
    )


def pause(context: typer.Context, name: Name, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Stop a schedule until resumed."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        found = queue.pause_schedule(name)
    print_json(found) if as_json or before[0] else print_line(f"{printable(name)} paused")


def resume(context: typer.Context, name: Name, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Let a paused schedule fire again, from now on."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        found = queue.resume_schedule(name)
    print_json(found) if as_json or before[0] else print_line(f"{printable(name)} resumed")


def run(context: typer.Context, name: Name, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Make an extra job at once. Prints its id."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        job_id = queue.run_schedule_now(name)
    print_json({"id": job_id}) if as_json or before[0] else print_line(str(job_id))


def remove(context: typer.Context, name: Name, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Remove a schedule; jobs it has made stay."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        queue.unschedule(name)
    print_json({"name": name, "removed": True}) if as_json or before[0] else print_line(f"{printable(name)} removed")


def next_fires(
    context: typer.Context,
    cron: Annotated[str | None, typer.Argument(help="Such as '0 9 * * mon-fri'.", show_default=False)] = None,
    every: Every = None,
    at: At = None,
    time_zone: TimeZone = "UTC",
    after: Annotated[str | None, typer.Option(help="From this time on; default: now.")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 5,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Tell when a schedule would fire, without making it."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        fires = queue.preview_schedule(
            _timing(cron, every, at, time_zone), after=optional_time(after, field="after"), most=count
        )
    if as_json or before[0]:
        print_json({"next_fires": fires})
    else:
        _print_fires(fires)


def _list(*, as_json: bool, database_url: str | None) -> None:
    found: list[Schedule] = []
    with open_queue(database_url) as queue:
        while page := queue.schedules(limit=PAGE, after=found[-1].name if found else None):
            found += page
    if as_json:
        print_json({"schedules": found})
        return
    print_table(
        [
            Column("name"),
            Column("when"),
            Column("kind"),
            Column("queue"),
            Column("next", whole=True),
            Column("last", whole=True, optional=True),
            Column("origin", optional=True),
            Column("error", optional=True, wrap=True),
        ],
        [
            (
                each.name,
                _when(each),
                each.kind,
                each.queue,
                "paused" if each.paused else cell(each.next_fires[0] if each.next_fires else "none"),
                each.last_fire_at,
                each.origin,
                (each.error or {}).get("message", ""),
            )
            for each in found
        ],
        empty="No schedules. Make one: queue-pg schedules add NAME KIND --cron '0 9 * * *'",
    )


def _timing(
    cron: str | None,
    every: str | None,
    at: str | None,
    time_zone: str,
    *,
    starts_at: str | None = None,
    ends_at: str | None = None,
) -> Timing:
    from queue_pg.schedules import Timing

    if sum(given is not None for given in (cron, every, at)) != 1:
        raise InvalidJob("cron", "give exactly one of a cron expression, --every and --at.")
    return Timing(
        cron=cron,
        every=optional_duration(every, field="every"),
        at=optional_time(at, field="at"),
        time_zone=time_zone,
        starts_at=optional_time(starts_at, field="starts_at"),
        ends_at=optional_time(ends_at, field="ends_at"),
    )


def _when(schedule: Schedule) -> str:
    if schedule.cron is not None:
        return f"{schedule.cron} ({schedule.time_zone})"
    if schedule.every is not None:
        return f"every {duration(schedule.every.total_seconds())}"
    return f"once, {cell(schedule.at)}"


def _fields(schedule: Schedule) -> list[str]:
    return list(type(schedule).__dataclass_fields__)


def _print_fires(fires: list[datetime]) -> None:
    for fire in fires:
        print_line(fire.astimezone().isoformat(sep=" "))


def _outer(context: typer.Context) -> tuple[bool, str | None]:
    """Return `--json` and `--database-url` as given before the subcommand."""
    found: tuple[bool, str | None] = context.obj or (False, None)
    return found
