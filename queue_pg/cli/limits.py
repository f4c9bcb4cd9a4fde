"""`limits`: how much of what may be in flight."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from queue_pg.cli.connect import open_queue
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
from queue_pg.cli.text import printable
from queue_pg.cli.values import choice, optional_duration, optional_until
from queue_pg.errors import InvalidJob

if TYPE_CHECKING:
    from queue_pg.models import Limit

SCOPES = ("queue", "key")
PERIODS = ("second", "minute", "hour", "day")
PAGE = 200

Scope = Annotated[str, typer.Argument(metavar="SCOPE", help="queue or key.", show_default=False)]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The queue, or the key; tenant-* is every key that begins so.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    limits = typer.Typer(
        invoke_without_command=True, help="List limits; set, pause, resume and remove them.", rich_markup_mode=None
    )
    limits.callback()(list_limits)
    limits.command("list")(list_limits_again)
    limits.command("set")(set_limit)
    limits.command("show")(show)
    limits.command("pause")(pause)
    limits.command("resume")(resume)
    limits.command("remove")(remove)
    app.add_typer(limits, name="limits")


def list_limits(context: typer.Context, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """List limits; set, pause, resume and remove them."""
    context.obj = (as_json, database_url)
    if context.invoked_subcommand is None:
        _list(as_json=as_json, database_url=database_url)


def list_limits_again(context: typer.Context, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """List limits with what runs under them."""
    before = _outer(context)
    _list(as_json=as_json or before[0], database_url=database_url or before[1])


def set_limit(
    context: typer.Context,
    scope: Scope,
    name: Name,
    max_running: Annotated[int | None, typer.Option(min=1, help="Most attempts at once.")] = None,
    rate: Annotated[int | None, typer.Option(min=1, help="Most units of cost that start in each --per.")] = None,
    per: Annotated[str, typer.Option(help="second, minute, hour or day.")] = "second",
    burst: Annotated[int | None, typer.Option(min=1, help="Units that may start at once; default: --rate.")] = None,
    weight: Annotated[float | None, typer.Option(help="Its share beside others, by cost; default: 1.")] = None,
    ageing: Annotated[
        str | None,
        typer.Option(help="Of a queue: who has waited so long has turns, whatever the priority; such as 10m."),
    ] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a limit, or replace what it says. What runs goes on."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        found = queue.set_limit(
            _scope(scope),
            name,
            max_running=max_running,
            rate=rate,
            per=choice(per, PERIODS, field="per") or "second",
            burst=burst,
            weight=weight,
            ageing=optional_duration(ageing, field="ageing"),
        )
    _print(found, as_json=as_json or before[0])


def show(
    context: typer.Context, scope: Scope, name: Name, as_json: JsonFlag = False, database_url: DatabaseUrl = None
) -> None:
    """Show a limit and what runs under it."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        found = queue.get_limit(_scope(scope), name)
    _print(found, as_json=as_json or before[0])


def pause(
    context: typer.Context,
    scope: Scope,
    name: Name,
    until: Annotated[
        str | None, typer.Option(help="Resume by itself: a time with its zone, or a duration such as 30m.")
    ] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Stop handing out jobs under a limit. Running ones go on."""
    before = _outer(context)
    when = optional_until(until, field="until")
    if when is not None and when <= datetime.now(UTC):
        raise InvalidJob(
            "until", f"{until!r} is not in the future.", hint="To end a pause: queue-pg limits resume SCOPE NAME"
        )
    with open_queue(database_url or before[1]) as queue:
        found = queue.pause_limit(_scope(scope), name, until=when)
    _print(found, as_json=as_json or before[0])


def resume(
    context: typer.Context, scope: Scope, name: Name, as_json: JsonFlag = False, database_url: DatabaseUrl = None
) -> None:
    """Hand out jobs under a paused limit again."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        found = queue.resume_limit(_scope(scope), name)
    _print(found, as_json=as_json or before[0])


def remove(
    context: typer.Context, scope: Scope, name: Name, as_json: JsonFlag = False, database_url: DatabaseUrl = None
) -> None:
    """End a limit."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        queue.remove_limit(_scope(scope), name)
    if as_json or before[0]:
        print_json({"scope": scope, "name": name, "removed": True})
    else:
        print_line(f"{printable(name)} removed")


def _list(*, as_json: bool, database_url: str | None) -> None:
    found: list[Limit] = []
    with open_queue(database_url) as queue:
        while page := queue.limits(limit=PAGE, after=(found[-1].scope, found[-1].name) if found else None):
            found += page
    if as_json:
        print_json({"limits": found})
        return
    print_table(
        [
            Column("scope", whole=True),
            Column("name"),
            Column("status", style_by_value=True, whole=True),
            Column("running", right=True, whole=True),
            Column("rate", whole=True, optional=True),
            Column("left", right=True, whole=True, optional=True),
            Column("opens", whole=True, optional=True),
            Column("weight", right=True, whole=True, optional=True),
            Column("ageing", right=True, whole=True, optional=True),
            Column("template", optional=True),
        ],
        [
            (
                each.scope,
                each.name,
                each.status,
                _running(each),
                _rate(each),
                each.units_left,
                each.opens_at,
                _weight(each),
                _ageing(each),
                each.template,
            )
            for each in found
        ],
        empty="No limits. Make one: queue-pg limits set key tenant-7 --max-running 5",
    )


def _print(found: Limit, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_fields(
        [
            (found.scope, found.name),
            ("status", found.status),
            ("running", _running(found)),
            ("rate", _rate(found) or None),
            ("burst", found.burst),
            ("units left", found.units_left),
            ("paused", _paused(found)),
            ("opens", found.opens_at),
            ("weight", _weight(found) or None),
            ("ageing", _ageing(found) or None),
            ("template", found.template),
        ]
    )


def _running(found: Limit) -> str:
    return f"{found.running}/{found.max_running}" if found.max_running is not None else str(found.running)


def _rate(found: Limit) -> str:
    return f"{found.rate} per {found.per}" if found.rate is not None else ""


def _weight(found: Limit) -> str:
    return "" if found.weight is None else f"{found.weight:g}"


def _ageing(found: Limit) -> str:
    return "" if found.ageing_seconds is None else duration(found.ageing_seconds)


def _paused(found: Limit) -> str | None:
    if not found.paused:
        return None
    return f"until {cell(found.paused_until)}" if found.paused_until else "until resumed"


def _scope(given: str) -> str:
    return choice(given, SCOPES, field="scope") or given


def _outer(context: typer.Context) -> tuple[bool, str | None]:
    """Return `--json` and `--database-url` as given before the subcommand."""
    found: tuple[bool, str | None] = context.obj or (False, None)
    return found
