"""`python -m queue_pg.cli`: the same command line, without needing the script on the path."""

from __future__ import annotations

import sys

from queue_pg.cli import main

if __name__ == "__main__":
    sys.exit(main())
