"""Wheel, sdist and editable install each carry the migrations and work on their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ["requirements.lock", "requirements-dev.lock"]
LOOK = """
import json, sys
import queue_pg, queue_pg.schema, queue_pg.store, queue_pg.embedded, queue_pg_api.app, queue_pg_workers.main
from importlib.metadata import entry_points
print(json.dumps({
    "file": queue_pg.__file__,
    "api": queue_pg_api.__file__,
    "migrations": [migration.name for migration in queue_pg.schema.migrations()],
    "commands": sorted(entry.name for entry in entry_points(group="queue_pg.commands")),
}))
"""


def run(*command: str | Path, **options: object) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, env=environment, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def numbered_files() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "migrations").rglob("*.sql")}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with space")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, ROOT)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the sdist, as installers do that get no wheel; so the sdist is complete."""
    run("tar", "-xzf", sdist, "-C", sdist.parent)  # tarfile's safe way of doing it is younger than Python 3.11.0
    source = sdist.parent / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", sdist.parent, source)
    return next(sdist.parent.glob("*.whl"))


def test_wheel_carries_the_migrations_and_nothing_foreign(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.replace("migrations/", "queue_pg/_migrations/", 1) for name in numbered_files()} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "queue_pg",
        "queue_pg_api",
        "queue_pg_workers",
    }
    assert {f"{package}/py.typed" for package in ("queue_pg", "queue_pg_api", "queue_pg_workers")} <= names
    run(sys.executable, "-m", "check_wheel_contents", "--config", ROOT / "pyproject.toml", wheel)


def test_wheel_carries_the_console(wheel: Path) -> None:
    """Its templates and files are no Python, and a page without them is a fault that only users would see."""
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = ROOT / "api" / "queue_pg_api" / "pages"
    paths = [path for name in ("static", "templates") for path in (folder / name).rglob("*.*")]
    files = {path.relative_to(ROOT / "api").as_posix() for path in paths}
    assert len(files) > 15
    assert files <= names


def test_sdist_is_complete_and_holds_no_local_state(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert numbered_files() <= names
    for wanted in ("Makefile", "LICENSE", "README.md", "CHANGELOG.md", ".env.example", "Dockerfile", *LOCKS):
        assert wanted in names
    assert "tests/conftest.py" in names
    assert not [name for name in names if re.search(r"(^|/)(\.venv|\.data|\.env|__pycache__|\.git)(/|$)", name)]


def test_installed_wheel_works_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)  # noqa: S202 - built just now
    found = json.loads(
        run(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r}){LOOK}", cwd=tmp_path)
    )
    assert Path(found["file"]).is_relative_to(target)
    assert Path(found["api"]).is_relative_to(target)
    assert {f"migrations/{name}.sql" for name in found["migrations"]} == numbered_files()


def test_editable_install_sees_new_migrations_at_once(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    source = sdist.parent / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    hook = "import sys, hatchling.build as b; print(b.build_editable(sys.argv[1]))"
    built = tmp_path / run(sys.executable, "-c", hook, tmp_path, cwd=source).splitlines()[-1]
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    with zipfile.ZipFile(built) as archive:
        archive.extractall(site)  # noqa: S202 - built just now
    # The libraries are those of the running interpreter; --system-site-packages would not reach those of its venv.
    outer = next(path for path in sys.path if path.endswith("site-packages"))
    look = f"import sys; sys.path.append({outer!r}){LOOK}"
    before = json.loads(run(python, "-c", look, cwd=tmp_path))
    assert Path(before["file"]).is_relative_to(source)
    assert {"serve", "worker"} <= set(before["commands"])
    (source / "migrations" / "9999_new.sql").write_text("select 1;\n")
    assert "9999_new" in json.loads(run(python, "-c", look, cwd=tmp_path))["migrations"]
    (source / "migrations" / "9999_new.sql").unlink()


def test_generic_folders_are_no_packages() -> None:
    assert [name for name in ("api", "workers", "migrations", "tests") if (ROOT / name / "__init__.py").exists()] == []


def test_committed_files_name_no_index_and_no_machine() -> None:
    """Locks pin by hash alone, wherever the packages come from."""
    for name in LOCKS:
        text = (ROOT / name).read_text()
        assert not re.search(r"://|file:|--(?:extra-)?index-url|--find-links|(?m:^#)|(?<!\S)/", text), name
        for requirement in re.split(r"\n(?=\S)", text.strip()):
            assert re.match(r"[a-z0-9][a-z0-9.-]*==\S+", requirement), requirement
            assert "--hash=sha256:" in requirement, requirement
    listed = (
        run("git", "ls-files", "uv.lock", "*/uv.lock", "package-lock.json", cwd=ROOT)
        if (ROOT / ".git").exists()
        else ""
    )
    assert listed == ""


def test_locks_hold_what_the_project_asks_for() -> None:
    def names(requirements: list[str]) -> set[str]:
        found = {re.split(r"[\s\[><=;!~]", requirement, maxsplit=1)[0].lower() for requirement in requirements}
        return found - {"queue-pg"}

    project = PROJECT["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    groups = [entry for group in PROJECT["dependency-groups"].values() for entry in group if isinstance(entry, str)]
    locked = {
        name: set(re.findall(r"^([a-z0-9][a-z0-9.-]*)==", (ROOT / name).read_text(), re.MULTILINE)) for name in LOCKS
    }
    assert (
        names([*project["dependencies"], *extras, *PROJECT["build-system"]["requires"]]) <= locked["requirements.lock"]
    )
    assert names(groups) | locked["requirements.lock"] <= locked["requirements-dev.lock"]


def test_locks_agree() -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))

    runtime, development = (pins(name) for name in LOCKS)
    assert {name: development[name] for name in runtime} == runtime
