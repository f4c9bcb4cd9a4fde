"""The command line `queue-pg`.

Kept free of imports: the entry point lands here, and `queue-pg --help` should be there at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (docs/cli.md has the table)."""
    try:
        import rich
        import typer
    except ImportError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.stderr.write("error: The command line needs typer and rich. Run: pip install 'queue-pg[cli]'\n")
        return 2
    del rich, typer
    from queue_pg.cli.root import run

    return run(sys.argv[1:] if argv is None else list(argv))
