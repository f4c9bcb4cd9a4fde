"""`python -m brain.worker cluster|mission [options of queue-pg worker]`: a worker process of the pool."""

from __future__ import annotations

import sys

from brain.payloads import CLUSTER_QUEUE, MISSION_QUEUE
from queue_pg.cli import main

POOLS = {"cluster": CLUSTER_QUEUE, "mission": MISSION_QUEUE}


def run(arguments: list[str]) -> int:
    """Serve one queue until SIGTERM, which lets running tasks end; return the exit code."""
    if not arguments or arguments[0] not in POOLS:
        sys.stderr.write(f"error: say which pool: {' or '.join(POOLS)}\n")
        return 2
    pool, *options = arguments
    return main(["worker", f"brain.workers:{pool}_tasks", "--queues", POOLS[pool], *options])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
