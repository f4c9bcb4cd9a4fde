"""Keep the source of a release, for the tests that upgrade from it: tools/keep_release.py REVISION [--version V].

Writes tests/faults/releases/previous.tar.xz, with what the wheel of that revision holds, and previous.toml, which says
what it is. Run it when a release has been made, with its tag; commit both files. docs/reliability.md says why.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "faults" / "releases"
CONTENT = ("queue_pg", "api/queue_pg_api", "workers/queue_pg_workers", "migrations", "pyproject.toml")

HEADER = """\
# The release that upgrades are tested from. Written by tools/keep_release.py, together with previous.tar.xz.
"""


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S607


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="a tag or a commit")
    parser.add_argument("--version", help="as what it is installed; without, what its pyproject.toml says")
    arguments = parser.parse_args()
    commit = git("rev-parse", "--verify", f"{arguments.revision}^{{commit}}").decode().strip()
    project = tomllib.loads(git("show", f"{commit}:pyproject.toml").decode())["project"]
    archive = lzma.compress(git("archive", "--format=tar", commit, "--", *CONTENT), preset=9 | lzma.PRESET_EXTREME)
    names = git("ls-tree", "--name-only", commit, "migrations/").decode().split()
    newest = max(Path(name).stem for name in names if Path(name).stem[:4].isdigit())
    (FOLDER / "previous.tar.xz").write_bytes(archive)
    (FOLDER / "previous.toml").write_text(
        f'{HEADER}version = "{arguments.version or project["version"]}"\ncommit = "{commit}"\n'
        f'newest_migration = "{newest}"\nsha256 = "{hashlib.sha256(archive).hexdigest()}"\n'
    )
    sys.stdout.write(f"{arguments.revision}: {len(archive) / 1024:.0f} KiB, schema up to {newest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
