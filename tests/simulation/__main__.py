"""The command: `python -m tests.simulation [--seeds 1-1000] [--processes 2] [--plant BUG] [--trace]`."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.simulation.plants import Plant, find_plant, plant


def main() -> int:
    """Run seeds one after the other; return 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=_new_seeds(), help="such as 7 or 1-1000")
    parser.add_argument("--processes", type=int, help="that share the seeds; as many as there are processors")
    parser.add_argument("--dsn", help="an empty database of its own; without, a server is started")
    parser.add_argument("--plant", type=find_plant, help="a bug of plants.py, to see whether it is found")
    parser.add_argument("--until-broken", action="store_true", help="end with the first seed that breaks a promise")
    parser.add_argument("--trace", action="store_true", help="show what happened")
    parser.add_argument("--json", action="store_true", help="end with a line of figures")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets must not depend on the process.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])  # noqa: S606
    first, _, last = arguments.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    begin = time.monotonic()
    # Of what is told in detail there is little.
    alone = arguments.dsn or arguments.plant or arguments.trace or len(seeds) < 10
    processes = arguments.processes or (1 if alone else os.cpu_count() or 1)
    found = _share(seeds, processes) if processes > 1 else _run(seeds, arguments)
    seconds = time.monotonic() - begin
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        words = "  ".join(f"{name} {value:g}" for name, value in found["figures"].items())
        sys.stdout.write(
            f"seeds {arguments.seeds}: {found['ran']} in {seconds:.0f} s, {found['ran'] / seconds * 60:.0f} a minute,"
            f" {len(found['broken'])} broken: {words}\n"
        )
    return 1 if found["broken"] else 0


def _new_seeds() -> str:
    """Return SIM_SEED, or as many as SIM_SEEDS says that nobody has run."""
    if seed := os.environ.get("SIM_SEED"):
        return seed
    first, count = int(time.time()), os.environ.get("SIM_SEEDS", "2000")
    return f"{first}-{first + int(count) - 1}" if count.isdecimal() else count


def _seeds(text: str) -> str:
    if not re.fullmatch(r"\d+(-\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a seed, such as 7, nor several, such as 1-1000")
    return text


def _run(seeds: Sequence[int], arguments: Any) -> dict[str, Any]:
    logging.disable()
    bug: Plant | None = arguments.plant
    if bug is not None and bug.module:
        plant(bug)
    # Only now: what they import may have a bug to be planted.
    from tests.simulation.database import Database
    from tests.simulation.run import simulate

    planted = [(bug.function, bug.before, bug.after)] if bug is not None and bug.function else []
    found: dict[str, Any] = {"ran": 0, "broken": [], "fingerprints": {}}
    figures: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        database = Database(arguments.dsn or stack.enter_context(_server()), planted)
        stack.callback(database.close)
        for seed in seeds:
            outcome = simulate(database, seed)
            found["ran"] += 1
            found["fingerprints"][str(seed)] = outcome.fingerprint
            figures.update(outcome.hits)
            figures.update(outcome.figures)
            if arguments.trace:
                sys.stdout.write("\n".join(outcome.trace) + "\n")
            if outcome.violations:
                found["broken"].append(seed)
                for violation in outcome.violations[:20]:
                    sys.stdout.write(f"seed {seed}: BROKEN {violation}\n")
                sys.stdout.write(f"again: SIM_SEED={seed} make simulation\n")
                sys.stdout.flush()
                if arguments.until_broken:
                    break
    found["figures"] = dict(figures)
    return found


@contextlib.contextmanager
def _server() -> Any:
    from queue_pg.embedded import EmbeddedPostgres

    place = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder of a random name is made in it
    with tempfile.TemporaryDirectory(dir=place, prefix="queue-pg-simulation-") as folder:
        Path(folder).chmod(0o711)
        server = EmbeddedPostgres(Path(folder, "postgres"), durable=False)
        try:
            yield server.start()
        finally:
            server.stop()


def _share(seeds: range, processes: int) -> dict[str, Any]:
    """Run parts of the seeds in processes with a server each."""
    size = -(-len(seeds) // processes)
    running: list[subprocess.Popen[str]] = []
    for begin in range(0, len(seeds), size):
        part = seeds[begin : begin + size]
        command = [sys.executable, "-m", "tests.simulation", "--json", "--processes", "1"]
        command += ["--seeds", f"{part[0]}-{part[-1]}"]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    found: dict[str, Any] = {"ran": 0, "broken": [], "fingerprints": {}}
    figures: Counter[str] = Counter()
    for process in running:
        said, _ = process.communicate()
        *lines, last = said.splitlines() or ["{}"]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        part_found: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            part_found = json.loads(last)
        if process.returncode not in (0, 1) or not part_found:
            raise SystemExit(f"a process of the simulation has ended with {process.returncode}: {last}")
        found["ran"] += part_found["ran"]
        found["broken"] += part_found["broken"]
        found["fingerprints"].update(part_found["fingerprints"])
        figures.update(part_found["figures"])
    found["figures"] = dict(figures)
    return found


if __name__ == "__main__":
    sys.exit(main())
