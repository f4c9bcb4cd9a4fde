"""`act` and `delete`: one action on all jobs that a filter names, and the deletion of single ones."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from queue_pg.action_model import JobAction, JobFilter
from queue_pg.cli.connect import open_queue
from queue_pg.cli.jobs import JobIds, each_id
from queue_pg.cli.output import DatabaseUrl, JsonFlag, print_json, print_line, say
from queue_pg.cli.text import printable
from queue_pg.cli.values import choice, optional_time, parse_id, parse_priority
from queue_pg.models import JobState

if TYPE_CHECKING:
    from queue_pg.action_model import ActionResult

DONE = {"cancel": "cancelled", "retry": "put back", "reprioritize": "reprioritized", "delete": "deleted"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("act")(act)
    app.command("delete")(delete)


def act(
    action: Annotated[
        str, typer.Argument(metavar="ACTION", help="cancel, retry, reprioritize or delete.", show_default=False)
    ],
    state: Annotated[str | None, typer.Option(help="Jobs in this state.")] = None,
    queue: Annotated[str | None, typer.Option(help="Jobs of this queue.")] = None,
    kind: Annotated[str | None, typer.Option(help="Jobs of this kind.")] = None,
    tag: Annotated[str | None, typer.Option(help="Jobs with this tag.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="Jobs of this batch.")] = None,
    parent: Annotated[str | None, typer.Option(metavar="ID", help="Jobs that belong to this one.")] = None,
    unique_key: Annotated[str | None, typer.Option(help="The job with this unique key.")] = None,
    rerun_of: Annotated[str | None, typer.Option(metavar="ID", help="Reruns of this job.")] = None,
    error_code: Annotated[str | None, typer.Option(help="Jobs whose error has this code.")] = None,
    created_after: Annotated[str | None, typer.Option(help="Submitted at this time or later.")] = None,
    created_before: Annotated[str | None, typer.Option(help="Submitted before this time.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every job; needed when no filter is given.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the jobs that match.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Annotated[str | None, typer.Option(help="Of cancel: stored with the jobs.")] = None,
    priority: Annotated[str | None, typer.Option(help="Of reprioritize: a number or a name.")] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="Of retry: attempts of each in all.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Of retry: do finished steps again.")] = False,
    cursor: Annotated[str | None, typer.Option(help="Go on where an interrupted one stopped.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Cancel, retry, reprioritize or delete all jobs that match. A terminal is asked first.

    In bites of a thousand: interrupted, it has done what it had done, and can be started again.
    """
    choice(action, get_args(JobAction), field="action")
    wanted = JobFilter(
        state=choice(state, [item.value for item in JobState], field="state"),
        queue=queue,
        kind=kind,
        tag=tag,
        batch_id=batch,
        parent_id=parent,
        unique_key=unique_key,
        rerun_of=rerun_of,
        error_code=error_code,
        created_after=optional_time(created_after, field="created_after"),
        created_before=optional_time(created_before, field="created_before"),
        all=every,
    )
    options: dict[str, Any] = {
        "reason": reason,
        "priority": None if priority is None else parse_priority(priority),
        "max_attempts": max_attempts,
        "fresh": fresh,
        "cursor": cursor,
    }
    with open_queue(database_url) as client:
        asks = not (yes or dry_run or as_json) and sys.stdin.isatty() and sys.stderr.isatty()
        if asks:
            counted = client.act_on_jobs(action, wanted, dry_run=True, **options)  # type: ignore[arg-type]
            typer.confirm(f"{action} {counted.matched:,} job(s)?", abort=True, err=True)
        result = client.act_on_jobs(action, wanted, dry_run=dry_run, **options)  # type: ignore[arg-type]
    if as_json:
        print_json(result)
    else:
        _print(result)


def delete(
    job_ids: JobIds,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel those first that have not ended.")] = False,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Delete jobs that have ended, with their events, logs, steps and artifacts."""
    with open_queue(database_url) as queue:

        def act_on(text: str) -> None:
            job_id = parse_id(text)
            queue.delete(job_id, cancel=cancel)
            print_json({"id": job_id, "deleted": True}, one_line=True) if as_json else print_line(f"{job_id} deleted")

        each_id(job_ids, act_on, as_json=as_json)


def _print(result: ActionResult) -> None:
    if result.dry_run:
        print_line(f"{result.matched:,} job(s) match")
        return
    print_line(f"{result.changed:,} job(s) {DONE[result.action]}")
    for reason, count in result.skipped.items():
        say(f"{count:,} skipped: {printable(reason)}")
