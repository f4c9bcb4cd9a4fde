"""The plug is pulled by hand: what was synced is there, and of the rest anything may be."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.plug import PAGE, Plug, no_plug

PAGES = 32


@pytest.fixture
def plug(tmp_path: Path) -> Iterator[Plug]:
    if (reason := no_plug()) is not None:
        pytest.skip(reason)
    folder = tmp_path / "disk"
    folder.mkdir()
    plug = Plug(folder, random.Random(7))
    yield plug
    plug.remove()


def write(path: Path, letter: bytes, *, pages: int = PAGES, sync: bool) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(descriptor, letter * PAGE * pages, 0)
    if sync:
        os.fsync(descriptor)
    os.close(descriptor)


def test_what_was_synced_is_there_and_of_the_rest_some(plug: Plug) -> None:
    file = plug.folder / "file"
    write(file, b"a", sync=True)
    write(file, b"b", sync=False)
    assert file.read_bytes() == b"b" * PAGE * PAGES
    loss = plug.pull()
    found = file.read_bytes()
    assert len(found) == PAGE * PAGES
    pages = [found[start : start + PAGE] for start in range(0, len(found), PAGE)]
    assert set(pages) == {b"a" * PAGE, b"b" * PAGE}
    assert loss.pages == pages.count(b"a" * PAGE)
    # The plug is in again, and what was left is what there is.
    assert plug.pull().pages == 0
    assert file.read_bytes() == found


def test_entries_go_from_the_newest_on(plug: Plug) -> None:
    names = [plug.folder / f"n{number}" for number in range(20)]
    write(names[0], b"a", pages=1, sync=True)
    for name in names[1:]:
        write(name, b"a", pages=1, sync=False)
    loss = plug.pull()
    there = [name for name in names if name.exists()]
    assert there == names[: len(names) - loss.entries]
    assert 0 < loss.entries < len(names)


def test_a_removal_and_a_rename_may_not_have_been(plug: Plug) -> None:
    old, new = plug.folder / "old", plug.folder / "new"
    outcomes: set[tuple[bytes | None, bytes | None]] = set()
    for _ in range(8):
        write(old, b"o", pages=1, sync=True)
        write(new, b"n", pages=1, sync=True)
        old.rename(new)
        new.unlink()
        plug.pull()
        outcomes.add((_first(old), _first(new)))
    # Neither, the rename, both: and nothing else.
    assert outcomes <= {(b"o", b"n"), (None, b"o"), (None, None)}
    assert len(outcomes) > 1


def test_what_was_cut_off_is_whole_or_short(plug: Plug) -> None:
    file = plug.folder / "file"
    lengths: set[int] = set()
    for _ in range(8):
        write(file, b"a", sync=True)
        os.truncate(file, PAGE)
        plug.pull()
        found = file.read_bytes()
        assert found == b"a" * len(found)
        lengths.add(len(found))
    assert lengths == {PAGE, PAGE * PAGES}


def _first(path: Path) -> bytes | None:
    return path.read_bytes()[:1] if path.exists() else None
