"""The formal model of leases (lease.pml), checked by spin in all its states; without spin these tests are skipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("lease.pml")
# What is taken away, and the assertion that says so.
MUST_FAIL = {
    "NO_TOKEN_IN_FINISH": "holder==mine",
    "NO_TOKEN_IN_HEARTBEAT": "holder==mine",
    "NO_TOKEN_IN_REAP": "over",
    "ATTEMPT_AS_TOKEN": "holder==mine",
    "TOKEN_RESET_BY_RETRY": "holder==mine",
    "NO_REAPER": "claims==6",
}

pytestmark = pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("gcc") is None, reason="needs spin and gcc (apt-get install spin gcc)"
)


# Three take a quarter of a minute.
WORKERS = int(os.environ.get("MODEL_WORKERS", "2"))


def verify(folder: Path, *definitions: str, optimise: str = "-O0") -> tuple[int, int, str]:
    """Look at every state; returns the number of errors, that of states, and what pan says."""
    options = [f"-DWORKERS={WORKERS}", *(f"-D{name}" for name in definitions)]
    subprocess.run(["spin", *options, "-a", str(MODEL)], cwd=folder, check=True, capture_output=True, timeout=60)
    compile_ = ["gcc", optimise, "-w", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c"]
    subprocess.run(compile_, cwd=folder, check=True, capture_output=True, timeout=120)
    said = subprocess.run(
        ["./pan", "-m100000"], cwd=folder, check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert "max search depth too small" not in said
    errors = re.search(r"errors: (\d+)", said)
    states = re.search(r"(\d+) states, stored", said)
    assert errors is not None
    assert states is not None
    return int(errors[1]), int(states[1]), said


def test_no_state_of_the_leases_breaks_a_promise(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    errors, states, said = verify(tmp_path, optimise="-O1")
    assert errors == 0, said
    assert states > 10_000, "it has not looked at much"
    # Every line of the processes was reached, but for the ends of loops that have none.
    unreached = re.findall(r"unreached in (?:proctype|init) ?(\w*)\n((?:\t.*\n)+)", said)
    lines = [line for _, block in unreached for line in block.splitlines() if "-end-" not in line and "of " not in line]
    assert lines == [], said
    record_property("spin", f"lease.pml, {WORKERS} workers: {states} states, no error")


@pytest.mark.parametrize("missing", MUST_FAIL)
def test_a_model_that_lacks_something_fails(
    tmp_path: Path, missing: str, record_property: Callable[[str, object], None]
) -> None:
    errors, states, said = verify(tmp_path, missing)
    assert errors == 1, said
    assert re.search(rf"assertion violated .*{re.escape(MUST_FAIL[missing])}", said), said
    record_property("spin", f"lease.pml with {missing}: fails after {states} states")
