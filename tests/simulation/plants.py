"""Bugs to plant: each changes one place of our own code as it is loaded, and some seed has to find it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Plant:
    """`before` is once in a module (of Python) or in a function (of the database, by its name) and becomes `after`."""

    name: str
    before: str
    after: str
    module: str = ""
    function: str = ""
    # One of the first seeds finds it.
    quick: bool = False


PLANTS: Final = (
    Plant(
        "outcomes that are dropped when their answer is lost",
        "            self._put_back(batch)\n            await",
        "            await",
        module="queue_pg_workers.finisher",
        quick=True,
    ),
    Plant(
        "a heartbeat that dies without a word",
        "                # Leases run on meanwhile; Leases.fence stops their handlers when they may have ended.\n",
        "                return\n",
        module="queue_pg_workers.heartbeat",
    ),
    Plant(
        "a listener that stays away after an error",
        "            self._stop.wait(pause * self._surroundings.uniform(0.5, 1.0))\n",
        "            return\n",
        module="queue_pg.wakeup",
        quick=True,
    ),
    Plant(
        "handlers that go on past their lease",
        "now > held.trusted_until:",
        "now > held.trusted_until + 3600:",
        module="queue_pg_workers.leases",
    ),
    Plant(
        "claims beyond the free slots",
        "wanted = min(free, self._at_once)",
        "wanted = free + 2",
        module="queue_pg_workers.claiming",
        quick=True,
    ),
    Plant(
        "slots of lost leases that nobody gives back",
        "        self._record(held, outcome)\n        self._on_ended(held)\n",
        "        self._record(held, outcome)\n        if not held.lost:\n            self._on_ended(held)\n",
        module="queue_pg_workers.attempt",
    ),
    Plant(
        "maintenance that ends with an error",
        "                    await self._drop_connection()\n                    # Hints",
        "                    return\n                    # Hints",
        module="queue_pg.maintenance",
        quick=True,
    ),
    Plant(
        "events that are stored again when their answer is lost",
        "                unknown = True\n",
        "                unknown = False\n",
        module="queue_pg_workers.event_buffer",
        quick=True,
    ),
    Plant(
        "a completion by anybody",
        "(retire.lease_tokens is null or (j.lease_expires_at is not null and j.lease_token = e.lease_token))",
        "true",
        function="retire",
    ),
    Plant(
        "live leases that are taken away",
        "where j.state = 'running' and j.lease_expires_at < v_now and j.lease_expires_at > v_floor",
        "where j.state = 'running' and j.lease_expires_at > v_floor",
        function="reap",
        quick=True,
    ),
)


def find_plant(name: str) -> Plant:
    """Return the one plant whose name contains `name`."""
    [plant] = [plant for plant in PLANTS if name in plant.name]
    return plant


def plant(bug: Plant) -> None:
    """Have a module be loaded with its bug. Before anything imports it."""
    assert bug.module not in sys.modules, f"{bug.module} is loaded already"
    sys.meta_path.insert(0, _Finder(bug))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, bug: Plant) -> None:
        self._bug = bug

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._bug.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin, self._bug)
        )


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, bug: Plant) -> None:
        super().__init__(fullname, path)
        self._bug = bug

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text()
        assert source.count(self._bug.before) == 1, f"{self._bug.name}: its text is not there, or more than once"
        return compile(source.replace(self._bug.before, self._bug.after), self.path, "exec")
