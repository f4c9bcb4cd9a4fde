"""Seeds of the simulation; `make simulation` runs thousands of others.

Each test runs the command, whose process has an order of sets that is the same each time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.ledgers import Run
from tests.simulation.plants import PLANTS
from tests.simulation.promises import Facts, Probe, find_broken_promises

ROOT = Path(__file__).resolve().parents[2]


def run(dsn: str, *arguments: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "tests.simulation", "--json", "--dsn", dsn, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode in (0, 1), done.stderr[-3_000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("seeds", ["1-10", "11-20"])
def test_nothing_is_lost_whatever_the_seed(dsn: str, seeds: str) -> None:
    found, said = run(dsn, "--seeds", seeds)
    assert found["broken"] == [], said
    assert found["figures"]["killed"] > 0, "nobody was hurt"
    assert found["figures"]["unanswered"] > 0, "no answer was lost"
    assert found["figures"]["leases_lost"] > 0, "no lease was lost"


def test_a_seed_does_the_same_each_time(dsn: str, empty_dsn: str) -> None:
    """Down to the last statement and its moment, whatever ran before it, in another process."""
    few, _ = run(dsn, "--seeds", "3-4")
    more, _ = run(empty_dsn, "--seeds", "2-4")
    assert few["fingerprints"] == {seed: more["fingerprints"][seed] for seed in few["fingerprints"]}
    assert len(set(more["fingerprints"].values())) == 3


@pytest.mark.parametrize("bug", [plant.name for plant in PLANTS if plant.quick or "SIM_SEEDS" in os.environ])
def test_a_planted_bug_is_found(dsn: str, bug: str) -> None:
    # Which seed finds it changes with every statement that the product sends; of the rarest it is one in a few dozen.
    found, _ = run(dsn, "--plant", bug, "--seeds", f"1-{os.environ.get('SIM_SEEDS', '200')}", "--until-broken")
    assert found["broken"], f"{found['ran']} seeds found nothing"


# --- the promises that only a simulation can look into ----------------------------------------------------------------

SECOND = 1_000_000_000
FIRST = Run(7, "a", 1, 100, 0, 5 * SECOND)
AGAIN = Run(7, "a", 2, 101, 5 * SECOND, 6 * SECOND)


def test_a_run_in_order_breaks_no_promise() -> None:
    facts = Facts(runs=[FIRST, AGAIN], most={"w": 2}, concurrency=2, probes=[Probe(7, 0.0, 0.1)])
    assert [found for found in find_broken_promises(facts) if found[0] != "L3"] == []
    assert list(find_broken_promises(Facts(runs=[FIRST], probes=[Probe(7, 0.0, 0.1)]))) == []


@pytest.mark.parametrize(
    ("facts", "promise"),
    [
        (Facts(runs=[FIRST], most={"w": 3}, concurrency=2), "W1"),
        (Facts(runs=[Run(7, "a", 1, 100, 0, 7 * SECOND), AGAIN]), "W2"),
        (Facts(runs=[Run(7, "a", 1, 100, 0, None), AGAIN]), "W2"),
        (Facts(runs=[Run(7, "a", 1, 100, 0, None), AGAIN], stopped={0: 9 * SECOND}), "W2"),
        (Facts(runs=[FIRST], said={"a": ["said with 1", "said with 1"]}), "P6"),
        (Facts(runs=[], probes=[Probe(7, 0.0, 0.1)]), "L3"),
        (Facts(runs=[AGAIN], probes=[Probe(7, 0.0, 0.1)]), "L3"),
        (Facts(runs=[FIRST, AGAIN], probes=[Probe(7, 0.0, 0.1)]), "L3"),
    ],
)
def test_a_broken_promise_is_seen(facts: Facts, promise: str) -> None:
    assert {found[0] for found in find_broken_promises(facts)} == {promise}


def test_who_stood_still_or_was_dead_is_excused() -> None:
    running = Run(7, "a", 1, 100, 0, None)
    assert list(find_broken_promises(Facts(runs=[running, AGAIN], stuck=[(100, 3.0, 8.0)]))) == []
    assert list(find_broken_promises(Facts(runs=[running, AGAIN], dead_at_ns={100: 4 * SECOND}))) == []
