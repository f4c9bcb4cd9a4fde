"""Find the user's tasks: `module`, or `module:attribute` for a registry of its own."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from queue_pg.errors import ConfigError
from queue_pg.tasks import Tasks, default_tasks
from queue_pg_workers.commands.runner import CommandRunner
from queue_pg_workers.kinds import Handler, handlers_of
from queue_pg_workers.providers.base import Provider
from queue_pg_workers.webhooks.sender import WebhookSender


def load_handlers(
    target: str | None,
    provider: Provider,
    sender: WebhookSender | None = None,
    commands: CommandRunner | None = None,
) -> dict[str, Handler]:
    """Return all handlers of a worker by kind. Raise ConfigError, naming the module, when it cannot be imported."""
    return handlers_of(load_tasks(target) if target else Tasks(), provider, sender, commands)


def load_tasks(target: str) -> Tasks:
    """Import the target from the current folder or the Python path and return its registry."""
    module_name, _, attribute = target.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    if module_name.endswith(".py") or "/" in module_name or module_name.startswith("."):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(
            f"{target!r} is a file's path; a worker takes a module's name.", setting="module", hint=f"Try: {dotted}"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        # SystemExit too: settings modules like to end the process, which would pass for an orderly stop.
        raise ConfigError(
            f"The worker's module {module_name!r} cannot be imported: {_one_line(error)}.",
            setting="module",
            hint=f"It is looked for in {here} and on the Python path.",
        ) from error
    if not attribute:
        tasks = default_tasks
    else:
        found: Any = module
        for name in attribute.split("."):
            found = getattr(found, name, None)
        if not isinstance(found, Tasks):
            raise ConfigError(
                f"{target!r} is no registry of tasks.", setting="module", hint=f"Give {module_name}:<a queue_pg.Tasks>."
            )
        tasks = found
    if not len(tasks):
        raise ConfigError(
            f"The worker's module {module_name!r} has no tasks.",
            setting="module",
            hint="Decorate functions with @queue_pg.task, or name your registry: module:attribute.",
        )
    return tasks


def _one_line(error: BaseException) -> str:
    """Say what went wrong, and where: the deepest place in the user's own code, not in the import machinery."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")
    places = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and "importlib" not in frame.filename and frame.filename != __file__
    ]
    return f"{text} ({places[-1]})" if places else text
