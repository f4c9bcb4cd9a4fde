"""docs/founding-systems.md tells no tales: the tests that it names exist, and nothing is claimed without one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from queue_pg.retired_settings import RETIRED

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "founding-systems.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))
SYSTEMS = ("Cerebro", "Orchestrator", "BRAiN", "ZBrain", "Vinci4D")


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text("utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def rows(system: str) -> list[list[str]]:
    section = PAGE.partition(f"\n## {system}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[f"{path}::{name}" for path, name in NAMED])
def test_every_test_that_the_page_names_exists(path: str, name: str) -> None:
    assert name in functions_of(path)


@pytest.mark.parametrize("system", SYSTEMS)
def test_whatever_is_claimed_is_shown_by_a_test(system: str) -> None:
    found = rows(system)
    assert len(found) >= 9
    for capability, where, shown in found:
        assert re.search(r"`[\w/]+\.py::test_\w+`", shown) or "*not yet*" in where, capability


def test_the_page_names_every_acceptance_test_of_a_system() -> None:
    files = ("cerebro", "orchestrator", "brain", "zbrain", "vinci", "promises")
    there = {
        (f"acceptance/test_{file}.py", name)
        for file in files
        if (TESTS / "acceptance" / f"test_{file}.py").exists()
        for name in functions_of(f"acceptance/test_{file}.py")
        if name.startswith("test_")
    }
    assert len(there) > 50
    missing = {name for path, name in there if (path, name) not in NAMED}
    assert missing <= WITHOUT_A_ROW


# Further cases of a row that names another test.
WITHOUT_A_ROW = {
    "test_get_job_is_answered_within_block_timeout_when_a_job_comes",
    "test_late_complete_job_without_a_token_is_refused_too",
    "test_get_task_result_gives_up_after_its_timeout",
    "test_cancel_of_what_has_ended_is_refused",
    "test_the_image_is_not_root",
}


def test_the_page_names_every_variable_without_effect() -> None:
    assert [name for name in RETIRED if f"`{name}`" not in PAGE] == []
