"""When a worker looks and what it arms, told as stories without a clock."""

from __future__ import annotations

import pytest
from queue_pg_workers.looking import (
    CONFIRM_SECONDS,
    LULL_LOOKS,
    MAX_FALLBACK_SECONDS,
    QUICK_SECONDS,
    SEVERAL,
    STORM_HINTS,
    STORM_SECONDS,
    SUSTAINED_FINDS,
    SUSTAINED_SINGLES,
    Looking,
)

POLL_SECONDS = 1.0


def looking(*, fleet: int = 1) -> Looking:
    made = Looking(poll_seconds=POLL_SECONDS, jitter=lambda _low, high: high)
    made.fleet = fleet
    return made


def look(worker: Looking, found: int, *, room: int = 10, listening: bool = True) -> tuple[bool | None, float]:
    """Take a look; return what it told `claim` as `arm`, and the pause after it."""
    arm = worker.arm(listening=listening)
    worker.looked(found, room=room)
    return arm, worker.pause_seconds(listening=listening)


def test_from_the_last_job_to_waiting() -> None:
    worker = looking()
    look(worker, 1)
    looks = [look(worker, 0) for _ in range(6)]
    assert [arm for arm, _ in looks] == [None, None, None, True, True, True]
    assert [pause for _, pause in looks] == [*QUICK_SECONDS[1:], CONFIRM_SECONDS, POLL_SECONDS, POLL_SECONDS]


def test_the_first_look_of_all_arms_and_is_confirmed() -> None:
    assert look(looking(), 0) == (True, CONFIRM_SECONDS)


def test_a_full_look_is_followed_by_another_at_once() -> None:
    worker = looking()
    assert look(worker, 10, room=10)[1] == 0
    assert look(worker, 9, room=10)[1] == QUICK_SECONDS[0]


def test_dense_traffic_needs_no_notifications() -> None:
    worker = looking()
    arms = [look(worker, SEVERAL)[0] for _ in range(SUSTAINED_FINDS + 2)]
    assert arms == [True, *[None] * (SUSTAINED_FINDS - 1), False, False]
    assert worker.has_disarmed
    # The pause between two bursts is no end of it: the look that would arm finds jobs, so nothing changes.
    assert [look(worker, found)[0] for found in (*[0] * (LULL_LOOKS - 1), SEVERAL)] == [
        False,
        *[None] * (LULL_LOOKS - 2),
        True,
    ]
    assert worker.has_disarmed
    assert [look(worker, 0)[0] for _ in range(LULL_LOOKS)] == [*[None] * (LULL_LOOKS - 1), True]
    assert not worker.has_disarmed
    # From here on as after a single job.
    assert [look(worker, 0)[0] for _ in range(2)] == [True, True]


def test_jobs_one_by_one_as_fast_as_it_looks_need_no_notifications() -> None:
    worker = looking()
    arms = [look(worker, 1)[0] for _ in range(SUSTAINED_SINGLES + 1)]
    assert arms == [True, *[None] * (SUSTAINED_SINGLES - 1), False]
    assert worker.has_disarmed


def test_jobs_one_by_one_with_pauses_leave_the_queue_armed() -> None:
    worker = looking()
    for _ in range(3):
        assert False not in [look(worker, 1)[0] for _ in range(SUSTAINED_SINGLES - 1)]
        look(worker, 0)
    assert not worker.has_disarmed


def test_slots_that_get_free_one_by_one_leave_the_queue_armed() -> None:
    worker = looking()
    assert False not in [look(worker, 1, room=1)[0] for _ in range(2 * SUSTAINED_SINGLES)]
    assert not worker.has_disarmed


def test_single_jobs_leave_the_queue_armed() -> None:
    worker = looking()
    for _ in range(3):
        assert look(worker, 1)[0] is not False
        assert look(worker, 0)[0] is None
        worker.paused(hinted=True)


@pytest.mark.parametrize("looks", [5, 50])
def test_woken_in_vain_it_arms_again_at_once_and_confirms(looks: int) -> None:
    worker = looking()
    for _ in range(looks):
        look(worker, 0)
    worker.paused(hinted=True)
    assert look(worker, 0) == (True, CONFIRM_SECONDS)
    assert look(worker, 0) == (True, POLL_SECONDS)


def in_a_storm(worker: Looking) -> tuple[bool | None, float]:
    """Let hints come one upon the other until the worker turns deaf; return its last look."""
    for _ in range(STORM_HINTS):
        assert not worker.deaf
        worker.paused(hinted=True)
        last = look(worker, 0)
    assert worker.deaf
    return last


def test_a_storm_of_hints_in_vain_is_disarmed_and_waited_out() -> None:
    worker = looking()
    look(worker, 0)
    assert in_a_storm(worker) == (False, STORM_SECONDS[0])
    worker.paused(hinted=False)
    # It listens again, and as the storm goes on it is soon deaf again, for longer.
    pauses: list[float] = []
    while len(pauses) < 8:
        assert look(worker, 0)[0] is not False
        while not worker.deaf:
            worker.paused(hinted=True)
            arm, pause = look(worker, 0)
        assert arm is False
        pauses.append(pause)
        worker.paused(hinted=False)
    assert pauses == [0.2, 0.4, 0.8, *[STORM_SECONDS[1]] * 5]


def test_a_job_or_a_quiet_pause_ends_the_storm() -> None:
    worker = looking()
    look(worker, 0)
    in_a_storm(worker)
    worker.paused(hinted=False)
    look(worker, 0)
    worker.paused(hinted=False)
    assert in_a_storm(worker) == (False, STORM_SECONDS[0])
    worker.paused(hinted=False)
    look(worker, 1)
    worker.paused(hinted=True)
    assert look(worker, 0)[0] is not False
    assert not worker.deaf


def test_woken_to_a_job_it_hunts_on() -> None:
    worker = looking()
    look(worker, 0)
    worker.paused(hinted=True)
    assert look(worker, 1) == (True, QUICK_SECONDS[0])


def test_without_notifications_it_never_arms_and_keeps_the_poll_interval() -> None:
    worker = looking(fleet=64)
    looks = [look(worker, 0, listening=False) for _ in range(10)]
    assert {arm for arm, _ in looks} == {None}
    assert {pause for _, pause in looks} == {POLL_SECONDS}
    # It would not know when to arm again, so it leaves that to those who listen.
    assert {look(worker, SEVERAL, listening=False)[0] for _ in range(2 * SUSTAINED_FINDS)} == {None}


def test_when_notifications_stop_it_polls_from_the_next_pause_on() -> None:
    worker = looking(fleet=64)
    for _ in range(5):
        look(worker, 0)
    assert worker.pause_seconds(listening=True) == MAX_FALLBACK_SECONDS
    assert worker.pause_seconds(listening=False) == POLL_SECONDS


def test_a_fleet_looks_about_as_often_as_one() -> None:
    idle = {}
    busy = {}
    for fleet in (1, 4, 16, 64):
        worker = looking(fleet=fleet)
        busy[fleet] = fleet / look(worker, 1)[1]
        for _ in range(5):
            pause = look(worker, 0)[1]
        idle[fleet] = fleet / pause
    assert busy == pytest.approx({1: 500, 4: 1000, 16: 1000, 64: 1000})
    assert idle == pytest.approx({1: 1, 4: 4, 16: 4, 64: 12.8})


def test_pauses_are_jittered_downwards() -> None:
    worker = Looking(poll_seconds=POLL_SECONDS)
    worker.looked(0, room=1)
    worker.looked(0, room=1)
    pauses = [worker.pause_seconds(listening=False) for _ in range(100)]
    assert 0.7 * POLL_SECONDS <= min(pauses) < max(pauses) <= POLL_SECONDS
