"""`doctor`: what is wrong with this installation, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from queue_pg.cli.connect import find_database, load_settings
from queue_pg.cli.output import Column, DatabaseUrl, JsonFlag, print_json, print_table
from queue_pg.cli.text import one_line
from queue_pg.errors import DatabaseUnavailable, QueuePgError

if TYPE_CHECKING:
    from queue_pg.cli.checks import Finding

Checks = Callable[["Session"], "list[Finding]"]


class Session:
    """The connection that the checks share. `notify`, `host` and `fix` come from settings and options."""

    def __init__(self, connection: Any, dsn: str, *, notify: bool, host: str | None, fix: bool = False) -> None:
        self.connection = connection
        self.dsn = dsn
        self.notify = notify
        self.host = host
        self.fix = fix


def register(app: typer.Typer) -> None:
    """Add the command."""
    group = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
    group.callback()(doctor)
    for name in ("db", "schema", "notify", "workers"):
        group.command(name)(_PROBES[name])
    app.add_typer(group, name="doctor")


def doctor(
    context: typer.Context,
    fix: Annotated[
        bool, typer.Option("--fix", help="Count limits anew that rows changed by hand have put wrong.")
    ] = False,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Check database, schema, notifications, workers, limits and horizon; say what to do. Exit code 1: it is broken.

    With a subcommand it is a silent probe for health checks: no output and 0 when well, else one line per problem.
    """
    context.obj = database_url
    if context.invoked_subcommand is not None:
        return
    found = examine(database_url, [_database, _schema, _notify, _work, _limits, _horizon], fix=fix)
    if as_json:
        print_json({"ok": not _broken(found), "checks": found})
    else:
        rows = [(item.status, item.check, one_line(f"{item.message} {item.hint or ''}")) for item in found]
        print_table(
            [Column("", style_by_value=True, whole=True), Column("check", whole=True), Column("found", wrap=True)],
            rows,
            empty="",
        )
    if _broken(found):
        raise typer.Exit(1)


def examine(
    database_url: str | None, checks: list[Checks], *, host: str | None = None, fix: bool = False
) -> list[Finding]:
    """Run checks in order; when the database cannot be reached, that is the only finding."""
    from queue_pg.cli.checks import Finding

    try:
        settings = load_settings(database_url)
        dsn = find_database(settings)
    except QueuePgError as error:
        return [Finding("settings", "fail", error.message, error.hint)]
    try:
        return _run(dsn, checks, notify=settings.notify, host=host, fix=fix)
    except DatabaseUnavailable as error:
        return [Finding("database", "fail", error.message, error.hint)]


def _run(dsn: str, checks: list[Checks], *, notify: bool, host: str | None, fix: bool) -> list[Finding]:
    import psycopg

    from queue_pg.cli.checks import Finding
    from queue_pg.connections import connect

    found: list[Finding] = []
    try:
        with connect(dsn, application="queue-pg doctor") as connection:
            session = Session(connection, dsn, notify=notify, host=host, fix=fix)
            for check in checks:
                found += check(session)
                if check is _schema and _broken(found):
                    break  # what follows reads tables that may not be there
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        found.append(
            Finding("database", "fail", f"Cannot reach Postgres: {reason}", "Check DATABASE_URL and that it runs.")
        )
    return found


def _broken(found: list[Finding]) -> bool:
    return any(item.status == "fail" for item in found)


def _database(session: Session) -> list[Finding]:
    from queue_pg.cli.checks import check_database

    return check_database(session.connection)


def _schema(session: Session) -> list[Finding]:
    from queue_pg.cli.checks import check_schema

    return check_schema(session.connection)


def _notify(session: Session) -> list[Finding]:
    from queue_pg.cli.checks import check_notify

    return check_notify(session.connection, session.dsn, enabled=session.notify)


def _work(session: Session) -> list[Finding]:
    from queue_pg.cli.checks import check_work

    return check_work(session.connection, host=session.host)


def _limits(session: Session) -> list[Finding]:
    from queue_pg.cli.checks import check_limits

    return check_limits(session.connection, fix=session.fix)


def _horizon(session: Session) -> list[Finding]:
    from queue_pg.cli.checks import check_horizon

    return check_horizon(session.connection)


def _probe(context: typer.Context, database_url: str | None, checks: list[Checks], *, host: str | None = None) -> None:
    problems = [item for item in examine(database_url or context.obj, checks, host=host) if item.status == "fail"]
    for item in problems:
        sys.stderr.write(one_line(f"{item.check}: {item.message} {item.hint or ''}") + "\n")
    if problems:
        raise typer.Exit(1)


def probe_db(context: typer.Context, database_url: DatabaseUrl = None) -> None:
    """Silent probe: the database answers and takes writes."""
    _probe(context, database_url, [_database])


def probe_schema(context: typer.Context, database_url: DatabaseUrl = None) -> None:
    """Silent probe: the schema is what this version needs."""
    _probe(context, database_url, [_schema])


def probe_notify(context: typer.Context, database_url: DatabaseUrl = None) -> None:
    """Silent probe: a notification arrives."""
    _probe(context, database_url, [_notify])


def probe_workers(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(help="Only workers on this host, such as $HOSTNAME in a container.")
    ] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Silent probe: a live worker is there, and expired leases are taken back."""
    _probe(context, database_url, [_schema, _live_work], host=host)


def _live_work(session: Session) -> list[Finding]:
    from queue_pg.cli.checks import Finding

    # For a probe the absence of workers is the problem; in the overview a system without one may be meant so.
    return [
        Finding(item.check, "fail", item.message, item.hint)
        if item.check == "workers" and item.status == "warn"
        else item
        for item in _work(session)
    ]


_PROBES: dict[str, Callable[..., None]] = {
    "db": probe_db,
    "schema": probe_schema,
    "notify": probe_notify,
    "workers": probe_workers,
}
