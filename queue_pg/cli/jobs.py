"""`get`, `wait`, `list`, `cancel`, `retry`, `reprioritize`, `why`: commands about jobs that exist."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from queue_pg.cli.connect import open_queue
from queue_pg.cli.output import (
    Column,
    DatabaseUrl,
    JsonFlag,
    age,
    cell,
    duration,
    error_text,
    plain,
    print_fields,
    print_json,
    print_line,
    print_table,
    say,
)
from queue_pg.cli.root import report
from queue_pg.cli.values import choice, optional_time, parse_duration, parse_id, parse_priority
from queue_pg.errors import QueuePgError, WaitTimeout
from queue_pg.models import JobState

if TYPE_CHECKING:
    from queue_pg.models import Dependencies, Job, WhyWaiting

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]
JobIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Job ids; - reads them from standard input.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("get")(get)
    app.command("wait")(wait)
    app.command("list")(list_jobs)
    app.command("cancel")(cancel)
    app.command("retry")(retry)
    app.command("reprioritize")(reprioritize)
    app.command("why")(why)


def get(job_id: JobId, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Show a job with its payload, result or error, and the jobs it waits for or is waited for by."""
    with open_queue(database_url) as queue:
        job = queue.get(parse_id(job_id))
        found = queue.dependencies(job.id)
        reasons = [] if job.finished or job.state == JobState.RUNNING else queue.why_waiting(job.id)
    related = bool(found.parents_count or found.children_count)
    if as_json:
        fields: dict[str, Any] = {**plain(job), "waiting": plain(reasons[0]) if reasons else None}
        print_json({**fields, "dependencies": plain(found)} if related else fields)
        return
    show_job(job, reasons)
    if related:
        show_dependencies(found)


def wait(
    job_ids: JobIds,
    timeout: Annotated[str | None, typer.Option(help="Give up after this time, such as 30s or 5m.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Wait until jobs have ended. Exit code 0 when all completed, else 1."""
    limit = parse_duration(timeout, field="timeout").total_seconds() if timeout is not None else None
    started = time.monotonic()
    with open_queue(database_url) as queue:

        def ended(text: str) -> Job:
            job_id = parse_id(text)
            left = None if limit is None else limit - (time.monotonic() - started)
            if left is None or left > 0:
                with suppress(WaitTimeout):
                    return queue.wait(job_id, timeout=left)
            # Past the limit each is still looked at once, so that those that have ended are reported.
            job = queue.get(job_id)
            if not job.finished:
                raise WaitTimeout(job_id, limit or 0.0, job.state)
            return job

        jobs = _each(job_ids, ended, as_json=as_json, tell_errors=True)
    if any(job.state != JobState.COMPLETED for job in jobs):
        raise typer.Exit(1)


def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only jobs of this queue.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="Only jobs of this batch.")] = None,
    rerun_of: Annotated[str | None, typer.Option(help="Only reruns of this job.")] = None,
    error_code: Annotated[str | None, typer.Option(help="Only jobs whose error has this code.")] = None,
    created_after: Annotated[str | None, typer.Option(help="Only jobs submitted at this time or later.")] = None,
    created_before: Annotated[str | None, typer.Option(help="Only jobs submitted before this time.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many jobs at most.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on where an earlier page ended.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List jobs, newest first. In a pipe: one id per line."""
    wanted = choice(state, [item.value for item in JobState], field="state")
    with open_queue(database_url) as client:
        page = client.list(
            state=JobState(wanted) if wanted else None,
            queue=queue,
            kind=kind,
            tag=tag,
            batch_id=batch,
            rerun_of=None if rerun_of is None else parse_id(rerun_of),
            error_code=error_code,
            created_after=optional_time(created_after, field="created_after"),
            created_before=optional_time(created_before, field="created_before"),
            limit=limit,
            cursor=cursor,
        )
    if as_json:
        print_json({"jobs": [_listed(job) for job in page.jobs], "next_cursor": page.next_cursor})
        return
    if sys.stdout.isatty():
        now = datetime.now(UTC)
        print_table(
            [
                Column("id", whole=True),
                Column("kind"),
                Column("queue"),
                Column("state", style_by_value=True, whole=True),
                Column("try", right=True, whole=True),
                Column("age", right=True, whole=True),
                Column("took", right=True, whole=True),
            ],
            [
                [
                    *(job.id, job.kind, job.queue, job.state, f"{job.attempt}/{job.max_attempts}"),
                    *(age((now - job.created_at).total_seconds()), took(job)),
                ]
                for job in page.jobs
            ],
            empty="No jobs.",
        )
    else:
        for job in page.jobs:
            print_line(str(job.id))
    if page.next_cursor is not None:
        say(f"There are more: --cursor {page.next_cursor}")


def cancel(
    job_ids: JobIds,
    reason: Annotated[str | None, typer.Option(help="Stored with the job.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Cancel unfinished jobs, running ones too."""
    with open_queue(database_url) as queue:
        _each(job_ids, lambda job_id: queue.cancel(parse_id(job_id), reason), as_json=as_json)


def retry(
    job_ids: JobIds,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="Allow this many attempts in all.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do the steps again that they have finished.")] = False,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Run failed or cancelled jobs again."""
    with open_queue(database_url) as queue:
        _each(job_ids, lambda job_id: queue.retry(parse_id(job_id), max_attempts, fresh=fresh), as_json=as_json)


def reprioritize(
    job_ids: JobIds,
    priority: Annotated[
        str,
        typer.Option(help="Higher runs first: a number, or critical, high, normal, low, batch.", show_default=False),
    ],
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Give unfinished jobs another priority."""
    number = parse_priority(priority)
    with open_queue(database_url) as queue:
        _each(job_ids, lambda job_id: queue.reprioritize(parse_id(job_id), number), as_json=as_json)


def why(job_id: JobId, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Say why a job is not running."""
    with open_queue(database_url) as queue:
        job = queue.get(parse_id(job_id))
        reasons = queue.why_waiting(job.id)
    if as_json:
        print_json({"id": job.id, "state": job.state, "reasons": reasons})
        return
    if not reasons:
        print_line(f"{job.id} is {job.state}; nothing holds it back.")
    for found in reasons:
        until = f" (until {cell(found.until)})" if found.until is not None else ""
        held_by = f" [{cell(found.held_by)}]" if found.held_by is not None else ""
        print_line(f"{cell(found.reason)}: {cell(found.detail)}{until}{held_by}")


def show_job(job: Job, reasons: Sequence[WhyWaiting] = ()) -> None:
    """Print a job for people."""
    print_fields(
        [
            ("id", job.id),
            ("kind", job.kind),
            ("state", job.state),
            ("waits", "; ".join(f"{each.reason}: {each.detail}" for each in reasons) or None),
            ("queue", job.queue),
            ("priority", job.priority or None),
            ("attempt", f"{job.attempt} of {job.max_attempts}"),
            ("timeout", job.timeout),
            ("tags", job.tags),
            ("unique key", job.unique_key),
            ("batch", job.batch_id),
            ("rerun of", job.rerun_of),
            ("cached from", job.cached_from),
            ("limit key", job.limit_key),
            ("cost", job.cost if job.cost != 1 else None),
            ("worker", job.worker_id),
            ("lease until", job.lease_expires_at),
            ("created", job.created_at),
            ("run at", job.run_at if job.state == JobState.SCHEDULED else None),
            ("expires", job.expires_at),
            ("started", job.started_at),
            ("finished", job.finished_at),
            ("took", took(job) or None),
            ("metadata", job.metadata),
            ("payload", job.payload),
            ("result", job.result),
            ("error", job.error),
        ]
    )


def show_dependencies(found: Dependencies) -> None:
    """Print parents and children, a line each."""
    for title, jobs, count in (
        ("parents", found.parents, found.parents_count),
        ("children", found.children, found.children_count),
    ):
        if not count:
            continue
        print_line(f"{title} ({count:,})")
        for job in jobs:
            called = f"as {job.name}" if title == "parents" else f"calls it {job.name}"
            policy = "" if job.on_unsuccessful == "cancel" else f", if unsuccessful: {job.on_unsuccessful}"
            print_line(f"  {job.id}  {job.state or 'forgotten'}  {called}{policy}")
        if count > len(jobs):
            print_line(f"  and {count - len(jobs):,} more")


def took(job: Job) -> str:
    """Return how long the last attempt took, or has been running."""
    if job.started_at is None:
        return ""
    return duration(((job.finished_at or datetime.now(UTC)) - job.started_at).total_seconds())


def _listed(job: Job) -> dict[str, Any]:
    # A list does not read them; null would say that they are empty.
    fields: dict[str, Any] = plain(job)
    return {name: value for name, value in fields.items() if name not in {"payload", "result"}}


def _all_ids(given: list[str]) -> list[str]:
    return [word for text in given for word in (sys.stdin.read().split() if text == "-" else [text])]


def each_id(given: list[str], act: Callable[[str], object], *, as_json: bool) -> None:
    """Do one action to each id; go on past refusals, and end with the first one when there was any."""
    first: QueuePgError | None = None
    ids = _all_ids(given)
    for job_id in ids:
        try:
            act(job_id)
        except QueuePgError as error:
            # A lost database concerns all of them; a refusal only this one.
            if error.exit_code == 5 or len(ids) == 1:
                raise
            report(error, as_json=as_json)
            first = first or error
    if first is not None:
        raise typer.Exit(first.exit_code)


def _each(given: list[str], act: Callable[[str], Job], *, as_json: bool, tell_errors: bool = False) -> list[Job]:
    """Do one action to each job and print it, as `each_id` does."""
    done: list[Job] = []

    def act_and_print(job_id: str) -> None:
        job = act(job_id)
        done.append(job)
        print_json(job, one_line=True) if as_json else print_line(f"{job.id} {job.state}")
        if tell_errors and not as_json and job.error is not None:
            say(f"{job.id}: {error_text(job)}")

    each_id(given, act_and_print, as_json=as_json)
    return done
