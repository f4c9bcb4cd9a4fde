"""`python -m tests.faults [FAULT..] [--seed N] [--short] [--minutes N] [--hours N] [--folder PATH] [--write]`.

With `--recheck` it makes no run, and judges those that are in the folder again, by their ledgers.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.faults import report
from tests.faults.arena import Verdict, run
from tests.faults.plan import FAULTS
from tests.faults.record import Record


def main(argv: Sequence[str] | None = None) -> int:
    """Run faults one after the other; return 1 when a promise was broken, 3 when none was and some were not begun."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FAULT", help="such as F1; all without")
    parser.add_argument("--seed", type=int, help="of everything that is random; the time without")
    parser.add_argument("--short", action="store_true", help="a few hits each, in minutes instead of hours")
    parser.add_argument("--minutes", type=_span, help="begin no more faults after so long; the same seed goes on")
    parser.add_argument("--folder", type=Path, default=Path(".faults"), help="where ledgers and verdicts go")
    parser.add_argument("--hours", type=_span, default=0.0, help="of a soak after F38")
    parser.add_argument(
        "--write", action="store_true", help="publish the full runs of this seed in docs/reliability.md"
    )
    parser.add_argument("--recheck", action="store_true", help="judge the runs in the folder again, by their ledgers")
    arguments = parser.parse_args(argv)
    known = {fault.name for fault in FAULTS}
    if unknown := set(arguments.names) - known:
        parser.error(f"there are no faults {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    if arguments.recheck:
        return _recheck(arguments.folder, arguments.names, arguments.seed)
    if arguments.seed is None:
        arguments.seed = int(time.time())
    # As Ctrl-C does: whatever runs is ended, and what was mounted is taken away.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    logging.disable()  # applications that tell of an outage are not the news here
    failed, begin = False, time.monotonic()
    impossible: list[str] = []
    left: list[str] = []
    for fault in FAULTS:
        if arguments.names and fault.name not in arguments.names:
            continue
        if (reason := fault.obstacle()) is not None:
            sys.stdout.write(f"{fault.name} {fault.title}: not on this machine, {reason}\n")
            impossible.append(fault.name)
            continue
        folder = arguments.folder / f"{fault.name}-{arguments.seed}{'-short' if arguments.short else ''}"
        if (folder / "verdict.json").exists():
            continue  # an interrupted invocation goes on with the same seed
        if arguments.minutes is not None and time.monotonic() - begin > 60 * arguments.minutes:
            sys.stdout.write(
                f"{fault.name} {fault.title}: not begun, the time is over; --seed {arguments.seed} goes on\n"
            )
            left.append(fault.name)
            continue
        if folder.exists():
            folder.rename(folder.with_name(f"{folder.name}-interrupted-{int(time.time())}"))
        size = replace(fault.short if arguments.short else fault.full, hours=arguments.hours)
        try:
            verdict = run(fault, seed=arguments.seed, folder=folder, size=size)
        except Exception as error:
            # The others are made all the same; this one is made again by the next invocation.
            sys.stdout.write(f"{fault.name} {fault.title}: BROKEN off, {type(error).__name__}: {error}\n")
            failed = True
            continue
        _say(fault.title, verdict)
        failed = failed or bool(verdict.violations)
    if arguments.write:
        report.write(report.gather(arguments.folder, arguments.seed))
    for names, why in ((impossible, "not on this machine"), (left, "the time was over")):
        if names:
            sys.stdout.write(f"Not made, {why}: {', '.join(names)}\n")
    return 1 if failed else 3 if left else 0


def _span(text: str) -> float:
    """Return a length of time. Raises ValueError or ArgumentTypeError for what is none; argparse tells either."""
    if not 0 <= (span := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no length of time")
    return span


def _recheck(folder: Path, names: Sequence[str], seed: int | None) -> int:
    """Judge the runs in the folder again; return 1 when a promise is broken or a verdict was another."""
    failed, found = False, 0
    for path in sorted(folder.glob("F*/verdict.json")):
        verdict = Verdict(**json.loads(path.read_text()))
        if (names and verdict.fault not in names) or seed not in {None, verdict.seed}:
            continue
        found += 1
        try:
            account = Record.load(path.parent).account()
        except FileNotFoundError as error:
            sys.stdout.write(f"{path.parent}: {Path(error.filename).name} is missing\n")
            failed = True
            continue
        except (OSError, EOFError, ValueError) as error:
            sys.stdout.write(f"{path.parent}: its ledgers cannot be read, {error}\n")
            failed = True
            continue
        # Of a figure that is counted since, the verdict says nothing.
        said = verdict.figures
        differing = [name for name, value in account.figures.items() if said.get(name, value) != value]
        broken = [str(violation) for violation in account.violations]
        jobs, lost, twice = (account.figures[name] for name in ("jobs", "lost", "duplicates_unexplained"))
        sys.stdout.write(f"{path.parent}: {jobs:,} jobs, {lost} lost, {twice} done twice without a reason\n")
        for name in differing:
            sys.stdout.write(f"  DIFFERS {name}: {account.figures[name]}, its verdict says {said[name]}\n")
        for text in broken[:20]:
            sys.stdout.write(f"  BROKEN {text}\n")
        # Of times, logs and leftovers, which the run saw itself; or of what the ledgers do not show any more.
        others = [text for text in verdict.violations if text not in broken]
        for text in others[:20]:
            sys.stdout.write(f"  BROKEN by its verdict: {text}\n")
        failed = failed or bool(differing or broken or others)
    if not found:
        sys.stderr.write(f"error: there is no such run in {folder}\n")
    return int(failed or not found)


def _say(title: str, verdict: Verdict) -> None:
    words = "  ".join(f"{name} {value:g}" for name, value in {**verdict.hits, **verdict.figures}.items())
    sys.stdout.write(f"{verdict.fault} {title}, {verdict.seconds:g} s: {words}\n")
    for violation in verdict.violations[:20]:
        sys.stdout.write(f"  BROKEN {violation}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
