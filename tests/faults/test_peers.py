"""Who judges other queues is judged: each disorder of an orderly account is seen, and a queue that loses jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.ledgers import ACKED, UNKNOWN, Run
from tests.faults.peers.adapters import FORGETFUL, PEERS, find_peer
from tests.faults.peers.cell import FAULTS, Size, Verdict, run
from tests.faults.peers.judge import EVERYBODY, JOBS, WORKERS, Hit, Judgement, Ledgers, Left, Told, judge
from tests.faults.peers.page import BEGIN, END, write_page

S = 1_000_000_000
TINY = Size(hits=2, rate=24, seconds=0.5, workers=2, dead_seconds=2)
FIRST = Run(1, "a", 1, 11, 1 * S, None)
AGAIN = Run(1, "a", 1, 12, 7 * S, 8 * S)
OTHER = Run(2, "b", 2, 12, 3 * S, 4 * S)
KILLED = Hit("killed", 2 * S, 2 * S, 11, JOBS)
# One job whose worker was killed, so another did it again; one that nothing happened to; one that nobody knows of.
ORDERLY = Ledgers(
    submissions=[Told(1, ACKED, "a", 0, 1), Told(2, ACKED, "b", 0, S // 2), Told(3, UNKNOWN, None, 0, 2 * S, "away")],
    runs=[FIRST, OTHER, AGAIN],
    hits=[KILLED],
    left=[],
    places={11: 0, 12: 1},
)


def test_an_orderly_account() -> None:
    assert judge(ORDERLY) == Judgement(
        {
            "jobs": 2,
            "acked": 2,
            "errors": 1,
            "executions": 3,
            "lost": 0,
            "given_up": 0,
            "stuck": 0,
            "explained": 1,
            "unexplained": 0,
            "recoveries": 1,
            "submission_max_s": 2.0,
            "recovery_p50_s": 5.0,
            "recovery_max_s": 5.0,
        },
        {"lost": [], "given up": [], "stuck": [], "unexplained": []},
    )


DISORDER: dict[str, tuple[str, Callable[[Ledgers], Ledgers]]] = {
    "no execution came to its end": ("lost", lambda e: replace(e, runs=[FIRST, OTHER])),
    "an id given to two jobs, one of which is done": (
        "lost",
        lambda e: replace(e, submissions=[*e.submissions, Told(4, ACKED, "b", 0, 1)]),
    ),
    "no execution at all": ("lost", lambda e: replace(e, runs=[OTHER])),
    "the queue says that it has failed": (
        "given up",
        lambda e: replace(e, runs=[FIRST, OTHER], left=[Left("a", "failed", live=False)]),
    ),
    "still to be done": ("stuck", lambda e: replace(e, runs=[FIRST, OTHER], left=[Left("a", "running", live=True)])),
    "done, and still to be done": ("stuck", lambda e: replace(e, left=[Left("b", "running", live=True)])),
    "an execution doubled": ("unexplained", lambda e: replace(e, runs=[*e.runs, replace(OTHER, token=3)])),
    "again, and nothing had happened": ("unexplained", lambda e: replace(e, hits=[])),
    "again, and it had happened to another": ("unexplained", lambda e: replace(e, hits=[replace(KILLED, pid=13)])),
    "again, before it happened": (
        "unexplained",
        lambda e: replace(e, hits=[replace(KILLED, begin_ns=9 * S, end_ns=9 * S)]),
    ),
    "again, and it had happened long before the submission": (
        "unexplained",
        lambda e: replace(e, hits=[replace(KILLED, begin_ns=-12 * S, end_ns=-11 * S)]),
    ),
}


@pytest.mark.parametrize("name", DISORDER)
def test_each_disorder_is_seen(name: str) -> None:
    kind, spoil = DISORDER[name]
    assert {kind: len(jobs) for kind, jobs in judge(spoil(ORDERLY)).jobs.items() if jobs} == {kind: 1}


def test_who_was_frozen_before_its_first_line_explains() -> None:
    frozen = Hit("frozen", 2 * S, 6 * S, 12, JOBS)
    found = judge(replace(ORDERLY, runs=[replace(FIRST, end_ns=5 * S), OTHER, AGAIN], hits=[frozen]))
    assert (found.figures["explained"], found.figures["unexplained"]) == (1, 0)


def test_what_happens_to_everybody_explains() -> None:
    found = judge(replace(ORDERLY, hits=[Hit("Postgres killed", 2 * S, 5 * S, EVERYBODY, WORKERS)]))
    assert (found.figures["explained"], found.figures["unexplained"]) == (1, 0)
    # Of the two workers the second has begun a job afterwards, two seconds after the server was back.
    assert (found.figures["recoveries"], found.figures["recovery_p50_s"]) == (1, 2.0)


def test_a_worker_that_thaws_and_ends_its_job_has_recovered_it() -> None:
    frozen = Hit("frozen", int(3.5 * S), 9 * S, 12, JOBS)
    found = judge(replace(ORDERLY, hits=[KILLED, frozen]))
    assert (found.figures["recoveries"], found.figures["recovery_max_s"]) == (2, 5.0)


def _run(name: str, folder: Path) -> Verdict:
    return run(find_peer(name), FAULTS[0], seed=1, folder=folder / name, size=TINY)


def test_queue_pg_in_the_harness_of_its_peers(tmp_path: Path) -> None:
    verdict = _run("queue-pg", tmp_path)
    figures = verdict.figures
    assert verdict.obstacle is None
    assert verdict.violations == []
    assert verdict.hits == {"worker kills": 2}
    assert figures["acked"] > 0
    assert figures["lost"] == figures["given_up"] == figures["stuck"] == figures["unexplained"] == 0, verdict
    assert figures["endings"] == figures["silent"] == figures["unclean"] == 0, verdict


def test_a_queue_that_loses_jobs_is_seen(tmp_path: Path) -> None:
    verdict = _run(FORGETFUL.name, tmp_path)
    assert verdict.figures["lost"] > 0, verdict
    assert verdict.figures["explained"] == verdict.figures["unexplained"] == 0, verdict


def test_the_page_holds_what_the_verdicts_say(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    verdict: dict[str, Any] = {
        "peer": "awa",
        "fault": "F1",
        "seed": 7,
        "date": "2026-01-01T00:00:00+00:00",
        "commit": "abc",
        "version": "awa-pg 1",
        "server": "18.1",
        "pooler": "PgBouncer 1.18.0",
        "cores": 2,
        "hits": {"worker kills": 3},
        "violations": [],
        "obstacle": None,
        "figures": {
            "jobs": 90,
            "lost": 2,
            "given_up": 0,
            "stuck": 0,
            "explained": 4,
            "unexplained": 0,
            "recoveries": 3,
            "recovery_p50_s": 1.04,
            "recovery_max_s": 2.0,
            "errors": 5,
            "submission_max_s": 0.25,
            "endings": 0,
            "silent": 1,
        },
    }
    silent = {**verdict, "peer": "queue-pg", "obstacle": "no | worker"}
    write_page(page, [verdict, silent], cells_at_a_time=2)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| awa | 90 | **2** | 0 | 0 | 4 | 0 | 1.0, 2.0 | 5 | 0.2 | 0 | **1** |" in text
    assert "| queue-pg | does not work: `no / worker` |" in text
    assert "3 worker kills each." in text
    assert "seed 7" in text
    with pytest.raises(ValueError, match="no place"):
        write_page(tmp_path / "page.md", [], cells_at_a_time=2)


def test_each_queue_says_how_it_is_set_up() -> None:
    assert all(peer.settings and peer.recovery and peer.pooled for peer in PEERS)
