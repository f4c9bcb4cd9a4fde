"""`queues`, `scale`, `workers`, `stats`: the state of the whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from queue_pg.cli.connect import open_queue
from queue_pg.cli.output import Column, DatabaseUrl, JsonFlag, age, duration, print_json, print_line, print_table
from queue_pg.cli.text import printable
from queue_pg.cli.values import optional_duration, optional_until
from queue_pg.errors import InvalidJob

if TYPE_CHECKING:
    from queue_pg.models import QueueStats, WorkerInfo

STATES = ("scheduled", "waiting", "queued", "running", "completed", "failed", "cancelled")
SELDOM = frozenset({"scheduled", "waiting", "cancelled"})
QueueName = Annotated[str, typer.Argument(metavar="NAME", help="The queue.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    queues = typer.Typer(
        invoke_without_command=True, help="List queues; pause, drain and resume them.", rich_markup_mode=None
    )
    queues.callback()(list_queues)
    queues.command("list")(list_queues_again)
    queues.command("pause")(pause)
    queues.command("drain")(drain)
    queues.command("resume")(resume)
    app.add_typer(queues, name="queues")
    app.command("scale")(scale)
    app.command("workers")(workers)
    app.command("stats")(stats)


def list_queues(context: typer.Context, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """List queues with their counts; pause, drain and resume them."""
    context.obj = (as_json, database_url)
    if context.invoked_subcommand is None:
        show_queues(as_json=as_json, database_url=database_url)


def list_queues_again(context: typer.Context, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """List queues with their counts."""
    before = _outer(context)
    show_queues(as_json=as_json or before[0], database_url=database_url or before[1])


def show_queues(*, as_json: bool, database_url: str | None) -> None:
    """Print one line per queue."""
    with open_queue(database_url) as queue:
        found = queue.stats()
    if as_json:
        print_json({"queues": found})
        return
    print_table(
        [
            Column("queue"),
            *(Column(state, right=True, whole=True, optional=state in SELDOM) for state in STATES),
            Column("oldest", right=True, whole=True, optional=True),
            Column("state", whole=True, optional=True),
        ],
        [
            (item.queue, *_counts(item), age(item.oldest_queued_seconds), _state_of(item))
            for item in sorted(found, key=lambda item: item.queue)
        ],
        empty="No queues yet: a queue exists once a job was submitted to it.",
    )


def pause(
    context: typer.Context,
    name: QueueName,
    until: Annotated[
        str | None, typer.Option(help="Resume by itself: a time with its zone, or a duration such as 30m.")
    ] = None,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Stop handing out jobs of a queue. Running ones go on."""
    before = _outer(context)
    when = optional_until(until, field="until")
    if when is not None and when <= datetime.now(UTC):
        raise InvalidJob(
            "until", f"{until!r} is not in the future.", hint="To end a pause: queue-pg queues resume NAME"
        )
    with open_queue(database_url or before[1]) as queue:
        queue.pause(name, until=when)
    if as_json or before[0]:
        print_json({"queue": name, "paused": True, "paused_until": when})
    else:
        print_line(f"{printable(name)} paused" + (f" until {when.astimezone():%Y-%m-%d %H:%M:%S %Z}" if when else ""))


def drain(context: typer.Context, name: QueueName, as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Take no new jobs into a queue until it is resumed. Those it has are done."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        queue.drain(name)
    if as_json or before[0]:
        print_json({"queue": name, "state": "draining"})
    else:
        print_line(f"{printable(name)} draining")


def resume(
    context: typer.Context, name: QueueName, as_json: JsonFlag = False, database_url: DatabaseUrl = None
) -> None:
    """Hand out jobs of a paused queue again, or have a draining one take jobs again."""
    before = _outer(context)
    with open_queue(database_url or before[1]) as queue:
        queue.resume(name)
    if as_json or before[0]:
        print_json({"queue": name, "paused": False})
    else:
        print_line(f"{printable(name)} resumed")


def scale(
    name: QueueName,
    slots: Annotated[int | None, typer.Option(min=1, help="Jobs that a worker runs at once.")] = None,
    jobs_per_worker: Annotated[float | None, typer.Option(help="One worker for as many jobs.")] = None,
    target_wait: Annotated[str | None, typer.Option(help="Instead: what is queued starts within this time.")] = None,
    job_seconds: Annotated[float | None, typer.Option(help="How long a job takes.")] = None,
    min_workers: Annotated[int, typer.Option("--min", min=0, help="Workers at least.")] = 0,
    max_workers: Annotated[int, typer.Option("--max", min=0, help="Workers at most.")] = 100,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Print how many workers a queue needs, for scripts that start and stop them."""
    with open_queue(database_url) as queue:
        found = queue.scale(
            name,
            slots=slots,
            jobs_per_worker=jobs_per_worker,
            target_wait=optional_duration(target_wait, field="target_wait"),
            job_seconds=job_seconds,
            min_workers=min_workers,
            max_workers=max_workers,
        )
    print_json(found) if as_json else print_line(str(found.desired_workers))


def workers(as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """List worker processes and how they are doing."""
    with open_queue(database_url) as queue:
        found = queue.workers()
    if as_json:
        print_json({"workers": found})
        return
    now = datetime.now(UTC)
    print_table(
        [
            Column("worker"),
            Column("state", style_by_value=True, whole=True),
            Column("host"),
            Column("pid", right=True, whole=True),
            Column("queues"),
            Column("kinds", wrap=True),
            Column("busy", right=True, whole=True),
            Column("done", right=True, whole=True),
            Column("failed", right=True, optional=True),
            Column("up", right=True, whole=True),
            Column("seen", right=True, whole=True),
        ],
        [
            [
                *(w.id, _state(w), w.host, w.pid, w.queues, w.kinds, f"{w.active}/{w.capacity}", w.processed, w.failed),
                *(age((now - w.started_at).total_seconds()), age((now - w.heartbeat_at).total_seconds())),
            ]
            for w in sorted(found, key=lambda w: (not w.live, w.id))
        ],
        empty="No workers. Start one with: queue-pg worker",
    )


def stats(as_json: JsonFlag = False, database_url: DatabaseUrl = None) -> None:
    """Show how many jobs are in which state, over all queues."""
    from queue_pg import store_sync
    from queue_pg.horizon import describe

    with open_queue(database_url) as queue:
        found = queue.stats()
        with queue.connection() as connection:
            holder = store_sync.horizon(connection)
    totals = {state: sum(getattr(item, state) for item in found) for state in STATES}
    oldest = max((item.oldest_queued_seconds or 0.0 for item in found), default=0.0)
    if as_json:
        print_json({"jobs": totals, "oldest_queued_seconds": oldest, "queues": found, "horizon": holder})
        return
    print_table(
        [Column("state", style_by_value=True), Column("jobs", right=True)],
        [(state, f"{count:,}") for state, count in totals.items()],
        empty="",
    )
    if totals["queued"]:
        print_line(f"The oldest queued job has waited for {duration(oldest)}.")
    if holder is not None:
        print_line(printable(describe(holder)))


def _counts(item: QueueStats) -> list[str]:
    return [f"{getattr(item, state):,}" for state in STATES]


def _state(worker: WorkerInfo) -> str:
    if not worker.live:
        return "gone"
    return "stopping" if worker.stopping else "live"


def _state_of(item: QueueStats) -> str:
    if item.state == "active":
        return ""
    until = f" until {item.paused_until.astimezone():%Y-%m-%d %H:%M:%S}" if item.paused_until else ""
    return f"{item.state}{until}"


def _outer(context: typer.Context) -> tuple[bool, str | None]:
    """Return `--json` and `--database-url` as given before the subcommand."""
    found: tuple[bool, str | None] = context.obj or (False, None)
    return found
