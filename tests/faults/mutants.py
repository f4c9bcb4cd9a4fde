"""Planted bugs: each change of our own code below breaks a promise, and the tests beside it must notice.

`python -m tests.faults.mutants [NAME..]` copies the project, changes one place, runs those tests, and counts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LONGEST_SECONDS: Final = 180.0
ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Mutant:
    """`before` is in `file` once and becomes `after`; `tests` have to fail then."""

    name: str
    file: str
    before: str
    after: str
    tests: str


SQL: Final = "migrations/functions"
WORKER: Final = "workers/queue_pg_workers"
MUTANTS: Final = (
    Mutant(
        "a completion by anybody",
        f"{SQL}/retire.sql",
        "(retire.lease_tokens is null or (j.lease_expires_at is not null and j.lease_token = e.lease_token))",
        "true",
        "tests/sql/test_leases.py tests/sql/test_races.py",
    ),
    Mutant(
        "a failure by anybody",
        f"{SQL}/finish.sql",
        "where j.lease_expires_at is not null and j.lease_token = i.lease_token",
        "where j.lease_expires_at is not null",
        "tests/sql/test_leases.py tests/sql/test_races.py",
    ),
    Mutant(
        "a heartbeat by anybody",
        f"{SQL}/heartbeat.sql",
        "    where j.lease_expires_at is not null and j.lease_token = i.lease_token\n    order",
        "    where j.lease_expires_at is not null\n    order",
        "tests/sql/test_leases.py tests/sql/test_races.py",
    ),
    Mutant(
        "a heartbeat that knows only what the loop knows",
        f"{WORKER}/heartbeat.py",
        "            self._extend_unheard(connection, held)\n",
        "",
        "tests/workers/test_leases.py",
    ),
    Mutant(
        "a lease that is extended unheard and not trusted",
        f"{WORKER}/leases.py",
        "                    added[key].extended(asked_at=asked_at)\n",
        "                    pass\n",
        "tests/workers/test_leases.py",
    ),
    Mutant(
        "a heartbeat for what nobody claims",
        f"{WORKER}/unheard.py",
        "if age <= waited_seconds and",
        "if",
        "tests/workers/test_leases.py",
    ),
    Mutant(
        "events by anybody",
        f"{SQL}/events.sql",
        "    where j.lease_expires_at is not null and j.lease_token = e.lease_token",
        "    where j.lease_expires_at is not null",
        "tests/sql/test_events.py",
    ),
    Mutant(
        "live leases reaped",
        f"{SQL}/maintain.sql",
        "where j.state = 'running' and j.lease_expires_at < v_now and j.lease_expires_at > v_floor",
        "where j.state = 'running' and j.lease_expires_at > v_floor",
        "tests/sql/test_leases.py",
    ),
    Mutant(
        "lost leases that are not counted",
        f"{SQL}/maintain.sql",
        "lease_losses = least(j.lease_losses, 999999999) + case when u.timed_out then 0 else 1 end",
        "lease_losses = j.lease_losses",
        "tests/sql/test_leases.py tests/sql/test_states.py",
    ),
    Mutant(
        "a claim that keeps the token",
        f"{SQL}/claim.sql",
        "lease_token = least(j.lease_token, 999999999999999999) + 1, worker_id",
        "lease_token = greatest(j.lease_token, 1), worker_id",
        "tests/sql/test_leases.py tests/sql/test_races.py",
    ),
    Mutant(
        "a claim that does not count the attempt",
        f"{SQL}/claim.sql",
        "attempt = least(j.attempt, 999999999) + 1,",
        "attempt = greatest(j.attempt, 1),",
        "tests/sql/test_leases.py",
    ),
    Mutant(
        "a claim that waits for locked rows",
        f"{SQL}/claim.sql",
        "j.id limit wanted for update skip locked) p;\n  elsif above",
        "j.id limit wanted for update) p;\n  elsif above",
        "tests/sql/test_races.py tests/sql/test_leases.py",
    ),
    Mutant(
        "a claim of more than was asked for",
        f"{SQL}/claim.sql",
        "  v_ids := queue_pg.pick_from_queues(queues, kinds, v_wanted, only_org);\n  if arm",
        "  v_ids := queue_pg.pick_from_queues(queues, kinds, v_wanted + 1, only_org);\n  if arm",
        "tests/model/test_machine.py -k functions_do",
    ),
    Mutant(
        "a batch that locks in any order",
        f"{SQL}/heartbeat.sql",
        "    order by i.id\n    for no key update of j",
        "    order by i.id desc\n    for no key update of j",
        "tests/sql/test_races.py",
    ),
    Mutant(
        "NUL in error messages",
        "queue_pg/payloads.py",
        '    shown = shown.replace("\\x00", "\\ufffd")\n',
        "",
        "tests/library/test_payloads.py tests/library/test_outcomes.py",
    ),
    Mutant(
        "payloads read outside of the attempt's protection",
        f"{WORKER}/attempt.py",
        "        except UnreadableJson as error:\n            raise _Refused(payload_unreadable(job, str(error)))",
        "        except ZeroDivisionError as error:\n            raise _Refused(payload_unreadable(job, str(error)))",
        "tests/workers/test_running.py",
    ),
    Mutant(
        "leases measured by a clock that is set",
        "queue_pg/surroundings.py",
        "        return time.monotonic()\n",
        "        return time.time()\n",
        "tests/faults/test_faults.py::test_nothing_is_lost_and_nothing_is_unexplained[F14]",
    ),
    Mutant(
        "handlers that begin past their lease",
        f"{WORKER}/attempt.py",
        " or late > 0",
        "",
        "tests/workers/test_leases.py",
    ),
    Mutant(
        "an outage that costs handlers an attempt",
        "queue_pg/handler_patience.py",
        "if (pause := next(pauses, None)) is None or job.cancelled.is_set():",
        "if (pause := next(pauses, 0)) or True:",
        "tests/workers/test_steps.py",
    ),
    Mutant(
        "steps that any lease keeps",
        f"{SQL}/steps.sql",
        "where j.id = hold_lease.id and j.lease_expires_at is not null and j.lease_token = hold_lease.lease_token",
        "where j.id = hold_lease.id and j.lease_expires_at is not null",
        "tests/sql/test_steps.py",
    ),
    Mutant(
        "steps that are kept and done again",
        "queue_pg/steps.py",
        "return {step.name: step for step in found if step.finished_at is not None}",
        "return {step.name: step for step in found if step.finished_at is not None and step.type != 'step'}",
        "tests/faults/test_faults.py::test_nothing_is_lost_and_nothing_is_unexplained[F5]",
    ),
    Mutant(
        "a completion by anybody, of a worker that was frozen",
        f"{SQL}/retire.sql",
        "(retire.lease_tokens is null or (j.lease_expires_at is not null and j.lease_token = e.lease_token))",
        "true",
        "tests/faults/test_faults.py::test_nothing_is_lost_and_nothing_is_unexplained[F3]",
    ),
    Mutant(
        "a heartbeat by anybody, of a worker that was frozen",
        f"{SQL}/heartbeat.sql",
        "    where j.lease_expires_at is not null and j.lease_token = i.lease_token\n    order",
        "    where j.lease_expires_at is not null\n    order",
        "tests/faults/test_faults.py::test_nothing_is_lost_and_nothing_is_unexplained[F3]",
    ),
    Mutant(
        "no look after LISTEN",
        "queue_pg/wakeup.py",
        "        self._tell_taps()\n        self._listening.set()\n        self._signal_all()\n",
        "        self._tell_taps()\n        self._listening.set()\n",
        "tests/library/test_wakeup.py",
    ),
    Mutant(
        "a listener that stays away after an error",
        "queue_pg/wakeup.py",
        "            self._stop.wait(pause * self._surroundings.uniform(0.5, 1.0))\n",
        "            return\n",
        "tests/library/test_wakeup.py",
    ),
    Mutant(
        "cron by leadership only",
        f"{SQL}/schedules.sql",
        "values (schedule.id, v_fire) on conflict do nothing;\n    if found then",
        "values (schedule.id, v_fire) on conflict do nothing;\n    if true then",
        "tests/sql/test_schedules.py",
    ),
    Mutant(
        "ends that are not durable",
        "queue_pg/sql/finish.sql",
        "set_config('synchronous_commit', 'on', true)",
        "set_config('application_name', 'on', true)",
        "tests/library/test_connections.py tests/library/test_statements.py",
    ),
    Mutant(
        "handlers that go on past their lease",
        f"{WORKER}/leases.py",
        "                if held.interruption is None and now > held.trusted_until:",
        "                if held.interruption is None and now > held.trusted_until + 3600:",
        "tests/workers/test_leases.py",
    ),
    Mutant(
        "slots of limits that are never given back by the reaper",
        f"{SQL}/maintain.sql",
        "if v_counted then\n    perform queue_pg.uncount_attempts(v_ids);",
        "if false then",
        "tests/sql/test_limits.py",
    ),
    Mutant(
        "children that nobody releases",
        f"{SQL}/retire.sql",
        "    perform queue_pg.release_children(v_awaited, v_ends);",
        "    null;",
        "tests/sql/test_dependencies.py",
    ),
    Mutant(
        "trees of commands that outlive their worker",
        f"{WORKER}/commands/keeper.py",
        "self.prctl(PR_SET_CHILD_SUBREAPER",
        "self.prctl(PR_SET_NO_NEW_PRIVS",
        "tests/workers/test_command_trees.py",
    ),
    Mutant(
        "artifacts that are not verified",
        "queue_pg/artifacts.py",
        "        if hashed(data).digest() != expected:",
        "        if len(data) > CHUNK_BYTES:",
        "tests/library/test_artifacts.py",
    ),
    Mutant(
        "a cancel that lets the worker go on",
        f"{SQL}/control.sql",
        "perform queue_pg.send_hint('queue_pg_cancel', left(v_job.worker_id, 1000));",
        "null;",
        "tests/workers/test_leases.py",
    ),
    Mutant(
        "retries that come at once",
        f"{SQL}/finish.sql",
        "(0.5::float8 + random() / 2::float8)",
        "1::float8",
        "tests/faults/test_faults.py -k F36",
    ),
    Mutant(
        "a fleet that was throttled and comes back as one",
        f"{WORKER}/kinds.py",
        "random.uniform(1, 1 + SPREAD)",
        "1",
        "tests/workers/test_chat.py",
    ),
    Mutant(
        "ends in bulk that lock in any order",
        f"{SQL}/finish.sql",
        "    order by i.id\n    for update of j",
        "    order by random()\n    for update of j",
        "tests/faults/test_faults.py -k F24",
    ),
    Mutant(
        "an outage that is told with each try",
        f"{WORKER}/outage.py",
        "        if not self._failures:\n            reason",
        "        if True:\n            reason",
        "tests/faults/test_outages.py",
    ),
    Mutant(
        "processes that try again at the same times",
        f"{WORKER}/outage.py",
        "return self._surroundings.uniform(longest / 2, longest)",
        "return longest",
        "tests/faults/test_outages.py",
    ),
    Mutant(
        "a listener that tries again without a pause",
        "queue_pg/wakeup.py",
        "self._stop.wait(pause * self._surroundings.uniform(0.5, 1.0))",
        "self._stop.wait(0.001)",
        "tests/faults/test_outages.py",
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the tests said. `how`: killed, SURVIVED, or broken when they did not get to say anything."""

    mutant: Mutant
    how: str
    seconds: float
    tail: str


def try_mutant(mutant: Mutant) -> Outcome:
    """Plant one bug in a copy and run its tests there."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="queue-pg-mutant-") as place:
        copy = Path(place, "project")
        _copy(copy)
        file = copy / mutant.file
        source = file.read_text()
        if source.count(mutant.before) != 1:
            return Outcome(mutant, "broken", 0.0, f"its text is in {mutant.file} {source.count(mutant.before)} times")
        file.write_text(source.replace(mutant.before, mutant.after))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(copy / part) for part in (".", "api", "workers")),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n2", "-pno:cacheprovider", *mutant.tests.split()]
        with tempfile.TemporaryFile("w+") as said:
            # A session of its own, so that all of it can be ended.
            process = subprocess.Popen(
                command, cwd=copy, env=environment, stdout=said, stderr=said, start_new_session=True
            )
            try:
                code = process.wait(LONGEST_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                # On a slow machine that may be any test; one has to say what is wrong.
                return Outcome(mutant, "broken", time.monotonic() - begin, "its tests did not end")
            said.seek(0)
            output = said.read()
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    # An error while tests are collected, say, is no failure of one.
    how = "SURVIVED" if code == 0 else "killed" if failed else "broken"
    return Outcome(mutant, how, time.monotonic() - begin, "\n".join(failed) or output[-800:])


def _copy(target: Path) -> None:
    """Copy what git knows of, as it is now."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def main() -> int:
    """Try those named, or all; return 1 when one survived."""
    wanted = sys.argv[1:]
    chosen = [mutant for mutant in MUTANTS if not wanted or any(word in mutant.name for word in wanted)]
    if strange := [word for word in wanted if not any(word in mutant.name for mutant in MUTANTS)]:
        names = "\n".join(f"  {mutant.name}" for mutant in MUTANTS)
        sys.stderr.write(f"error: no planted bug has {', '.join(map(repr, strange))} in its name; there are\n{names}\n")
        return 2
    outcomes: list[Outcome] = []
    for mutant in chosen:
        outcomes.append(try_mutant(mutant))
        last = outcomes[-1]
        first = last.tail.splitlines()[0] if last.tail else ""
        sys.stdout.write(f"{last.how:9}{last.seconds:6.1f} s  {mutant.name}: {first[:150]}\n")
        sys.stdout.flush()
    killed = sum(outcome.how == "killed" for outcome in outcomes)
    sys.stdout.write(f"{killed} of {len(outcomes)} killed\n")
    return 0 if killed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
