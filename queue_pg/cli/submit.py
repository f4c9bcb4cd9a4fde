"""`submit`: one job, or many from JSON lines."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from queue_pg.cli.connect import find_database, load_settings
from queue_pg.cli.output import DatabaseUrl, JsonFlag, error_text, plain, print_json, print_line, say
from queue_pg.cli.text import printable_json
from queue_pg.cli.values import choice, optional_duration, optional_time, parse_id, parse_payload, parse_priority
from queue_pg.errors import InvalidJob, UnknownKind
from queue_pg.models import JobState, NewJob, OnUnsuccessful, Parent

if TYPE_CHECKING:
    from queue_pg.cli.lines import Submitted
    from queue_pg.client_sync import SyncQueue


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("submit")(submit)


def submit(
    kind: Annotated[str | None, typer.Argument(help="Which handler runs the job.", show_default=False)] = None,
    payload: Annotated[
        str | None,
        typer.Argument(help="JSON, or @file, or - for standard input. Default: {}", show_default=False),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="The queue; default: default.")] = None,
    priority: Annotated[
        str | None, typer.Option(help="Higher runs first: a number, or critical, high, normal, low, batch.")
    ] = None,
    delay: Annotated[str | None, typer.Option(help="Run after this time, such as 30s or 2h.")] = None,
    run_at: Annotated[str | None, typer.Option(help="Run at this time, such as 2026-01-31T09:00:00Z.")] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, max=1000, help="How often it may run in all.")] = None,
    timeout: Annotated[str | None, typer.Option(help="How long one attempt may take.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="Do not start it after this time.")] = None,
    unique_key: Annotated[str | None, typer.Option(help="Submit once: the same key gives the same job again.")] = None,
    limit_key: Annotated[str | None, typer.Option(help="Share the limit of this key; see queue-pg limits.")] = None,
    cost: Annotated[int | None, typer.Option(min=0, help="Units each attempt takes from a rate; default: 1.")] = None,
    cache: Annotated[
        bool | None, typer.Option("--cache/--no-cache", help="Take the result of identical work, or share it.")
    ] = None,
    cache_for: Annotated[str | None, typer.Option(help="The same, of results at most this old, such as 1h.")] = None,
    cache_version: Annotated[str | None, typer.Option(help="The same, of work of this version.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be repeated.")] = None,
    metadata: Annotated[str | None, typer.Option(help="JSON object kept with the job; JSON, @file or -.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="The open batch that it is added to.")] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID[=NAME]",
            help="Wait for this job; may be repeated. Templates call it NAME, else by its place from 0.",
        ),
    ] = None,
    on_unsuccessful: Annotated[
        str | None, typer.Option(help="When a job waited for does not complete: cancel (default), run or fail.")
    ] = None,
    jsonl: Annotated[
        str | None,
        typer.Option(help="Many jobs, one JSON object per line: a file, or - for standard input. With KIND: payloads."),
    ] = None,
    any_kind: Annotated[bool, typer.Option("--any-kind", help="Accept a kind that no worker is known for.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended and print the result.")] = False,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Submit a job, or with --jsonl many in one transaction. Prints the ids."""
    options: dict[str, Any] = {
        "queue": queue,
        "priority": parse_priority(priority) if priority is not None else None,
        "delay": optional_duration(delay, field="delay"),
        "run_at": optional_time(run_at, field="run_at"),
        "max_attempts": max_attempts,
        "timeout": optional_duration(timeout, field="timeout"),
        "expires_at": optional_time(expires_at, field="expires_at"),
        "unique_key": unique_key,
        "limit_key": limit_key,
        "cost": cost,
        "cache": cache,
        "cache_for": optional_duration(cache_for, field="cache_for"),
        "cache_version": cache_version,
        "tags": tag or None,
        "metadata": parse_metadata(metadata),
        "batch_id": batch,
        "depends_on": _parents(after, on_unsuccessful),
    }
    given = {name: value for name, value in options.items() if value is not None}
    if "delay" in given and "run_at" in given:
        raise InvalidJob("delay", "--delay and --run-at exclude each other.", hint="Give one of them.")
    if jsonl is not None:
        _refuse_with_lines(payload=payload, unique_key=unique_key, wait=wait, after=after)
        _submit_lines(jsonl, kind=kind, given=given, any_kind=any_kind, as_json=as_json, database_url=database_url)
        return
    if kind is None:
        raise InvalidJob("kind", "missing.", hint="""Try: queue-pg submit chat '{"prompt": "Hello"}'""")
    value: Any = {} if payload is None else parse_payload(payload)
    from queue_pg.client_sync import SyncQueue

    settings = load_settings(database_url)
    policy = "accept" if any_kind else settings.unknown_kinds
    with SyncQueue(find_database(settings)) as client:
        check_kind(client, kind, given.get("queue", "default"), policy=policy)
        job = client.submit(kind, value, **given)
        if not wait:
            print_json(job) if as_json else print_line(str(job.id))
            return
        if not job.finished:
            say(f"{job.id} submitted; waiting for its end")
            job = client.wait(job.id)
    if as_json:
        print_json(job)
    elif job.state == JobState.COMPLETED:
        print_line(printable_json(json.dumps(plain(job.result), ensure_ascii=False, indent=2)))
    if job.state != JobState.COMPLETED:
        say(f"error: Job {job.id} {job.state}: {error_text(job)}")
        raise typer.Exit(1)


def check_kind(client: SyncQueue, kind: str, queue: str, *, policy: str) -> None:
    """Refuse a kind that looks mistyped; `policy` is the setting UNKNOWN_KINDS.

    `auto`: a kind that nothing resembles may get its worker later, unless live workers serve the queue already.
    """
    if policy == "accept":
        return
    known = [item.kind for item in client.kinds()]
    if kind in known:
        return
    alike = difflib.get_close_matches(kind, known, n=3, cutoff=0.7)
    served = any(worker.live and not worker.stopping and queue in worker.queues for worker in client.workers())
    if alike or served or policy == "refuse":
        error = UnknownKind(kind, alike)
        advice = error.hint or f"Known kinds: {', '.join(sorted(known))}."
        error.hint = f"{advice} To submit it all the same: --any-kind"
        raise error


def parse_metadata(text: str | None) -> dict[str, Any] | None:
    """Return the JSON object in `text`, as `parse_payload` reads it; None stays None."""
    if text is None:
        return None
    value = parse_payload(text, field="metadata")
    if not isinstance(value, dict):
        raise InvalidJob("metadata", "must be a JSON object.", hint="""Write it as '{"user": "ada"}'.""")
    return cast("dict[str, Any]", value)


def _parents(after: list[str] | None, on_unsuccessful: str | None) -> list[Parent] | None:
    policy = choice(on_unsuccessful, ["cancel", "run", "fail"], field="on_unsuccessful")
    if policy is not None and not after:
        raise InvalidJob("on_unsuccessful", "is about jobs to wait for; name them with --after.")
    parents: list[Parent] = []
    for given in after or ():
        job, _, name = given.partition("=")
        parents.append(Parent(parse_id(job), name or None, cast(OnUnsuccessful, policy or "cancel")))
    return parents or None


def _refuse_with_lines(*, payload: str | None, unique_key: str | None, wait: bool, after: list[str] | None) -> None:
    given = (("PAYLOAD", payload), ("--unique-key", unique_key), ("--wait", wait or None), ("--after", after or None))
    for name, value in given:
        if value is not None:
            raise InvalidJob("jsonl", f"{name} cannot be combined with --jsonl.", hint="See: queue-pg submit --help")


def _submit_lines(
    source: str, *, kind: str | None, given: dict[str, Any], any_kind: bool, as_json: bool, database_url: str | None
) -> None:
    from queue_pg.cli.lines import submit_lines

    settings = load_settings(database_url)
    policy = "accept" if any_kind else settings.unknown_kinds
    checked: set[tuple[str, str]] = set()

    def check(client: SyncQueue, job: NewJob) -> None:
        if (job.kind, job.queue) not in checked:
            check_kind(client, job.kind, job.queue, policy=policy)
            checked.add((job.kind, job.queue))

    submitted: list[Submitted] = submit_lines(find_database(settings), source, kind=kind, given=given, check=check)
    for item in submitted:
        if as_json:
            print_json({"line": item.line, "id": item.id, "created": item.created}, one_line=True)
        else:
            print_line(str(item.id))
    new = sum(item.created for item in submitted)
    again = f"; {len(submitted) - new:,} were there already (unique_key)" if new < len(submitted) else ""
    say(f"{new:,} job(s) submitted{again}.")
