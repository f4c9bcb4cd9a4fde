"""`python -m benchmarks [NAME...]`: measure, and write benchmarks/results.json and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from types import FrameType

import psycopg

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.children import Failed
from benchmarks.contestants.base import WORKSHOP
from benchmarks.contestants.peers import versions
from benchmarks.measures.catalogue import MEASURES
from benchmarks.results import Results, commit, describe_machine, describe_server
from benchmarks.server import running_server


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 when a measure failed, 2 for arguments that make no sense."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name, measure in MEASURES.items():
            print(f"{name:14} {measure.TITLE}")
        return 0
    unknown = [name for name in options.names if name not in MEASURES]
    if unknown or options.runs < 1:
        wrong = (
            f"no measure is called {unknown[0]!r}: there are {', '.join(MEASURES)}"
            if unknown
            else "--runs needs 1 or more"
        )
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _measure(options.names or list(MEASURES), options)
    except KeyboardInterrupt:
        print("stopped; what was measured before is kept", file=sys.stderr)
        return 130


def _measure(names: Sequence[str], options: argparse.Namespace) -> int:
    failed = False
    WORKSHOP.mkdir(exist_ok=True)
    with running_server(WORKSHOP / "postgres") as server:
        if not options.quick:
            server.make_segments()
        bench = Bench(server, 1 if options.quick else options.runs, quick=options.quick, peers=not options.no_peers)
        for name in names:
            print(f"{name}: {MEASURES[name].TITLE}", file=sys.stderr)
            begin = time.monotonic()
            try:
                record = MEASURES[name].run(bench)
            except (Failed, psycopg.Error, OSError) as error:
                print(f"error: {name}: {' '.join(str(error).split())}", file=sys.stderr)
                failed = True
                continue
            record.quick, record.commit = bench.quick, commit()
            record.seconds = time.monotonic() - begin
            record.measured_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            print(report.verdict_lines(MEASURES[name], record), file=sys.stderr)
            if options.quick or options.no_write:
                continue
            results = Results.load()
            results.measures[name] = record
            results.machine, results.server, results.peers = describe_machine(), describe_server(server), versions()
            results.save()
            # As stored, rounded: what is rendered from the file later must be the same.
            report.write(Results.load())
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measures to run; all without")
    parser.add_argument("--runs", type=int, default=3, help="how often every contestant runs (3)")
    parser.add_argument("--quick", action="store_true", help="tiny numbers, once, nothing is written: for development")
    parser.add_argument("--no-write", action="store_true", help="only print: results and page stay as they are")
    parser.add_argument("--list", action="store_true", help="list the measures")
    parser.add_argument("--no-peers", action="store_true", help="leave out the other queues")
    return parser


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
