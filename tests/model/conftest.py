"""`make model` says at its end what was looked at."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write what the tests have recorded; only when this folder was named, for else it is loaded too late."""
    properties = [entry for report in terminalreporter.stats.get("passed", []) for entry in report.user_properties]
    orders = [value for name, value in properties if name == "orders"]
    for name, value in properties:
        if name in ("model", "spin"):
            terminalreporter.write_line(f"{name}: {value}")
    if orders:
        terminalreporter.write_line(f"interleavings: {sum(orders)} orders of {len(orders)} triples")
