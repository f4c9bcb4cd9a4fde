"""`load`: a load test of a running service."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from queue_pg.cli.output import JsonFlag, print_fields, print_json, say
from queue_pg.cli.values import parse_duration, parse_payload


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("load")(load)


def load(
    kind: Annotated[str, typer.Argument(help="Kind of the jobs.", show_default=False)],
    payload: Annotated[str, typer.Argument(help="JSON, @file or - for standard input.")] = "{}",
    url: Annotated[
        str | None, typer.Option(help="The service; default: http://127.0.0.1 with API_PORT.", show_default=False)
    ] = None,
    rate: Annotated[float, typer.Option(help="Jobs a second.")] = 10.0,
    during: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long to submit.")] = "10s",
    connections: Annotated[int, typer.Option(help="Requests at once.")] = 16,
    wait: Annotated[str, typer.Option(metavar="DURATION", help="How long to wait for the ends of some.")] = "30s",
    queue: Annotated[str, typer.Option(help="Queue of the jobs.")] = "default",
    as_json: JsonFlag = False,
) -> None:
    """Submit jobs over HTTP at a fixed rate; report latencies and errors. The jobs are real: they run.

    Ends with 1 when a request failed, or a job whose end was waited for has not completed.
    """
    # Imported here: --help of another command needs none of it.
    from queue_pg.load_test import LoadPlan, run
    from queue_pg.settings import Settings

    plan = LoadPlan(
        url=url or f"http://127.0.0.1:{Settings.load().api_port}",
        job={"kind": kind, "payload": parse_payload(payload), "queue": queue, "tags": ["load-test"]},
        rate=rate,
        seconds=parse_duration(during, field="for").total_seconds(),
        connections=connections,
        wait_seconds=parse_duration(wait, field="wait").total_seconds(),
    )
    say(f"{plan.count:,} jobs of kind {kind} to {plan.url}, {plan.rate:g} a second")
    report = run(plan, on_second=lambda accepted, errors: say(f"{accepted:,} accepted, {errors:,} errors"))
    if as_json:
        print_json({**asdict(report), "rate": report.rate})
    else:
        latencies = {"submit": report.submit, "waited": report.waited, "done": report.done}
        print_fields(
            [
                ("accepted", f"{report.accepted:,} of {report.sent:,}, {report.rate:.1f} a second"),
                ("errors", ", ".join(f"{count} x {what}" for what, count in sorted(report.errors.items())) or "none"),
                *((name, _shown(found)) for name, found in latencies.items()),
                ("ends", ", ".join(f"{count} {state}" for state, count in sorted(report.ends.items())) or "none"),
            ]
        )
    if report.errors or set(report.ends) - {"completed"}:
        raise typer.Exit(1)


def _shown(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in found.items()) or "none"
