"""`migrate`: bring the database to what this version needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from queue_pg.cli.connect import find_database, load_settings
from queue_pg.cli.output import DatabaseUrl, JsonFlag, print_json, print_line, say
from queue_pg.cli.text import printable
from queue_pg.cli.values import parse_duration
from queue_pg.errors import InvalidJob, MigrationDiverged, SchemaError

if TYPE_CHECKING:
    from queue_pg.schema import Plan
    from queue_pg.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("migrate")(migrate)


def migrate(
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be applied.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Only print the SQL that would be run.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Only compare the database with this version.")] = False,
    lock_timeout: Annotated[str, typer.Option(help="Let nobody wait longer than this behind it.")] = "3s",
    wait: Annotated[str, typer.Option(help="Try again for this long when somebody is in the way.")] = "30s",
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Create or update the schema queue_pg. Runs again without harm; one at a time."""
    from queue_pg import schema

    if plan + sql + verify > 1:
        raise InvalidJob("migrate", "--plan, --sql and --verify exclude each other.", hint="Give one of them.")
    lock_seconds = parse_duration(lock_timeout, field="lock-timeout").total_seconds()
    wait_seconds = parse_duration(wait, field="wait").total_seconds()
    settings = load_settings(database_url)
    dsn = find_database(settings)
    if not (plan or sql or verify):
        names = schema.migrate(dsn, lock_timeout_seconds=lock_seconds, wait_seconds=wait_seconds, on_busy=say)
        _print_names(names, "applied", as_json=as_json)
        _look_at_result(dsn, settings)
        return
    with schema.connect(dsn) as connection:
        if verify:
            _print_differences(schema.verify(connection), as_json=as_json)
            return
        found = schema.plan(connection)
    _refuse_diverged(found)
    if sql:
        print_line(schema.render(found.pending).rstrip() if found.pending else "-- Nothing to apply.")
    else:
        _print_names([migration.name for migration in found.pending], "pending", as_json=as_json)


def _look_at_result(dsn: str, settings: Settings) -> None:
    """Write the instance's defaults, and say when a fully migrated schema is still not the released one.

    Raises SchemaError when that breaks it.
    """
    from queue_pg import store_sync
    from queue_pg.cli.checks import check_schema
    from queue_pg.connections import connect

    with connect(dsn, application="queue-pg migrate") as connection:
        store_sync.configure(connection, settings.instance_defaults)
        found = next((item for item in check_schema(connection) if item.check == "schema"), None)
    if found is not None and found.status == "fail":
        raise SchemaError(found.message, hint=found.hint)
    if found is not None and found.status == "warn":
        say(f"warning: {found.message} {found.hint or ''}")


def _refuse_diverged(found: Plan) -> None:
    if found.diverged:
        raise MigrationDiverged(found.diverged[0])


def _print_names(names: list[str], word: str, *, as_json: bool) -> None:
    if as_json:
        print_json({word: names})
        return
    for name in names:
        print_line(printable(name))
    say(f"{len(names)} migration(s) {word}." if names else "The schema is up to date.")


def _print_differences(differences: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"differences": differences})
    else:
        for line in differences:
            print_line(printable(line))
        if not differences:
            say("The schema is what this version was released with.")
    if differences:
        say("error: The database differs from the released schema (above: - released, + database).")
        raise typer.Exit(3)
