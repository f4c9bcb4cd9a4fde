"""Set-up and CI: what a newcomer's machine may lack is said in a sentence, and CI covers what we promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "cat", "cksum", "dirname", "pwd")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout's set-up files in a folder with a space, and a `bin` with only the barest programs."""
    folder = tmp_path / "my project"
    (folder / "tools").mkdir(parents=True)
    for name in ("tools/setup.sh", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, folder / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    return folder


def set_up(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = str(project.parent / "bin")
    return subprocess.run(
        ["sh", "tools/setup.sh", "runtime"],
        cwd=project,
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def fake_python(path: Path, version: str) -> None:
    path.write_text(f'#!/bin/sh\n[ "$1" = -V ] && echo "Python {version}" && exit 0\nexit 1\n')
    path.chmod(0o755)


def test_missing_and_old_python_are_explained(project: Path) -> None:
    missing = set_up(project)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: queue-pg needs Python 3.11 or newer, and there is no python3 here.")
    fake_python(project.parent / "bin" / "python3", "3.9.1")
    old = set_up(project)
    assert "and there is Python 3.9.1 here. Install it, or name one: make PYTHON=" in old.stderr
    named = set_up(project, PYTHON="python3")
    assert named.stderr == "error: PYTHON=python3 is not a Python of version 3.11 or newer.\n"
    assert not (project / ".venv").exists()


def test_shell_scripts_parse() -> None:
    for script in ("tools/setup.sh", "tools/with_postgres.sh", ".ci/run"):
        subprocess.run(["bash", "-n", ROOT / script], check=True)
        assert os.access(ROOT / script, os.X_OK)


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
POSTGRES = ["14", "15", "16", "17", "18"]


def test_there_are_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "nightly.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_their_actions_and_have_an_end_and_no_rights(path: Path) -> None:
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 360, name
        # What somebody typed is data of a step, never a part of its script.
        assert not [step for step in job["steps"] if "inputs." in step.get("run", "")], name
        checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert all(step["with"] == {"persist-credentials": False} for step in checkouts), name
    for used in re.findall(r"uses: (\S+)", text):
        assert re.fullmatch(r"actions/[a-z-]+(/[a-z-]+)?@[0-9a-f]{40}", used), used
    made = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if "## " in line}
    assert set(re.findall(r"\bmake ([a-z-]+)", re.sub(r"#.*", "", text))) <= made


def test_every_night_has_what_is_too_long_for_every_change() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())["jobs"]
    scripts = {name: "\n".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()}
    assert {name: re.findall(r"make ([a-z-]+)", text) for name, text in scripts.items()} == {
        "faults": ["faults"],
        "model": ["model"],
        "simulation": ["simulation"],
        "mutants": ["mutants"],
    }
    assert {name: jobs[name]["strategy"]["matrix"] for name in ("faults", "model")} == {
        "faults": {"postgres": POSTGRES},
        "model": {"postgres": POSTGRES},
    }
    # Shorter than the job, so that what there is by then is kept.
    [minutes] = re.findall(r"--minutes (\d+)", scripts["faults"])
    assert int(minutes) + 60 <= jobs["faults"]["timeout-minutes"]
    [upload] = [step for step in jobs["faults"]["steps"] if "upload-artifact" in step.get("uses", "")]
    assert (upload["if"], upload["with"]["path"]) == ("always()", ".faults")
    # An attempt that could not do all fails, and the next one goes on where it was.
    [restore] = [step for step in jobs["faults"]["steps"] if "cache/restore@" in step.get("uses", "")]
    [save] = [step for step in jobs["faults"]["steps"] if "cache/save@" in step.get("uses", "")]
    assert save["if"] == "always()"
    assert save["with"] == {name: restore["with"][name] for name in ("path", "key")}


def test_ci_covers_what_is_promised() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix == {"python": ["3.11", "3.12", "3.13", "3.14"], "postgres": POSTGRES}
    assert jobs["test"]["env"]["QUEUE_PG_TEST_POSTGRES"].startswith("testcontainers:postgres:")
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"Python :: {version}" in project for version in matrix["python"])
