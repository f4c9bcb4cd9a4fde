"""The command line `queue-pg`.

Kept free of imports: the entry point lands here, and `queue-pg --help` should be there at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (docs/cli.md has the table)."""
    try:
        # Looked for, not imported: rich takes a while, and most commands do without it.
        if find_spec("typer") is None or find_spec("rich") is None:
            sys.stderr.write("error: The command line needs typer and rich. Run: pip install 'queue-pg[cli]'\n")
            return 2
        from queue_pg.cli.root import run

        return run(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        # While that was being imported; run() itself answers Ctrl-C.
        return 130
