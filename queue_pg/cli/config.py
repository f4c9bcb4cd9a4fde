"""`config`: which settings are in force, and where each came from."""

from __future__ import annotations

import sys

import typer

from queue_pg.cli.connect import embedded_dsn, load_settings
from queue_pg.cli.output import Column, DatabaseUrl, JsonFlag, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("config")(config)


def config(as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Show the settings in force, secrets masked.

    With --json, `database_url` is usable (other programs connect with it); API keys stay masked.
    """
    from queue_pg.dsn import mask_dsn
    from queue_pg.retired_settings import retired_variables
    from queue_pg.settings import describe

    settings = load_settings(database_url)
    embedded = embedded_dsn(settings.data_dir) if settings.database_url is None else None
    in_force = settings.database_url or embedded
    listed = describe(settings)
    retired = retired_variables()
    if as_json:
        values = {item.name: item.value_masked for item in listed}
        print_json(
            {
                **values,
                "database_url": in_force,
                "sources": {item.name: item.source for item in listed},
                "without_effect": {item.name: item.instead for item in retired},
            }
        )
        return
    rows: list[tuple[str, object, str]] = []
    for item in listed:
        value, source = item.value_masked, item.source
        if item.name == "database_url" and embedded is not None:
            value, source = mask_dsn(embedded), f"embedded server of {settings.data_dir}"
        rows.append((item.env, value if value is not None else "-", source))
    print_table([Column("setting", whole=True), Column("value", wrap=True), Column("from", wrap=True)], rows, empty="")
    if in_force is None:
        sys.stderr.write(f"No database: DATABASE_URL is not set and no server runs in {settings.data_dir}.\n")
    for gone in retired:
        sys.stderr.write(f"{gone.name} ({gone.place}) has no effect. {gone.instead}\n")
