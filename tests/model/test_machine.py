"""The SQL functions against the model of jobs.py, by programs that Hypothesis makes up.

MODEL_EXAMPLES and MODEL_STEPS say how many programs of how many steps, MODEL_SEED which; `make model` sets them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import cast

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.model.machine import Database, QueueMachine

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "60"))
STEPS = int(os.environ.get("MODEL_STEPS", "30"))
SEED = int(os.environ.get("MODEL_SEED", "1"))
SHARDS = max(2, EXAMPLES // 250)


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    database = Database(dsn)
    yield database
    database.close()


def explore(database: Database, examples: int, steps: int, number: int, *phases: Phase) -> None:
    machine = cast(type[RuleBasedStateMachine], seed(number)(lambda: QueueMachine(database)))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=phases or (Phase.generate, Phase.shrink),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )


@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_functions_do_what_the_model_does(
    database: Database, shard: int, record_property: Callable[[str, object], None]
) -> None:
    explore(database, -(-EXAMPLES // SHARDS), STEPS, SEED * SHARDS + shard)
    record_property("model", f"{database.steps} steps compared, seed {SEED}, shard {shard}")


# What somebody could get wrong: the function, what it says, and what it would say instead.
TOKEN = "j.lease_expires_at is not null and j.lease_token = i.lease_token"
HELD = "j.lease_expires_at is not null"
BUGS = {
    "an outcome counts whatever its token": ("retire", f"({HELD} and j.lease_token = e.lease_token)", HELD),
    "an outcome that is no end counts whatever its token": ("finish", TOKEN, HELD),
    "a heartbeat counts whatever its token": ("heartbeat", TOKEN, HELD),
    "a heartbeat holds for ever": (
        "heartbeat",
        "least(v_now + held.lease, held.times_out_at + held.lease)",
        "v_now + held.lease",
    ),
    "a retry resets the token": ("retry", "v_now, v_job.created_at, v_job.lease_token,", "v_now, v_job.created_at, 0,"),
    "a lost lease is not counted": (
        "reap",
        "999999999) + case when u.timed_out then 0 else 1 end",
        "999999999) + 0",
    ),
    "a lost lease burns an attempt": (
        "reap",
        "greatest(j.attempt - case when u.timed_out then 0 else 1 end, 0)",
        "j.attempt",
    ),
    "a snooze burns an attempt": ("finish", "in ('snooze', 'wait', 'release') then 1", "in ('wait', 'release') then 1"),
    "one attempt too many": ("finish", "t.attempt >= t.max_attempts", "t.attempt > t.max_attempts"),
    "promoted a second late": ("promote", "j.run_at <= v_now", "j.run_at <= v_now - interval '1 second'"),
    "low priorities first": ("pick", "j.priority desc", "j.priority"),
    "claimed after its deadline": ("pick", "j.expires_at > v_now", "true"),
    "a limit that is one too high": ("take_from_lane", "v_key.max_running - ", "v_key.max_running + 1 - "),
    "a slot that is not given back": ("uncount_attempts", "having count(*) > 0", "having count(*) > 100"),
    "a child that does not care how its parent ended": (
        "fault_of",
        "outcome in ('failed', 'cancelled')",
        "outcome = 'cancelled'",
    ),
    "an event that wakes nobody": ("signal", "if v_job.state = 'scheduled' and", "if false and"),
    "a wait whose end is set anew": (
        "reach_wait",
        "set attempt = v_attempt,",
        "set until = reach_wait.until, attempt = v_attempt,",
    ),
    "a wait for the last of several": ("waits_until", "greatest(min(case", "greatest(max(case"),
    "an end that is not counted": ("retire", "count(*) filter (where m.state = 'failed')", "0"),
    "a cancelled task whose subtasks go on": (
        "cancel",
        "queue_pg.lock_families(array[v_job.id])",
        "array[v_job.id]",
    ),
}

# Those that take seconds, unless all is wanted.
QUICK = [bug for bug in BUGS if "token" in bug or "lost lease" in bug or "snooze" in bug]


@pytest.mark.parametrize("bug", BUGS if "MODEL_EXAMPLES" in os.environ else QUICK)
def test_a_planted_bug_is_found(database: Database, bug: str) -> None:
    name, said, instead = BUGS[bug]
    [(definition,)] = database.run("select pg_get_functiondef(p.oid) from pg_proc p where proname = %s", name)
    assert said in definition
    database.run(definition.replace(said, instead))
    with pytest.raises((AssertionError, psycopg.Error)):
        explore(database, 2_000, 30, 1, Phase.generate)
