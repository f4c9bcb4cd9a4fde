"""The root command: which module has which command, and what an error looks like."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from queue_pg.cli.text import one_line, printable_json
from queue_pg.errors import QueuePgError

INTERRUPTED = 130
BROKEN_PIPE = 141

# Command -> module with a `register(app)`. A module is imported when one of its commands is asked for.
BUILT_IN = {
    "submit": "submit",
    "run": "run",
    "get": "jobs",
    "wait": "jobs",
    "list": "jobs",
    "cancel": "jobs",
    "retry": "jobs",
    "reprioritize": "jobs",
    "why": "jobs",
    "act": "actions",
    "delete": "actions",
    "artifacts": "artifacts",
    "tasks": "tasks",
    "templates": "templates",
    "attempts": "events",
    "events": "events",
    "logs": "events",
    "batches": "batches",
    "batch": "batches",
    "steps": "steps",
    "signal": "steps",
    "rerun": "steps",
    "queues": "queues",
    "schedules": "schedules",
    "limits": "limits",
    "scale": "queues",
    "workers": "queues",
    "stats": "queues",
    "load": "load",
    "migrate": "migrate",
    "reaper": "reaper",
    "dev": "dev",
    "demo": "demo",
    "config": "config",
    "doctor": "doctor",
}

# What the services' commands are for, so that `queue-pg --help` need not import a web server. A test compares.
SERVICES = {
    "serve": "Serve the HTTP API until SIGTERM or Ctrl-C.",
    "worker": "Claim jobs and run them, until SIGTERM or Ctrl-C.",
}


class UsageError(QueuePgError):
    """The command line makes no sense."""

    code = "usage"
    exit_code = 2


@cache
def _service_commands() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group="queue_pg.commands")}


class LazyGroup(TyperGroup):
    """A group that imports a command's module only when the command is needed.

    Parameters are `Any` because typer 0.16+ and older ones disagree on which click these types come from.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return [*BUILT_IN, *sorted(set(_service_commands()) - set(BUILT_IN))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command to list it. Those of the services are only stand-ins until they are resolved."""
        if cmd_name not in self.commands:
            if cmd_name in SERVICES and cmd_name in _service_commands():
                return _commands_of(lambda app: app.command(cmd_name, help=SERVICES[cmd_name])(_nothing))[cmd_name]
            self._load(cmd_name)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command to run."""
        name = args[0]
        if name not in self.commands:
            self._load(name)
        if name not in self.commands and not name.startswith("-"):
            raise UsageError(f"No command {name!r}.", hint=_did_you_mean(name, self.list_commands(ctx)))
        return super().resolve_command(ctx, args)

    def _load(self, name: str) -> None:
        if name in BUILT_IN:
            register = import_module(f"queue_pg.cli.{BUILT_IN[name]}").register
        elif name in _service_commands():
            try:
                register = _service_commands()[name].load()
            except ImportError as error:
                message = f"The command {name!r} cannot be loaded: {error}."
                raise UsageError(message, hint="Install what it needs: pip install 'queue-pg[all]'") from error
        else:
            return
        for found, command in _commands_of(register).items():
            self.commands.setdefault(found, command)


def _commands_of(register: Callable[[typer.Typer], object]) -> dict[str, Any]:
    scratch = typer.Typer(rich_markup_mode=None)
    scratch.callback()(_nothing)
    register(scratch)
    return dict(typer.main.get_group(scratch).commands)


def _nothing() -> None: ...


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=2)
    return f"Did you mean {' or '.join(close)}?" if close else "See: queue-pg --help"


def _print_version(value: bool) -> None:
    if value:
        try:
            version = metadata.version("queue-pg")
        except metadata.PackageNotFoundError:
            version = "(a checkout that nobody installed)"
        sys.stdout.write(f"queue-pg {version}\n")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """A durable queue for LLM work on the Postgres you already run.

    First steps: queue-pg demo (a whole system with an embedded Postgres), queue-pg doctor (what is wrong).
    """


def build() -> Any:
    """Return the root command."""
    app = typer.Typer(
        name="queue-pg",
        cls=LazyGroup,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    return typer.main.get_command(app)


def run(argv: list[str]) -> int:
    """Run the command line `argv`; print any error as one line on stderr and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not turn a result into a traceback.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    as_json = "--json" in (argv[: argv.index("--")] if "--" in argv else argv)
    try:
        code = build().main(args=argv or ["--help"], prog_name="queue-pg", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as error:
        # click turns a broken pipe into this.
        if isinstance(error.__context__, BrokenPipeError):
            return _reader_gone()
        raise
    except QueuePgError as error:
        return report(error, as_json=as_json)
    except Exception as error:
        return report(_understood(error), as_json=as_json)


def _reader_gone() -> int:
    # What is still buffered must not go to the pipe at interpreter exit, or Python complains then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _understood(error: Exception) -> QueuePgError:
    """Return `error` as one of ours, or raise it again when it is a defect."""
    message = getattr(error, "format_message", None)
    if callable(message):  # click's own errors, whichever click typer brings along
        text = str(message()).strip()
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "queue-pg"
        return UsageError(" ".join(text.split()), hint=f"See: {path} --help")
    if type(error).__module__.partition(".")[0] in {"psycopg", "psycopg_pool"}:
        from queue_pg.cli.connect import understood_database_error

        translated = understood_database_error(error)
        if translated is not None:
            return translated
    raise error


def report(error: QueuePgError, *, as_json: bool) -> int:
    """Print `error` on stderr: one line for people, one object for programs. Return its exit code."""
    # Messages of Postgres and of the driver have lines and tabs.
    message = " ".join(error.message.split())
    if as_json:
        body: dict[str, Any] = {"code": error.code, "message": message, "hint": error.hint}
        for name in ("field", "suggestions", "state"):
            value = getattr(error, name, None)
            if value:
                body[name] = value
        line = printable_json(json.dumps({"error": body}, ensure_ascii=False, default=str))
    else:
        line = one_line(f"error: {message} {error.hint or ''}")
    sys.stderr.write(line + "\n")
    return error.exit_code
