"""The figures on disk: `benchmarks/results.json`, one part for each measure, and the machine they were taken on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from benchmarks.model import Record
from benchmarks.server import Server

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"


@dataclass(slots=True)
class Results:
    """Everything the report is made from."""

    machine: dict[str, str] = field(default_factory=dict[str, str])
    server: dict[str, str] = field(default_factory=dict[str, str])
    peers: dict[str, str] = field(default_factory=dict[str, str])
    measures: dict[str, Record] = field(default_factory=dict[str, Record])

    @classmethod
    def load(cls, path: Path = RESULTS) -> Results:
        """Read the file; without one there are no results."""
        if not path.exists():
            return cls()
        data: dict[str, Any] = json.loads(path.read_text())
        records = {name: Record.from_json(record) for name, record in data.pop("measures").items()}
        return cls(**data, measures=records)

    def save(self, path: Path = RESULTS) -> None:
        """Write the file, with figures to six digits: more would be noise."""
        data = {
            "machine": self.machine,
            "server": self.server,
            "peers": self.peers,
            "measures": {name: record.to_json() for name, record in sorted(self.measures.items())},
        }
        path.write_text(json.dumps(_rounded(data), indent=1, ensure_ascii=False) + "\n")


def describe_machine() -> dict[str, str]:
    """Return what of this machine matters for the figures."""
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "CPU": f"{len(os.sched_getaffinity(0))} cores, {cpu[0] if cpu else platform.machine()}",
        "memory": f"{memory[0] / 2**20:.0f} GiB" if memory else "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }


def describe_server(server: Server) -> dict[str, str]:
    """Return the server's version and the settings that matter."""
    return {"PostgreSQL": server.version} | server.settings


def commit() -> str:
    """Return the commit that is measured, with a + when there are changes on top."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", "queue_pg", "workers", "api", "migrations")
    return (head or "unknown") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in cast("dict[str, object]", value).items()}
    return [_rounded(inner) for inner in cast("list[object]", value)] if isinstance(value, list) else value
