"""`templates`: job templates, and jobs made from them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from queue_pg.cli.connect import open_queue
from queue_pg.cli.output import Column, DatabaseUrl, JsonFlag, print_fields, print_json, print_line, print_table
from queue_pg.cli.values import optional_duration, parse_payload, parse_priority
from queue_pg.errors import InvalidJob

if TYPE_CHECKING:
    from queue_pg.template_model import JobTemplate

TemplateName = Annotated[str, typer.Argument(metavar="NAME", help="The template.", show_default=False)]
Version = Annotated[int | None, typer.Option(min=1, help="Default: the newest.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    templates = typer.Typer(
        invoke_without_command=True, help="List job templates; store, show and submit them.", rich_markup_mode=None
    )
    templates.callback()(list_templates)
    templates.command("put")(put)
    templates.command("show")(show)
    templates.command("submit")(submit)
    app.add_typer(templates, name="templates")


def list_templates(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many templates at most.")] = 50,
    after: Annotated[str | None, typer.Option(help="Go on behind this name.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List job templates by name; store, show and submit them."""
    context.obj = (as_json, database_url)
    if context.invoked_subcommand is not None:
        return
    with open_queue(database_url) as queue:
        found = queue.list_templates(limit=limit, after=after)
    if as_json:
        print_json({"templates": found})
        return
    print_table(
        [
            Column("name", whole=True),
            Column("version", right=True, whole=True),
            Column("kind"),
            Column("queue"),
            Column("variables"),
            Column("description", optional=True),
        ],
        [(each.name, each.version, each.kind, each.queue, list(each.variables), each.description) for each in found],
        empty="No job templates.",
    )


def put(
    context: typer.Context,
    name: TemplateName,
    kind: Annotated[str, typer.Argument(help="Which handler runs its jobs.", show_default=False)],
    payload: Annotated[
        str | None, typer.Argument(help="JSON with {{ variables.x }}, @file or -. Default: {}", show_default=False)
    ] = None,
    variables: Annotated[str | None, typer.Option(help="Types by name: JSON, @file or -.")] = None,
    queue: Annotated[str, typer.Option(help="Their queue.")] = "default",
    priority: Annotated[str | None, typer.Option(help="A number, or critical, high, normal, low, batch.")] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, max=1000, help="How often each may run in all.")] = None,
    timeout: Annotated[str | None, typer.Option(help="How long one attempt may take.")] = None,
    limit_key: Annotated[str | None, typer.Option(help="Their limit key; may hold {{ variables.x }}.")] = None,
    cost: Annotated[int | None, typer.Option(min=0, help="Units each attempt takes from a rate; default: 1.")] = None,
    cache: Annotated[
        bool | None, typer.Option("--cache/--no-cache", help="They take the result of identical work, or share it.")
    ] = None,
    cache_for: Annotated[str | None, typer.Option(help="The same, of results at most this old, such as 1h.")] = None,
    cache_version: Annotated[str | None, typer.Option(help="The same, of work of this version.")] = None,
    description: Annotated[str | None, typer.Option(help="For people.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Store a job template: its next version, or the newest if that is the same already."""
    with open_queue(database_url or _outer(context)[1]) as client:
        made = client.put_template(
            name,
            kind,
            {} if payload is None else parse_payload(payload),
            variables=None if variables is None else _object(variables, "variables"),
            queue=queue,
            priority=0 if priority is None else parse_priority(priority),
            max_attempts=max_attempts,
            timeout=optional_duration(timeout, field="timeout"),
            limit_key=limit_key,
            cost=1 if cost is None else cost,
            cache=cache,
            cache_for=optional_duration(cache_for, field="cache_for"),
            cache_version=cache_version,
            description=description,
        )
    if as_json or _outer(context)[0]:
        print_json(made)
    else:
        print_line(f"{made.name} version {made.version}")


def show(
    context: typer.Context,
    name: TemplateName,
    version: Version = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show a job template."""
    with open_queue(database_url or _outer(context)[1]) as queue:
        found = queue.get_template(name, version)
    if as_json or _outer(context)[0]:
        print_json(found)
    else:
        _print(found)


def submit(
    context: typer.Context,
    name: TemplateName,
    var: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable; may be repeated. JSON, else text.")
    ] = None,
    version: Version = None,
    queue: Annotated[str | None, typer.Option(help="Another queue than the template's.")] = None,
    priority: Annotated[str | None, typer.Option(help="A number, or critical, high, normal, low, batch.")] = None,
    delay: Annotated[str | None, typer.Option(help="Run after this time, such as 30s or 2h.")] = None,
    unique_key: Annotated[str | None, typer.Option(help="Submit once: the same key gives the same job again.")] = None,
    cache: Annotated[
        bool | None, typer.Option("--cache/--no-cache", help="Take the result of identical work, or share it.")
    ] = None,
    cache_for: Annotated[str | None, typer.Option(help="The same, of results at most this old, such as 1h.")] = None,
    cache_version: Annotated[str | None, typer.Option(help="The same, of work of this version.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be repeated.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="The open batch that it is added to.")] = None,
    limit_key: Annotated[str | None, typer.Option(help="Another limit key than the template's.")] = None,
    cost: Annotated[int | None, typer.Option(min=0, help="Units each attempt takes from a rate.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Submit a job made from a template. Prints its id."""
    with open_queue(database_url or _outer(context)[1]) as client:
        types = client.get_template(name, version).variables
        submitted = client.submit_template(
            name,
            dict(_variable(text, types) for text in var or []),
            version=version,
            queue=queue,
            priority=None if priority is None else parse_priority(priority),
            delay=optional_duration(delay, field="delay"),
            unique_key=unique_key,
            tags=tag or None,
            batch_id=batch,
            limit_key=limit_key,
            cost=cost,
            cache=cache,
            cache_for=optional_duration(cache_for, field="cache_for"),
            cache_version=cache_version,
        )
        if as_json or _outer(context)[0]:
            print_json(client.get(submitted.id))
        else:
            print_line(str(submitted.id))


def _variable(text: str, types: dict[str, Any]) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise InvalidJob("var", f"{text!r} is no NAME=VALUE.")
    if types.get(name, {}).get("type") == "string":
        return name, value
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _print(template: JobTemplate) -> None:
    print_fields(
        [
            ("name", template.name),
            ("version", template.version),
            ("kind", template.kind),
            ("queue", template.queue),
            ("priority", template.priority or None),
            ("max attempts", template.max_attempts),
            ("timeout", template.timeout),
            ("limit key", template.limit_key),
            ("cost", template.cost if template.cost != 1 else None),
            ("cache", template.cache),
            ("cache for", template.cache_for),
            ("cache version", template.cache_version),
            ("description", template.description),
            ("created", template.created_at),
            ("variables", template.variables),
            ("payload", template.payload),
        ]
    )


def _object(text: str, field: str) -> dict[str, Any]:
    value = parse_payload(text, field=field)
    if not isinstance(value, dict):
        raise InvalidJob(field, "must be a JSON object.")
    return cast("dict[str, Any]", value)


def _outer(context: typer.Context) -> tuple[bool, str | None]:
    """Return `--json` and `--database-url` as given before the subcommand."""
    found: tuple[bool, str | None] = context.obj or (False, None)
    return found
