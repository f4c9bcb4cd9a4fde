"""Every command is documented, and every command line in the documentation is one that exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from queue_pg.cli.root import BUILT_IN, build

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
WRITTEN = re.compile(r"queue-pg ([a-z][^`|#\n)]*)")


def command_lines(page: Path) -> list[str]:
    text = page.read_text()
    blocks = "".join(re.findall(r"^```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    inline = "\n".join(re.findall(r"`(queue-pg [^`]+)`", text))
    return [found.strip() for found in WRITTEN.findall(blocks + "\n" + inline)]


def resolve(line: str) -> tuple[Any, list[str]]:
    """Return the command that a line names, and its options."""
    words = shlex.split(line, comments=True) if line.count("'") % 2 == 0 and line.count('"') % 2 == 0 else line.split()
    root = build()
    context = root.make_context("queue-pg", list(words))
    name, command, rest = root.resolve_command(context, list(words))
    assert name is not None
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, [word.partition("=")[0] for word in rest if re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_command_lines_exist(page: Path) -> None:
    for line in command_lines(page):
        if line.split()[0] not in BUILT_IN:
            continue  # prose, or a service's command: its own tests look
        command, options = resolve(line)
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert set(options) <= known | {"--help"}, f"{page.name}: queue-pg {line}"


@pytest.mark.parametrize("command", BUILT_IN)
def test_every_command_is_documented(command: str) -> None:
    assert f"queue-pg {command}" in (ROOT / "docs" / "cli.md").read_text()
