"""The release before this one, to upgrade from: its source is kept beside this file (tools/keep_release.py).

Kept, and not taken from the history, because a clone of CI has no history and a source distribution none at all: what
cannot be run there would be skipped where it matters. It runs with the libraries that are installed for this one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[2]
ARCHIVE: Final = HERE / "previous.tar.xz"
DESCRIPTION: Final = HERE / "previous.toml"


@dataclass(frozen=True, slots=True)
class Release:
    """An unpacked release. `version` is what it takes itself for."""

    folder: Path
    version: str
    newest_migration: str

    def environment(self) -> dict[str, str]:
        """Return the environment in which Python imports this release, and the tests of the newer one.

        PYTHONPATH comes before what is installed, editable or not.
        """
        paths = [self.folder, self.folder / "api", self.folder / "workers", ROOT]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of its command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "queue_pg.cli", *words],
            cwd=self.folder, env={**self.environment(), **environment},
            capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def migrate(self, dsn: str) -> None:
        """Make its schema. Raises RuntimeError."""
        done = self.run("migrate", DATABASE_URL=dsn)
        if done.returncode != 0:
            raise RuntimeError(f"the previous release does not migrate: {done.stderr}")

    def statements(self) -> dict[str, str]:
        """Return all SQL that it sends, by the names of the files."""
        files = [*(self.folder / "queue_pg").glob("**/sql/*.sql"), *(self.folder / "api").glob("**/sql/*.sql")]
        return {path.stem: path.read_text() for path in sorted(files)}


def described() -> dict[str, Any]:
    """Return what previous.toml says."""
    return tomllib.loads(DESCRIPTION.read_text())


def unpacked(folder: Path) -> Release:
    """Return what `unpack` has left in a folder."""
    says = described()
    return Release(folder, says["version"], says["newest_migration"])


def unpack(folder: Path) -> Release:
    """Unpack the previous release into `folder`, as an installation that is on the path of its environment alone.

    Raises ValueError when the archive is not the one that is described.
    """
    says = described()
    if hashlib.sha256(ARCHIVE.read_bytes()).hexdigest() != says["sha256"]:
        raise ValueError("previous.tar.xz is not what previous.toml describes: run tools/keep_release.py")
    folder.mkdir(parents=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder)  # noqa: S202 - ours, by its checksum
    # What an installer would write: its version, and the commands that its services bring.
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    written = folder / f"queue_pg-{says['version']}.dist-info"
    written.mkdir()
    (written / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {says['version']}\n")
    lines = [f"{name} = {target}" for name, target in project["entry-points"]["queue_pg.commands"].items()]
    (written / "entry_points.txt").write_text("\n".join(["[queue_pg.commands]", *lines, ""]))
    return unpacked(folder)
