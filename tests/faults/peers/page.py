"""The table, from the verdicts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.faults.peers.adapters import PEERS
from tests.faults.peers.cell import FAULTS

BEGIN: Final = "<!-- peers: begin, written by make faults-peers -->"
END: Final = "<!-- peers: end -->"
COLUMNS: Final = (
    "queue", "jobs", "lost", "given up", "stuck", "again, explained", "again, unexplained", "recovery p50, max (s)",
    "errors of the application", "longest submission (s)", "workers that ended", "silent workers",
)  # fmt: skip


def describe(verdict: Mapping[str, Any]) -> str:
    """Return a cell in one line."""
    title = f"{verdict['peer']} {verdict['fault']}, {verdict['seconds']:g} s"
    if verdict["obstacle"]:
        return f"{title}: does not work: {verdict['obstacle']}"
    words = "  ".join(f"{name} {value:g}" for name, value in {**verdict["hits"], **verdict["figures"]}.items())
    broken = "".join(f"\n  BROKEN {violation}" for violation in verdict["violations"])
    return f"{title}: {words}{broken}"


def write_page(page: Path, verdicts: Sequence[Mapping[str, Any]], *, cells_at_a_time: int) -> None:
    """Put the table between its marks. Raises ValueError when the page has none, or there is nothing to put."""
    head, begin, rest = page.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or not verdicts:
        raise ValueError(f"{page} has no place for the table, or there is no verdict")
    text = "\n".join(_lines(verdicts, cells_at_a_time))
    page.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


def _lines(verdicts: Sequence[Mapping[str, Any]], cells_at_a_time: int) -> Iterator[str]:
    dates = sorted(verdict["date"] for verdict in verdicts)
    commits = ", ".join(sorted({verdict["commit"] for verdict in verdicts}))
    yield f"Run from {_moment(dates[0])} to {_moment(dates[-1])}, commit {commits}, seed {verdicts[0]['seed']},"
    first = verdicts[0]
    yield f"PostgreSQL {first['server']}, {first['pooler']}, {cells_at_a_time} cells at a time on"
    yield f"{first['cores']} cores: recoveries are those of a loaded machine."
    for fault in FAULTS:
        found = [verdict for verdict in verdicts if verdict["fault"] == fault.name]
        if not found:
            continue
        hits = ", ".join(f"{count} {name}" for name, count in _last(found)["hits"].items())
        yield f"\n### {fault.name}: {fault.title}\n"
        yield f"{hits or 'No queue worked'} each.\n"
        yield f"| {' | '.join(COLUMNS)} |"
        yield f"|{'---|' * len(COLUMNS)}"
        for verdict in found:
            yield f"| {' | '.join(_row(verdict))} |"
    yield "\n### Versions and settings\n"
    yield "| queue | version | set-up | recovery | behind PgBouncer |"
    yield "|---|---|---|---|---|"
    for peer in PEERS:
        versions = sorted({verdict["version"] for verdict in verdicts if verdict["peer"] == peer.name})
        if versions:
            yield f"| {peer.title} | {'; '.join(versions)} | {peer.settings} | {peer.recovery} | {peer.pooled} |"
    if broken := [f"{one['fault']}: {text}" for one in verdicts for text in one["violations"]]:
        yield "\nBroken by queue-pg, by the ledger of its transitions:\n"
        yield from (f"- {text}" for text in broken)
    else:
        yield "\nIn each cell of queue-pg the ledger of its transitions was held against S1 to S8 as well; nothing was"
        yield "broken."


def _row(verdict: Mapping[str, Any]) -> list[str]:
    title = next(peer.title for peer in PEERS if peer.name == verdict["peer"])
    figures: Mapping[str, float] = verdict["figures"]
    if verdict["obstacle"]:
        return [title, f"does not work: `{verdict['obstacle'].replace('|', '/')}`", *[""] * (len(COLUMNS) - 2)]
    recovery = f"{figures['recovery_p50_s']:.1f}, {figures['recovery_max_s']:.1f}" if figures["recoveries"] else "-"
    counts = ("jobs", "lost", "given_up", "stuck", "explained", "unexplained")
    return [
        title,
        *(_bold(figures[name], bad=name in {"lost", "given_up", "stuck", "unexplained"}) for name in counts),
        recovery,
        f"{figures['errors']:g}",
        f"{figures['submission_max_s']:.1f}",
        _bold(figures["endings"]),
        _bold(figures["silent"]),
    ]


def _bold(count: float, *, bad: bool = True) -> str:
    return f"**{count:g}**" if bad and count else f"{count:g}"


def _last(found: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((verdict for verdict in reversed(found) if not verdict["obstacle"]), found[-1])


def _moment(date: str) -> str:
    return date.replace("T", " ").removesuffix("+00:00") + " UTC"
