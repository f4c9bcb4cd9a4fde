"""What `demo` and `dev` show: status lines, and the log lines of the processes with their names before them."""

from __future__ import annotations

import contextlib
import sys

from rich.console import Console
from rich.text import Text

from queue_pg.cli.text import printable

NAME_WIDTH = 9
_COLOURS = ("cyan", "magenta", "blue", "green", "yellow")


class Screen:
    """Standard error, shared by status lines, logs and a progress bar. `logs=False` keeps the logs back."""

    def __init__(self, *, logs: bool) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.logs = logs
        self._styles: dict[str, str] = {}

    @property
    def interactive(self) -> bool:
        return sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Print a status line."""
        self._print(Text(printable(text)))

    def show(self, name: str, line: str) -> None:
        """Print what a process wrote."""
        if self.logs:
            style = self._styles.setdefault(name, _COLOURS[len(self._styles) % len(_COLOURS)])
            self._print(Text.assemble((name.ljust(NAME_WIDTH) + " | ", style), printable(line)))

    def _print(self, text: Text) -> None:
        # The terminal may be gone (closed window, broken pipe); stopping in order matters more than saying so.
        with contextlib.suppress(OSError):
            self.console.print(text)
