"""The checker is itself checked: a run in order is clean, and each kind of disorder is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.checker import LEGAL, Expectation, check
from tests.faults.ledgers import ACKED, FAILED, UNKNOWN, Edge, Evidence, Run, Stored, Submission
from tests.faults.parts import MADE, BatchRow, CommandLine, Parts, StepRun, find_broken

BEGAN = Edge(1, 10.0, 1, "a", "made", None, "queued", 0, 0, None, None, None)
CLAIMED = Edge(2, 11.0, 2, "a", "changed", "queued", "running", 1, 0, "w1", None, 12.0)
LOST = Edge(3, 12.5, 3, "a", "changed", "running", "queued", 1, 1, None, 12.0, None)
AGAIN = Edge(4, 13.0, 4, "a", "changed", "queued", "running", 2, 1, "w2", None, 14.0)
REMOVED = Edge(5, 13.5, 5, "a", "removed", "running", None, 2, 1, "w2", 14.0, None)
ENDED = Edge(6, 13.5, 5, "a", "ended", None, "completed", 2, 1, "w2", None, None)
ROW = Stored("a", 7, "completed", 2, 1, 2, "key", live=False, kind="work")
# In the place of the loss: the job was handed back, or its attempt failed.
RETURNED = replace(LOST, losses=0)
RETRIED = replace(RETURNED, after="scheduled")

# A worker lost a lease, another did the job.
CLEAN = Evidence(
    submissions=[Submission(7, ACKED, "a"), Submission(8, FAILED), Submission(9, UNKNOWN)],
    runs=[Run(7, "a", 1, 100, 0, None), Run(7, "a", 2, 101, 5, 9)],
    edges=[BEGAN, CLAIMED, LOST, AGAIN, REMOVED, ENDED],
    stored=[ROW],
)
WATCHFUL = Expectation(excused={"w1"}, caps={"one": ({7}, 1)}, dead_at_ns={100: 3})


def test_a_run_in_order_is_clean_and_counted() -> None:
    account = check(CLEAN, WATCHFUL)
    assert account.violations == []
    assert account.figures == {
        "jobs": 1, "acked": 1, "failed": 1, "unknown": 1, "executions": 2, "cut_short": 1, "leases_lost": 1, "lost": 0,
        "duplicates_after_losses": 1, "executions_as_asked": 0, "duplicates_unexplained": 0, "given_up": 0,
        "failed_or_cancelled": 0,
    }  # fmt: skip


def test_the_legal_changes_are_those_of_the_page() -> None:
    assert ("running", "completed") in LEGAL
    assert ("completed", "queued") not in LEGAL
    assert len(LEGAL) > 15


def edges(*changed: Edge, without: tuple[Edge, ...] = ()) -> Callable[[Evidence], Evidence]:
    """Return a change of the evidence: edges in place of those with their numbers, and some taken away."""

    def tamper(evidence: Evidence) -> Evidence:
        by_seq = {edge.seq: edge for edge in evidence.edges if edge not in without} | {
            edge.seq: edge for edge in changed
        }
        return replace(evidence, edges=[by_seq[seq] for seq in sorted(by_seq)])

    return tamper


DISORDER: dict[str, tuple[str, Callable[[Evidence], Evidence]]] = {
    "an acknowledged row dropped": ("S1", lambda e: replace(e, stored=[])),
    "an acknowledged number under two ids": ("S1", lambda e: replace(e, stored=[ROW, replace(ROW, id="b")])),
    "a refused submission stored": ("S2", lambda e: replace(e, stored=[ROW, replace(ROW, id="b", number=8)])),
    "an unknown submission stored twice": (
        "S2",
        lambda e: replace(e, stored=[ROW, replace(ROW, id="b", number=9), replace(ROW, id="c", number=9)]),
    ),
    "an acknowledged submission whose id nobody asked for, stored twice": (
        "S1",
        lambda e: replace(
            e,
            submissions=[*e.submissions, Submission(17, ACKED)],
            stored=[ROW, replace(ROW, id="b", number=17), replace(ROW, id="c", number=17)],
        ),
    ),
    "an acknowledged submission whose id nobody asked for, gone": (
        "S1",
        lambda e: replace(e, submissions=[*e.submissions, Submission(17, ACKED)]),
    ),
    "half of what was submitted at once": (
        "S2",
        lambda e: replace(
            e,
            submissions=[*e.submissions, Submission(17, UNKNOWN, None, 3), Submission(18, UNKNOWN, None, 3)],
            stored=[ROW, replace(ROW, id="b", number=17)],
        ),
    ),
    "a job that nobody submitted": ("S2", lambda e: replace(e, stored=[ROW, replace(ROW, id="b", number=77)])),
    "a change that is not legal": ("S3", edges(replace(LOST, after="waiting"), replace(AGAIN, before="waiting"))),
    "a row written over after its end": ("S3", edges(replace(ENDED, seq=7, what="rewritten", before="completed"))),
    "a row removed without an end": ("S3", edges(without=(ENDED,))),
    "a state flipped": ("S4", lambda e: replace(e, stored=[replace(ROW, state="failed")])),
    "two ends": ("S4", edges(replace(ENDED, seq=7, xid=6))),
    "an end by a stale lease": ("S4", edges(replace(ENDED, token=1))),
    "a result of another lease": ("S4", lambda e: replace(e, stored=[replace(ROW, told=1)])),
    "a completed job that no handler has done": ("S4", lambda e: replace(e, runs=e.runs[:1])),
    "a completed job whose handler did not come to its end": (
        "S4",
        lambda e: replace(e, runs=[e.runs[0], replace(e.runs[1], end_ns=None)]),
    ),
    "an execution doubled": ("S5", lambda e: replace(e, runs=[*e.runs, e.runs[1]])),
    "an execution without a claim": ("S5", lambda e: replace(e, runs=[*e.runs, replace(e.runs[1], token=3)])),
    "a lease that nothing ended": (
        "S5",
        edges(replace(AGAIN, before="running"), without=(LOST,)),
    ),
    "a job handed back that was done": (
        "S5",
        lambda e: edges(RETURNED)(replace(e, runs=[replace(e.runs[0], end_ns=3), e.runs[1]])),
    ),
    "a job that nobody wanted to fail": (
        "L4",
        lambda e: edges(replace(ENDED, after="failed"))(replace(e, stored=[replace(ROW, state="failed")])),
    ),
    "a lease taken from whom nobody disturbed": ("S5", edges(replace(CLAIMED, worker="w2"))),
    "a lease taken away too early": ("S6", edges(replace(LOST, at=11.5))),
    "a token given twice": ("S6", edges(replace(AGAIN, token=1))),
    "more at once than allowed": ("S7", lambda e: replace(e, runs=[e.runs[0], replace(e.runs[1], begin_ns=2)])),
    "a unique key of two jobs": ("S8", lambda e: replace(e, stored=[ROW, replace(ROW, id="b", number=9)])),
    "a job that never ended": ("L1", lambda e: replace(e, stored=[replace(ROW, live=True, state="running")])),
}


def test_why_a_job_ran_again_is_counted() -> None:
    figures = check(edges(RETRIED, replace(AGAIN, before="scheduled"))(CLEAN), Expectation()).figures
    assert (figures["duplicates_after_losses"], figures["executions_as_asked"]) == (0, 1)
    rerun = [
        replace(BEGAN, seq=9, xid=9, what="taken back", before="failed", after=None, token=2, losses=1),
        replace(BEGAN, seq=10, xid=9, token=2, losses=1),
        replace(CLAIMED, seq=11, token=3, losses=1, worker="w3"),
        replace(REMOVED, seq=12, xid=12, token=3),
        replace(ENDED, seq=13, xid=12, token=3),
    ]
    runs = [*CLEAN.runs, replace(CLEAN.runs[1], token=3)]
    first = [*CLEAN.edges[:-1], replace(ENDED, after="failed")]
    again = replace(CLEAN, edges=[*first, *rerun], runs=runs, stored=[replace(ROW, token=3, told=3)])
    account = check(again, Expectation())
    assert account.violations == []
    assert (account.figures["duplicates_after_losses"], account.figures["executions_as_asked"]) == (1, 1)
    # It does not explain that two ran before it.
    doubled = edges(replace(AGAIN, before="running"), without=(LOST,))(again)
    assert "S5" in {found.invariant for found in check(doubled, Expectation()).violations}


def test_who_may_fail() -> None:
    def violations(*, kind: str, losses: int, **allowed: Any) -> set[str]:
        failed = replace(ROW, state="failed", kind=kind, losses=losses)
        evidence = replace(edges(replace(ENDED, after="failed"))(CLEAN), stored=[failed])
        return {found.invariant for found in check(evidence, replace(WATCHFUL, **allowed)).violations}

    assert violations(kind="work", losses=2) == {"L4"}
    assert violations(kind="work", losses=3) == set()
    assert violations(kind="work", losses=0, may_fail=["shout"]) == {"L4"}
    assert violations(kind="shout", losses=0, may_fail=["shout"]) == set()
    assert violations(kind="work", losses=0, may_fail=None) == set()


def test_jobs_that_others_do_need_no_witness() -> None:
    unseen = replace(CLEAN, runs=CLEAN.runs[:1])
    assert check(unseen, replace(WATCHFUL, unwitnessed=None)).violations == []
    assert check(unseen, replace(WATCHFUL, unwitnessed=["work"])).violations == []
    assert {found.invariant for found in check(unseen, replace(WATCHFUL, unwitnessed=["chat"])).violations} == {"S4"}


def test_only_what_has_ended_and_nobody_was_promised_may_be_forgotten() -> None:
    def missing(edges: list[Edge], *, acked: bool, forgets: bool) -> set[str]:
        evidence = replace(CLEAN, submissions=CLEAN.submissions if acked else [], edges=edges, stored=[])
        return {found.invariant for found in check(evidence, replace(WATCHFUL, forgets=forgets)).violations}

    whole = list(CLEAN.edges)
    assert missing(whole, acked=False, forgets=True) == set()
    assert missing(whole, acked=False, forgets=False) == {"S1"}
    assert missing(whole, acked=True, forgets=True) == {"S1"}
    assert missing([BEGAN, CLAIMED, LOST, AGAIN], acked=False, forgets=True) == {"S1"}


@pytest.mark.parametrize("name", DISORDER)
def test_each_disorder_is_seen(name: str) -> None:
    invariant, tamper = DISORDER[name]
    found = {violation.invariant for violation in check(tamper(CLEAN), WATCHFUL).violations}
    assert invariant in found, f"found: {found or 'nothing'}"


# A parent and its child in a batch of two; a job that did a step, left a file, and has three events.
WHOLE = Parts(
    families=[(7, 8)],
    members={"b": [7, 8]},
    steps=[StepRun("a", "first", 1), StepRun("a", "first", 2)],
    kept={"a": {"first": 2}},
    batches=[BatchRow("b", "completed", 2, 2, 0, 0, 1)],
    makers=["a"],
    artifacts={"a": MADE},
    events={"a": (3, 3)},
    # The first process was killed with its worker.
    commands=[CommandLine("x", 51, "begin"), CommandLine("x", 52, "begin"), CommandLine("x", 52, "end")],
)
FAMILY_RUNS = [*CLEAN.runs, Run(8, "c", 1, 101, 10, 11)]
FAMILY_ROWS = [ROW, replace(ROW, id="c", number=8, token=1), replace(ROW, id="x", number=9, kind="command")]
[BATCH_ROW] = WHOLE.batches

DISORDERED_PARTS: dict[str, tuple[str, Parts]] = {
    "a child before its parent": ("P1", replace(WHOLE, families=[(8, 7)])),
    "a batch that is gone": ("P2", replace(WHOLE, batches=[])),
    "a batch that counts one too few": ("P2", replace(WHOLE, batches=[replace(BATCH_ROW, completed=1)])),
    "a batch that has not ended": ("P2", replace(WHOLE, batches=[replace(BATCH_ROW, state="closed")])),
    "a batch that told twice": ("P2", replace(WHOLE, batches=[replace(BATCH_ROW, told=2)])),
    "a step done again after it was kept": ("P3", replace(WHOLE, kept={"a": {"first": 1}})),
    "a step done twice by one lease": ("P3", replace(WHOLE, steps=[*WHOLE.steps, StepRun("a", "first", 2)])),
    "a file that is not there": ("P4", replace(WHOLE, artifacts={})),
    "a command that goes on beside the next one": (
        "P7",
        replace(WHOLE, commands=[*WHOLE.commands, CommandLine("x", 51, "end")]),
    ),
    "a command that did not come to its end": ("P7", replace(WHOLE, commands=WHOLE.commands[:2])),
    "an event that is not there": ("P5", replace(WHOLE, events={"a": (2, 3)})),
}


def test_parts_in_order_are_clean() -> None:
    assert list(find_broken(WHOLE, FAMILY_RUNS, FAMILY_ROWS, CLEAN.edges)) == []


def test_a_step_of_an_attempt_that_ended_in_order_is_not_done_again() -> None:
    [(invariant, job, _)] = find_broken(WHOLE, FAMILY_RUNS, FAMILY_ROWS, edges(RETRIED)(CLEAN).edges)
    assert (invariant, job) == ("P3", "a")


@pytest.mark.parametrize("name", DISORDERED_PARTS)
def test_each_disorder_of_parts_is_seen(name: str) -> None:
    invariant, parts = DISORDERED_PARTS[name]
    found = {broken[0] for broken in find_broken(parts, FAMILY_RUNS, FAMILY_ROWS, CLEAN.edges)}
    assert invariant in found, f"found: {found or 'nothing'}"


def test_what_a_primary_had_alone_is_lost_and_counted() -> None:
    """That excuses no more than a loss and what was done with leases that nobody knows of, and of no other job."""
    doubtful = replace(WATCHFUL, forsaken=["a"])
    for name, (invariant, tamper) in DISORDER.items():
        account = check(tamper(CLEAN), doubtful)
        kept = {violation.invariant for violation in account.violations}
        if invariant in {"S1", "S5"} and invariant not in kept:
            assert account.figures["lost_with_the_primary"] + account.figures["executions_it_had_alone"] > 0, name
        else:
            assert invariant in kept, name
    assert check(DISORDER["an acknowledged row dropped"][1](CLEAN), doubtful).figures["lost"] == 0
    assert (
        check(DISORDER["an acknowledged row dropped"][1](CLEAN), replace(WATCHFUL, forsaken=["b"])).figures["lost"] == 1
    )
