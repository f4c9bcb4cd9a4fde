"""`batches` and `batch`: jobs that belong together, followed, cancelled and retried as one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from queue_pg.batch_model import BatchState
from queue_pg.cli.connect import open_queue
from queue_pg.cli.output import (
    Column,
    DatabaseUrl,
    JsonFlag,
    age,
    print_fields,
    print_json,
    print_line,
    print_table,
    say,
)
from queue_pg.cli.text import printable
from queue_pg.cli.values import choice, parse_duration, parse_payload
from queue_pg.errors import InvalidJob

if TYPE_CHECKING:
    from queue_pg.batch_model import Batch, BatchAction

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.", show_default=False)]
Callback = Annotated[
    str | None,
    typer.Option(help="A kind, the URL of a webhook, or a job as a JSON object, @file or -.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    batches = typer.Typer(
        invoke_without_command=True, help="List batches; make, close, cancel and retry them.", rich_markup_mode=None
    )
    batches.callback()(list_batches)
    batches.command("create")(create)
    batches.command("close")(close)
    batches.command("wait")(wait)
    batches.command("cancel")(cancel)
    batches.command("retry")(retry)
    app.add_typer(batches, name="batches")
    app.command("batch")(show)


def list_batches(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only batches in this state.")] = None,
    name: Annotated[str | None, typer.Option(help="Only batches of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many batches at most.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on where an earlier page ended.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List batches, newest first; make, close, cancel and retry them."""
    context.obj = (as_json, database_url)
    if context.invoked_subcommand is not None:
        return
    wanted = choice(state, [item.value for item in BatchState], field="state")
    with open_queue(database_url) as queue:
        page = queue.list_batches(state=wanted, name=name, limit=limit, cursor=cursor)
    if as_json:
        print_json(page)
        return
    now = datetime.now(UTC)
    print_table(
        [
            Column("id", whole=True),
            Column("name"),
            Column("state", style_by_value=True, whole=True),
            Column("jobs", right=True, whole=True),
            Column("completed", right=True, whole=True),
            Column("failed", right=True, whole=True, optional=True),
            Column("cancelled", right=True, whole=True, optional=True),
            Column("ended", right=True, whole=True),
            Column("age", right=True, whole=True),
        ],
        [
            [
                *(each.id, each.name, each.state, f"{each.total:,}", f"{each.completed:,}", f"{each.failed:,}"),
                *(f"{each.cancelled:,}", f"{each.percent:g} %", age((now - each.created_at).total_seconds())),
            ]
            for each in page.batches
        ],
        empty="No batches.",
    )
    if page.next_cursor is not None:
        say(f"There are more: --cursor {page.next_cursor}")


def show(batch_id: BatchId, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Show a batch with its counts."""
    with open_queue(database_url) as queue:
        _print(queue.get_batch(batch_id), as_json=as_json)


def create(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="For people.", show_default=False)] = None,
    on_complete: Callback = None,
    on_failed: Callback = None,
    on_all: Callback = None,
    on_first_failed: Callback = None,
    limit_key: Annotated[
        str | None, typer.Option(help="Limit key of the callbacks that do not name their own.", show_default=False)
    ] = None,
    cost: Annotated[
        int | None,
        typer.Option(min=0, help="Units each attempt of a callback takes from a rate; default: 1.", show_default=False),
    ] = None,
    metadata: Annotated[str | None, typer.Option(help="JSON object that callbacks get; JSON, @file or -.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Make an open batch and print its id; callbacks are submitted at its end. Add jobs with: submit --batch ID."""
    texts = {
        "on_complete": on_complete,
        "on_failed": on_failed,
        "on_all": on_all,
        "on_first_failed": on_first_failed,
    }
    terms = {name: value for name, value in (("limit_key", limit_key), ("cost", cost)) if value is not None}
    if terms and all(text is None for text in texts.values()):
        raise InvalidJob(
            next(iter(terms)),
            "is that of callbacks, and the batch has none.",
            hint="Give it beside --on-complete, --on-failed, --on-all or --on-first-failed.",
        )
    with open_queue(database_url or _outer(context)[1]) as queue:
        made = queue.create_batch(
            name,
            metadata=None if metadata is None else _object(metadata, "metadata"),
            **{field: _callback(text, field, terms) for field, text in texts.items()},
        )
    if as_json or _outer(context)[0]:
        print_json(made)
    else:
        print_line(str(made.id))


def close(
    context: typer.Context, batch_id: BatchId, as_json: JsonFlag = False, database_url: DatabaseUrl = None
) -> None:
    """Say that no more jobs will be added, so that the batch can end."""
    with open_queue(database_url or _outer(context)[1]) as queue:
        batch = queue.close_batch(batch_id)
    if as_json or _outer(context)[0]:
        print_json(batch)
    else:
        print_line(f"{batch.id} {batch.state}: {batch.total:,} job(s), {batch.unfinished:,} unfinished")


def wait(
    context: typer.Context,
    batch_id: BatchId,
    timeout: Annotated[str | None, typer.Option(help="Give up after this time, such as 30s or 5m.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Wait until a batch has ended. Exit code 0 when all its jobs completed, else 1."""
    limit = parse_duration(timeout, field="timeout").total_seconds() if timeout is not None else None
    with open_queue(database_url or _outer(context)[1]) as queue:
        batch = queue.wait_batch(batch_id, limit)
    _print(batch, as_json=as_json or _outer(context)[0])
    if batch.state != BatchState.COMPLETED:
        raise typer.Exit(1)


def cancel(
    context: typer.Context,
    batch_id: BatchId,
    reason: Annotated[str | None, typer.Option(help="Stored with its jobs.")] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Cancel a batch with all its unfinished jobs, running ones too."""
    with open_queue(database_url or _outer(context)[1]) as queue:
        action = queue.cancel_batch(batch_id, reason)
    _print_action(action, "cancelled", as_json=as_json or _outer(context)[0])


def retry(
    context: typer.Context,
    batch_id: BatchId,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="Allow each this many attempts in all.")] = None,
    and_cancelled: Annotated[bool, typer.Option("--and-cancelled", help="Cancelled jobs too.")] = False,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Run the failed jobs of a batch again."""
    with open_queue(database_url or _outer(context)[1]) as queue:
        action = queue.retry_failed(batch_id, max_attempts=max_attempts, and_cancelled=and_cancelled)
    _print_action(action, "put back", as_json=as_json or _outer(context)[0])


def _print_action(action: BatchAction, done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(action)
    else:
        print_line(f"{action.batch.id} {action.batch.state}: {action.jobs:,} job(s) {done}")


def _print(batch: Batch, *, as_json: bool) -> None:
    if as_json:
        print_json(batch)
        return
    counts = ("scheduled", "waiting", "queued", "running", "completed", "failed", "cancelled")
    print_fields(
        [
            ("id", batch.id),
            ("name", batch.name),
            ("state", batch.state),
            ("jobs", f"{batch.total:,}, {batch.percent:g} % ended"),
            *((state, f"{count:,}" if (count := getattr(batch, state)) else None) for state in counts),
            ("run", batch.run if batch.run > 1 else None),
            ("created", batch.created_at),
            ("closed", batch.closed_at),
            ("cancelled at", batch.cancelled_at),
            ("finished", batch.finished_at),
            ("metadata", batch.metadata),
            ("on complete", batch.on_complete),
            ("on failed", batch.on_failed),
            ("on all", batch.on_all),
            ("on first failed", batch.on_first_failed),
            ("first failed", batch.first_failed_at),
            ("its callback", batch.first_failed_id),
            ("callbacks", [str(each) for each in batch.callback_ids]),
            ("callback error", None if batch.callback_error is None else printable(batch.callback_error)),
        ]
    )


def _callback(text: str | None, field: str, terms: dict[str, Any]) -> dict[str, Any] | None:
    """Return a callback as an object with the `terms` that it does not name itself."""
    if text is None:
        return None
    if text.lstrip().startswith(("{", "[", "@", "-")):
        given = _object(text, field)
    elif text.lower().startswith(("http://", "https://")):
        # Imported here: it brings the driver along, which other commands can do without.
        from queue_pg.callbacks import WEBHOOK

        given = {"kind": WEBHOOK, "payload": {"url": text}}
    else:
        given = {"kind": text}
    return {**given, **{name: value for name, value in terms.items() if given.get(name) is None}}


def _object(text: str, field: str) -> dict[str, Any]:
    value = parse_payload(text, field=field)
    if not isinstance(value, dict):
        raise InvalidJob(field, "must be a JSON object.")
    return cast("dict[str, Any]", value)


def _outer(context: typer.Context) -> tuple[bool, str | None]:
    """Return `--json` and `--database-url` as given before the subcommand."""
    found: tuple[bool, str | None] = context.obj or (False, None)
    return found
