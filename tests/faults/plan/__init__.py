"""The faults, by the numbers of the plan in docs/reliability.md."""

from __future__ import annotations

from typing import Final

from tests.faults.arena import Fault, Size
from tests.faults.machine import no_fake_clock, no_pooler, no_small_disk
from tests.faults.plan import (
    api,
    clocks,
    clocks_moved,
    load,
    network,
    processes,
    providers,
    server,
    sessions,
    standbys,
    upgrades,
)
from tests.faults.plug import no_plug
from tests.faults.postgres import too_old_for_small_notify_queues

_SMALL_LOG: Final = {"max_wal_size": "128MB", "min_wal_size": "32MB"}

FAULTS: Final = (
    Fault(
        "F1",
        "workers killed",
        processes.kill_workers,
        Size(hits=8),
        Size(hits=1_200, workers=6),
        shows=["duplicates_after_losses", "executions_as_asked", "commands"],
    ),
    Fault(
        "F2",
        "workers killed at chosen points",
        processes.kill_workers_at_points,
        Size(hits=1),
        Size(hits=40),
        shows=["duplicates_after_losses"],
    ),
    Fault(
        "F3",
        "workers frozen past their leases",
        processes.freeze_workers,
        Size(hits=1, rate=10, job_seconds=3),
        # What was lost is still under way elsewhere when it is tried.
        Size(hits=60, rate=14, job_seconds=4, concurrency=32),
        shows=["duplicates_after_losses"],
    ),
    Fault("F4", "event loops blocked", processes.block_the_loop, Size(hits=3, rate=20), Size(hits=100, rate=20)),
    Fault(
        "F5",
        "Postgres killed",
        server.kill_postgres,
        Size(hits=3),
        # Two thirds of what the workers can do: a server that comes back at half its speed is seen.
        Size(hits=200, job_seconds=0.1),
        shows=["unknown", "executions_as_asked", "commands"],
    ),
    Fault(
        "F6",
        "Postgres killed while it confirms before it writes",
        server.kill_lazy_postgres,
        Size(hits=3),
        Size(hits=100),
        settings={"synchronous_commit": "off", "wal_writer_delay": "10s"},
    ),
    Fault(
        "F7", "the power fails", server.lose_power, Size(hits=1), Size(hits=100), settings=_SMALL_LOG, obstacle=no_plug
    ),
    Fault(
        "F8",
        "Postgres restarted",
        server.restart_postgres,
        Size(hits=2),
        Size(hits=50, job_seconds=0.1),
        shows=["unknown"],
    ),
    Fault(
        "F9",
        "connections terminated",
        server.terminate_backends,
        Size(hits=40),
        Size(hits=2_000),
        shows=["unknown", "executions_as_asked", "commands"],
    ),
    Fault("F10", "silent lines", network.silence_lines, Size(hits=1, workers=2), Size(hits=12, workers=2)),
    Fault("F11", "slow and torn lines", network.slow_lines, Size(hits=5, workers=1), Size(hits=500, workers=1)),
    Fault(
        "F12",
        "replies lost after the commit",
        network.lose_replies,
        Size(hits=20),
        Size(hits=1_000),
        shows=["unknown", "leases_lost", "commands"],
    ),
    Fault(
        "F13",
        "processes cut off one by one",
        network.partition,
        Size(hits=2, workers=0),
        Size(hits=60, workers=0),
        shows=["leases_lost"],
    ),
    Fault(
        "F14",
        "clocks of workers wrong",
        clocks.set_clocks_wrong,
        Size(hits=300, workers=0, rate=150),
        Size(hits=20_000, workers=0, rate=150),
        obstacle=no_fake_clock,
    ),
    Fault(
        "F14b",
        "times of day that are skipped or come twice",
        clocks_moved.change_times,
        Size(hits=2, workers=0),
        Size(hits=40, workers=0),
        obstacle=clocks_moved.no_time_zones,
    ),
    Fault(
        "F15", "disks full", server.fill_disks, Size(hits=1), Size(hits=30), settings=_SMALL_LOG, obstacle=no_small_disk
    ),
    Fault("F16", "a snapshot held", server.hold_snapshot, Size(hits=500, rate=150), Size(hits=100_000, rate=800)),
    Fault("F17", "scans that overlap", load.overlap_scans, Size(hits=600, rate=150), Size(hits=60_000, rate=400)),
    Fault(
        "F18",
        "writers in numbers",
        load.write_at_once,
        Size(hits=192, workers=2),
        Size(hits=10_000, workers=2),
        settings={"max_connections": "150"},
    ),
    Fault(
        "F19",
        "notifications stuck",
        server.stick_notifications,
        Size(hits=300, rate=150),
        Size(hits=50_000, rate=300),
        settings={"max_notify_queue_pages": "64"},
        obstacle=too_old_for_small_notify_queues,
    ),
    Fault(
        "F21",
        "workers killed behind PgBouncer",
        network.kill_behind_a_pooler,
        Size(hits=4, workers=0),
        Size(hits=300, workers=0),
        obstacle=no_pooler,
    ),
    Fault(
        "F22",
        "no connections left",
        server.exhaust_connections,
        Size(hits=1),
        Size(hits=50, workers=5),
        settings={"max_connections": "80"},
    ),
    Fault(
        "F24",
        "a hunt for deadlocks",
        sessions.hunt_deadlocks,
        Size(hits=800, workers=2, rate=40),
        Size(hits=40_000, workers=2, rate=40),
        # Waits that end by themselves take 250 ms at most (docs/design.md, Order of locks): the server looks later.
        settings={"deadlock_timeout": "400ms", "log_lock_waits": "on"},
    ),
    Fault("F29", "handlers that crash their worker", processes.crash_in_handlers, Size(hits=2), Size(hits=50)),
    Fault("F30", "errors that are hard to store", processes.shout, Size(hits=2), Size(hits=20)),
    Fault(
        "F31", "who fires schedules killed", clocks.kill_who_fires, Size(hits=4, workers=5), Size(hits=100, workers=5)
    ),
    Fault(
        "F32",
        "a rolling deploy",
        upgrades.roll,
        Size(hits=1, rate=30, workers=0),
        Size(hits=24, rate=60, workers=0),
        settings=upgrades.SETTINGS,
        prepare=upgrades.start_with_previous,
    ),
    Fault(
        "F33",
        "migrations under load",
        upgrades.migrate_under_load,
        Size(hits=2, rate=60, workers=0),
        Size(hits=200, workers=0),
        settings=upgrades.SETTINGS,
        prepare=upgrades.start_with_previous,
    ),
    Fault("F34", "a standby takes over", standbys.fail_over, Size(hits=1, workers=0), Size(hits=50, workers=0)),
    Fault(
        "F34b",
        "an asynchronous standby takes over and the old primary returns",
        standbys.fail_over_without_waiting,
        Size(hits=1, workers=0),
        Size(hits=20, workers=0),
    ),
    Fault(
        "F36",
        "a provider that refuses for long",
        providers.storm,
        Size(hits=2, workers=0, rate=30),
        Size(hits=60, workers=0, rate=30),
    ),
    Fault(
        "F38",
        "a backlog, retention and vacuum",
        load.drain_backlog,
        Size(hits=10_000, workers=0, concurrency=50),
        Size(hits=1_000_000, workers=0, concurrency=50),
        settings={"track_functions": "pl"},
    ),
    Fault("F40", "the API killed", api.kill_api, Size(hits=1), Size(hits=25)),
)


def fault(name: str) -> Fault:
    """Return the fault of this name."""
    return next(one for one in FAULTS if one.name == name)
