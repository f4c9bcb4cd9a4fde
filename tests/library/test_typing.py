"""A wrong argument to a task is a type error, for both checkers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLE = Path(__file__).with_name("typed_tasks.py")
EXPECTED = [number for number, line in enumerate(SAMPLE.read_text().splitlines(), 1) if line.endswith("# error")]

CHECKERS = {
    "mypy": ("mypy", ["-m", "mypy", "--strict", "--no-error-summary", str(SAMPLE)]),
    "pyright": ("basedpyright", ["-m", "basedpyright", str(SAMPLE)]),
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_wrong_arguments_are_type_errors(checker: str, tmp_path: Path) -> None:
    module, arguments = CHECKERS[checker]
    pytest.importorskip(module)
    if checker == "mypy":
        arguments = [*arguments, "--cache-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    # mypy: "file:12: error: ..."; pyright: "file:12:5 - error: ..."
    found = {int(line) for line in re.findall(r"typed_tasks\.py:(\d+)(?::\d+)?(?: -|:) error", done.stdout)}
    assert sorted(found) == EXPECTED, done.stdout
