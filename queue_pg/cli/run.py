"""`run`: a command as a job, as if it ran here."""

from __future__ import annotations

import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from queue_pg.cli.connect import find_database, load_settings
from queue_pg.cli.output import DatabaseUrl, error_text, print_text, say
from queue_pg.cli.submit import check_kind
from queue_pg.cli.text import printable_lines
from queue_pg.cli.values import optional_duration, parse_priority
from queue_pg.errors import InvalidJob, QueuePgError
from queue_pg.models import JobState

if TYPE_CHECKING:
    from queue_pg.client_sync import SyncQueue
    from queue_pg.models import Job, JobEvent

KIND = "command"
# So that the command's own timeout, whose error has its output, comes before the job's.
_MARGIN = timedelta(seconds=10)


def register(app: typer.Typer) -> None:
    """Add the command."""
    # Options end where the command begins: `queue-pg run ls -l` needs no `--`.
    app.command("run", context_settings={"allow_interspersed_args": False})(run)


def run(
    cmd: Annotated[list[str], typer.Argument(metavar="[--] CMD...", help="The program and its arguments.")],
    stdin: Annotated[
        str | None, typer.Option("--input", metavar="TEXT", help="Its standard input: text, @file, or - for ours.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable; may be repeated.")] = None,
    timeout: Annotated[str | None, typer.Option(help="How long it may take, such as 30s or 2h.")] = None,
    queue: Annotated[str, typer.Option(help="The queue.")] = "default",
    priority: Annotated[
        str | None, typer.Option(help="Higher runs first: a number, or critical, high, normal, low, batch.")
    ] = None,
    max_attempts: Annotated[int, typer.Option(min=1, max=1000, help="How often it may run in all.")] = 1,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the id and do not wait.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Run a command on a worker that allows it, and show what it writes while it runs.

    Ends with the command's own exit code, 128 and its number for a signal. Ctrl-C cancels it.
    """
    limit = optional_duration(timeout, field="timeout")
    payload: dict[str, Any] = {"cmd": cmd}
    if stdin is not None:
        payload["input"] = _input(stdin)
    if env:
        payload["env"] = dict(_variable(given) for given in env)
    if limit is not None:
        payload["timeout_secs"] = limit.total_seconds()
    from queue_pg.client_sync import SyncQueue

    settings = load_settings(database_url)
    with SyncQueue(find_database(settings)) as client:
        try:
            check_kind(client, KIND, queue, policy=settings.unknown_kinds)
        except QueuePgError as error:
            error.hint = "No worker has run commands yet: start one with QUEUE_PG_COMMANDS (docs/commands.md)."
            raise
        job = client.submit(
            KIND,
            payload,
            queue=queue,
            priority=0 if priority is None else parse_priority(priority),
            max_attempts=max_attempts,
            timeout=None if limit is None else limit + _MARGIN,
        )
        if detach:
            print_text(str(job.id))
            return
        ended = _follow(client, job)
    raise typer.Exit(_exit_code(ended))


def _follow(client: SyncQueue, job: Job) -> Job:
    """Show what the command writes until the job has ended."""
    say(f"{job.id} submitted")
    try:
        for event in client.events(job.id):
            _show(event)
        return client.get(job.id)
    except KeyboardInterrupt:
        try:
            client.cancel(job.id, "interrupted")
        except QueuePgError as error:
            # It has ended meanwhile, or the database is away.
            say(f"{job.id}: {error.message}")
        else:
            say(f"{job.id} cancelled")
        raise


def _show(event: JobEvent) -> None:
    if event.type != "log" or not isinstance(event.data, dict):
        return
    said = cast("dict[str, Any]", event.data)
    line = str(said.get("line", ""))
    if said.get("stream") == "stdout":
        print_text(line)
        # Not when the pipe's buffer is full: it is to be seen as it comes.
        sys.stdout.flush()
    else:
        sys.stderr.write(printable_lines(line) + "\n")
        sys.stderr.flush()


def _exit_code(job: Job) -> int:
    """Return the command's exit code, where it has one, and say what else happened."""
    if job.state == JobState.COMPLETED:
        return 0
    error: dict[str, Any] = job.error if isinstance(job.error, dict) else {}
    say(f"error: Job {job.id} {job.state}: {error_text(job)}")
    code, name = error.get("exit_code"), error.get("signal")
    if error.get("code") == "exit_code" and isinstance(code, int) and 0 < code < 256:
        return code
    if error.get("code") == "killed_by_signal" and isinstance(name, str) and name in signal.Signals.__members__:
        return 128 + signal.Signals[name]
    return 1


def _input(given: str) -> str:
    try:
        if given == "-":
            return sys.stdin.buffer.read().decode()
        if given.startswith("@"):
            return Path(given[1:]).read_text("utf-8")
    except OSError as error:
        raise InvalidJob("input", f"{given[1:]} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InvalidJob(
            "input", f"is not UTF-8 at byte {error.start}.", hint="Put other data into an artifact of the job."
        ) from None
    return given


def _variable(given: str) -> tuple[str, str]:
    name, separator, value = given.partition("=")
    if not separator:
        raise InvalidJob("env", f"{given!r} is no variable.", hint="Write NAME=VALUE.")
    return name, value
