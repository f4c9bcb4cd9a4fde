"""What the package exports, and that generated files are current."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import queue_pg
from queue_pg import Queue, SyncQueue, errors

ROOT = Path(__file__).resolve().parent.parent.parent


def test_exported_names_are_sorted_and_exist() -> None:
    assert queue_pg.__all__ == sorted(queue_pg.__all__)
    assert len(set(queue_pg.__all__)) == len(queue_pg.__all__)
    for name in queue_pg.__all__:
        assert hasattr(queue_pg, name)


def test_all_errors_are_exported() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert defined <= set(queue_pg.__all__)


def test_the_blocking_twins_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "async_to_sync.py"), "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_twin_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "queue_pg").mkdir()
    for path in (ROOT / "queue_pg").glob("*.py"):
        (tmp_path / "queue_pg" / path.name).write_text(path.read_text())
    tool = tmp_path / "tools" / "async_to_sync.py"
    tool.write_text((ROOT / "tools" / "async_to_sync.py").read_text())
    with (tmp_path / "queue_pg" / "store.py").open("a") as file:
        file.write("\n\nasync def more() -> None: ...\n")
    check = [sys.executable, str(tool), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 1
    assert "queue_pg/store_sync.py" in done.stderr
    assert "client_sync" not in done.stderr
    subprocess.run([sys.executable, str(tool)], check=True)
    assert "\ndef more() -> None: ..." in (tmp_path / "queue_pg" / "store_sync.py").read_text()
    assert subprocess.run(check, capture_output=True).returncode == 0


def test_both_clients_offer_the_same() -> None:
    def offered(client: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_")
        }

    assert offered(Queue) == offered(SyncQueue)
    assert "claim" in offered(Queue)
    assert not inspect.getmembers(SyncQueue, inspect.iscoroutinefunction)
