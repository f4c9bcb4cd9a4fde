"""The command: `python -m tests.faults.peers [PEER..] [FAULT..] [--seed N] [--folder PATH] [--parallel N]`.

Without names it runs all, and writes the table into docs/reliability-peers.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

from benchmarks.contestants.peers import install
from benchmarks.model import Record
from tests.faults.fleet import ROOT
from tests.faults.peers.adapters import FORGETFUL, PEERS, Peer, copy_scripts, find_peer
from tests.faults.peers.cell import FAULTS, Fault, run
from tests.faults.peers.page import describe, write_page

PAGE: Final = ROOT / "docs" / "reliability-peers.md"


def main() -> int:
    """Run cells, some at a time; return 1 when one could not be run, whatever its queue came to."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.peers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PEER|FAULT", help="such as awa or F1; all without")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of everything that is random")
    parser.add_argument("--folder", type=Path, default=Path(".faults/peers"), help="where ledgers and verdicts go")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="how many cells at a time")
    arguments = parser.parse_args()
    peers, faults = {peer.name: peer for peer in (*PEERS, FORGETFUL)}, {fault.name: fault for fault in FAULTS}
    if unknown := set(arguments.names) - {*peers, *faults}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join([*peers, *faults])}")
    logging.disable()
    record = Record()
    install(record)
    copy_scripts()
    for note in record.notes:
        sys.stdout.write(f"{note}\n")
    chosen = [peers[name] for name in arguments.names if name in peers] or PEERS
    wanted = [faults[name] for name in arguments.names if name in faults] or FAULTS
    failed = False
    with ThreadPoolExecutor(arguments.parallel) as pool:
        cells = {
            pool.submit(_run, peer, fault, arguments.seed, arguments.folder): (peer, fault)
            for fault in wanted
            for peer in chosen
        }
        try:
            for cell in as_completed(cells):
                peer, fault = cells[cell]
                try:
                    verdict = cell.result()
                except Exception as error:
                    failed = True
                    sys.stdout.write(f"{peer.title} {fault.name}: could not be run, {error!r}\n")
                else:
                    sys.stdout.write(f"{describe(verdict)}\n")
                sys.stdout.flush()
        except KeyboardInterrupt:
            # Those under way come to their end, or servers and workers would stay behind.
            pool.shutdown(cancel_futures=True)
            raise
    if not arguments.names:
        verdicts = _read(arguments.folder, arguments.seed)
        write_page(PAGE, verdicts, cells_at_a_time=arguments.parallel)
    return 1 if failed else 0


def _run(peer: Peer, fault: Fault, seed: int, folder: Path) -> dict[str, Any]:
    place = folder / f"{peer.name}-{fault.name}-{seed}"
    file = place / "verdict.json"
    # An interrupted invocation goes on with the same seed; what was half done is done anew.
    if not file.exists():
        shutil.rmtree(place, ignore_errors=True)
        for reason in (peer.obstacle, fault.obstacle):
            if reason is not None:
                raise RuntimeError(reason)
        run(peer, fault, seed=seed, folder=place)
    return _load(file)


def _load(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _read(folder: Path, seed: int) -> list[dict[str, Any]]:
    verdicts = [_load(file) for file in folder.glob(f"*-{seed}/verdict.json")]
    order = [peer.name for peer in PEERS]
    return sorted(
        (one for one in verdicts if one["peer"] in order),
        key=lambda one: (int(one["fault"][1:]), order.index(find_peer(one["peer"]).name)),
    )


if __name__ == "__main__":
    sys.exit(main())
