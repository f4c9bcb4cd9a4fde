"""The results of `make faults` in docs/reliability.md: rendered from tests/faults/results.json, never by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.results import ROOT, describe_machine
from tests.faults.arena import Verdict
from tests.faults.fleet import LEASE_SECONDS
from tests.faults.plan import FAULTS
from tests.faults.record import Record
from tests.faults.recovery import AFTER_SECONDS, BACK_SECONDS, RECLAIM_SECONDS

RESULTS: Final = Path(__file__).with_name("results.json")
PAGE: Final = ROOT / "docs" / "reliability.md"
BEGIN: Final = "<!-- results: written by make faults -->"
END: Final = "<!-- end of results -->"


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over all runs: of hits or figures with these names, and how much a whole run is meant to have."""

    title: str
    names: Sequence[str]
    wanted: int = 0


TOTALS: Final = (
    Total("jobs", ["jobs"], 1_000_000),
    Total("executions", ["executions"]),
    Total("workers killed", ["worker kills", "kills of who fires"], 2_000),
    Total("workers frozen", ["freezes"]),
    Total("servers killed", ["server kills", "failovers"], 200),
    Total("servers restarted", ["restarts"]),
    Total("connections terminated", ["terminations"], 2_000),
    Total("replies lost after the commit", ["lost replies to applications", "lost replies to workers"], 500),
    Total("APIs killed", ["API kills"]),
    Total("clocks set wrong", ["wrong clocks"]),
    Total("stale writes tried", ["stale writes tried"], 10_000),
    Total("stale writes accepted", ["stale_accepted"]),
    Total("acknowledged jobs lost", ["lost"]),
    Total("duplicates explained by a lost lease", ["duplicates_after_losses"]),
    Total("duplicates unexplained", ["duplicates_unexplained"]),
    Total("executions again as asked: retries, sleeps, jobs handed back", ["executions_as_asked"]),
    Total("jobs given up after three lost leases", ["given_up"]),
    Total("jobs that failed or were cancelled as they were meant to", ["failed_or_cancelled"]),
    Total("processes left behind", ["processes_left"]),
)


NONE_OF: Final = {
    "stale writes accepted",
    "acknowledged jobs lost",
    "duplicates unexplained",
    "processes left behind",
}


@dataclass(frozen=True, slots=True)
class Time:
    """A figure of some faults in seconds, or several, and what is promised."""

    title: str
    names: Sequence[str]
    promised: str


TIMES: Final = (
    Time(
        "until as much is done as before Postgres went, middle / max",
        ["back_p50_s", "back_max_s"],
        f"{BACK_SECONDS:g} s in the middle (seen for {AFTER_SECONDS:g} s)",
    ),
    Time(
        "until others claim the jobs of a worker that is killed in calm, max",
        ["reclaim_in_calm_max_s"],
        f"{LEASE_SECONDS + RECLAIM_SECONDS:g} s: its lease and {RECLAIM_SECONDS:g} s",
    ),
    Time(
        "the same of every killed worker, in calm or not, middle / p99",
        ["reclaim_p50_s", "reclaim_p99_s"],
        "the same (19 of 20)",
    ),
    Time("until connections whose packets are dropped are left, max", ["drop_noticed_max_s"], "30 s"),
    Time("until connections that are silent for good are left, max", ["silence_noticed_max_s"], "70 s"),
    Time("the longest INSERT while migrations wait, max", ["insert_max_s"], "0.5 s: `lock_timeout`"),
    Time("one in a thousand of these takes longer than", ["insert_p999_s"], ""),
    Time("from the end of a primary to jobs done on the next, max", ["failover_max_s"], ""),
)


def load(path: Path = RESULTS) -> tuple[Mapping[str, str], list[Verdict]]:
    """Return the machine and the verdicts that are published; none where there are none."""
    if not path.exists():
        return {}, []
    stored = json.loads(path.read_text())
    return stored["machine"], [Verdict(**verdict) for verdict in stored["verdicts"]]


def gather(folder: Path, seed: int) -> list[Verdict]:
    """Return the verdicts of the full runs with this seed, in the order of the plan, each judged again."""
    found = [judge_again(path.parent) for path in folder.glob(f"F*-{seed}/verdict.json")]
    order = [fault.name for fault in FAULTS]
    return sorted(found, key=lambda verdict: order.index(verdict.fault))


def judge_again(folder: Path) -> Verdict:
    """Return the verdict of a run, with the figures and broken promises that today's checker sees in its ledgers."""
    verdict = Verdict(**json.loads((folder / "verdict.json").read_text()))
    account = Record.load(folder).account()
    broken = dict.fromkeys([*verdict.violations, *map(str, account.violations)])
    return replace(verdict, figures={**verdict.figures, **account.figures}, violations=list(broken))


def write(verdicts: Sequence[Verdict], results: Path = RESULTS, page: Path = PAGE) -> None:
    """Publish these verdicts."""
    machine = describe_machine()
    results.write_text(
        json.dumps({"machine": machine, "verdicts": [asdict(verdict) for verdict in verdicts]}, indent=1) + "\n"
    )
    page.write_text(embed(page.read_text(), render(machine, verdicts)))


def embed(page: str, section: str) -> str:
    """Return the page with this section between its marks. Raises ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{section}{END}{after}"


def published(page: str) -> str:
    """Return the section between the marks of a page."""
    return page.partition(f"{BEGIN}\n")[2].partition(END)[0]


def render(machine: Mapping[str, str], verdicts: Sequence[Verdict]) -> str:
    """Return the section in Markdown."""
    if not verdicts:
        return "No full run has been published yet.\n"
    sums = Counter[str]()
    for verdict in verdicts:
        for name, value in {**verdict.hits, **verdict.figures}.items():
            sums[name] += int(value)
    broken = [f"{verdict.fault} {violation}" for verdict in verdicts for violation in verdict.violations]
    minutes = sum(verdict.seconds for verdict in verdicts) / 60
    missing = [fault.name for fault in FAULTS if fault.name not in {verdict.fault for verdict in verdicts}]
    lines = [
        f"Seed {_all(verdicts, lambda one: str(one.seed))}, {minutes:,.0f} minutes, commit"
        f" {_all(verdicts, lambda one: one.commit)}, PostgreSQL {_all(verdicts, lambda one: one.server)};"
        f" {', '.join(f'{name} {value}' for name, value in machine.items())}.",
        "",
        "| in all | | wanted |",
        "|---|---|---|",
        *(
            f"| {total.title} | {(found := sum(sums[name] for name in total.names)):,} | {_wanted(total, found)} |"
            for total in TOTALS
            if any(name in sums for name in total.names)
        ),
        f"| promises broken | {len(broken)} | 0 |",
        "",
        _bound(sums["acked"], sums["lost"]),
        "",
        "| times | fault | | promised |",
        "|---|---|---|---|",
        *(line for time in TIMES for line in _time_rows(time, verdicts)),
        "",
        "| fault | minutes | hits | jobs | lost | given up | leases lost | duplicates explained / not | as asked"
        " | recovery p50 / p99 / max | shutdown max |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_row, verdicts),
        "",
    ]
    if missing:
        lines += [f"Not made: {', '.join(missing)}.", ""]
    if broken:
        lines += ["Broken promises:", "", *(f"- {text}" for text in broken), ""]
    return "\n".join(lines)


def _all(verdicts: Sequence[Verdict], of: Callable[[Verdict], str]) -> str:
    return ", ".join(sorted({of(verdict) for verdict in verdicts}))


def _wanted(total: Total, found: int) -> str:
    if total.wanted:
        return f"{total.wanted:,}" + (", **not reached**" if found < total.wanted else "")
    return "0" if total.title in NONE_OF else ""


def _bound(acked: int, lost: int) -> str:
    if lost or not acked:
        return f"{lost} of {acked:,} acknowledged jobs were lost."
    return (
        f"None of {acked:,} acknowledged jobs was lost: were one in {acked // 3:,} lost under such faults, a run"
        " like this would show it with a probability of 95 % (3/N)."
    )


def _time_rows(time: Time, verdicts: Sequence[Verdict]) -> list[str]:
    return [
        f"| {time.title} | {verdict.fault} | {' / '.join(f'{verdict.figures[name]:.2f} s' for name in time.names)}"
        f" | {time.promised} |"
        for verdict in verdicts
        if time.names[0] in verdict.figures
    ]


def _row(verdict: Verdict) -> str:
    def figure(name: str, form: str = ",.0f") -> str:
        # Not all are counted in every fault, nor were they always.
        return format(verdict.figures[name], form) if name in verdict.figures else "-"

    hits = ", ".join(f"{count:,} {name}" for name, count in verdict.hits.items())
    recovery = " / ".join(
        f"{figure(name, '.2f')} s" if name in verdict.figures else "-"
        for name in ("recovery_p50_s", "recovery_p99_s", "recovery_max_s")
    )
    return (
        f"| {verdict.fault} | {verdict.seconds / 60:.1f} | {hits} | {figure('jobs')} | {figure('lost')}"
        f" | {figure('given_up')} | {figure('leases_lost')}"
        f" | {figure('duplicates_after_losses')} / {figure('duplicates_unexplained')}"
        f" | {figure('executions_as_asked')} | {recovery} | {figure('shutdown_max_s', '.2f')} s |"
    )
