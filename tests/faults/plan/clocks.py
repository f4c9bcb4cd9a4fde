"""Faults of time: clocks that are wrong, and schedules whose firing process dies (F14, F31)."""

from __future__ import annotations

import time
from typing import Final

from tests.faults.arena import Arena
from tests.faults.machine import fake_clock
from tests.faults.plan.clocks_moved import HOUR, Dial, move_clocks

DELAY_SECONDS: Final = 1.0
_TOLD: Final = """
select count(*) filter (where t.ahead > %s), count(*) filter (where t.ahead < 0 - %s)
from (select (result ->> 'time')::float8 - extract(epoch from finished_at)::float8 as ahead
  from queue_pg.finished_jobs where kind = 'tell_time') t
"""
EARLY: Final = """
select e.job::text, extract(epoch from j.run_at - e.at)::float8 from faults.edges e
join (select id, run_at from queue_pg.jobs union all select id, run_at from queue_pg.finished_jobs) j on j.id = e.job
where e.what = 'changed' and e.after = 'running' and e.token = 1 and e.at < j.run_at
"""
_HANDED_BACK: Final = "select job::text from faults.edges where before = 'running' and after in ('queued', 'scheduled')"


def set_clocks_wrong(arena: Arena) -> None:
    """F14: the clocks of workers are an hour ahead and an hour behind, then jump, and run fast and slow. Only that of
    the server decides."""
    library = fake_clock()
    assert library is not None
    # Nobody is disturbed, so no lease may be lost.
    arena.blames = True
    dials = [Dial(arena.folder / f"clock-{index}", library) for index in range(3)]
    for dial, offset in zip(dials, (HOUR, -HOUR, 24 * HOUR), strict=True):
        dial.set(offset)
        arena.fleet.add(**dial.environment)
        arena.hits["wrong clocks"] += 1
    arena.postgres.execute(_SCHEDULE, {"name": "tick"})
    arena.produce(keyed=True, delay=DELAY_SECONDS)
    arena.produce(keyed=True)
    arena.produce(keyed=False)
    arena.produce(keyed=False, kind="tell_time", payload={}, rate=20.0)
    # Some always run while a clock is set.
    arena.produce(keyed=False, payload={"seconds": 1.0}, rate=6.0)
    arena.progress()
    move_clocks(arena, dials)
    [[fast, slow]] = arena.postgres.execute(_TOLD, (HOUR / 2, HOUR / 2))
    arena.hits["jobs told a later time"], arena.hits["jobs told an earlier time"] = fast, slow
    if not arena.postgres.execute("select 1 from faults.edges where before = 'scheduled' and after = 'queued' limit 1"):
        arena.violate("coverage", "no job was started later")
    _end_schedules(arena)
    for job, seconds in arena.postgres.execute(EARLY):
        arena.violate("S3", f"ran {seconds:g} s too early", job)
    for (job,) in arena.postgres.execute(_HANDED_BACK):
        arena.violate("S5", "was handed back, and nobody had been disturbed", job)


_SCHEDULE: Final = "select queue_pg.schedule(%(name)s, 'tick', every => '1 second', missed => 'all')"
FIRES: Final = """
select metadata -> 'schedule' ->> 'name', metadata -> 'schedule' ->> 'fire_at', count(*)
from (select metadata from queue_pg.jobs union all select metadata from queue_pg.finished_jobs) j
where metadata ? 'schedule' group by 1, 2
"""
MISSED: Final = """
select s.name, extract(epoch from max(f.fire_at) - min(f.fire_at))::bigint + 1 - count(*), count(*)
from queue_pg.schedules s join queue_pg.schedule_fires f on f.schedule_id = s.id group by s.name
"""
DUE: Final = (
    "select coalesce(min(extract(epoch from next_fire_at - queue_pg.now())), 0)::float8 from queue_pg.schedules"
)


def kill_who_fires(arena: Arena) -> None:
    """F31: five processes may fire three schedules, and the one that does is killed as a fire falls due."""
    arena.blames = True
    for number in range(3):
        arena.postgres.execute(_SCHEDULE, {"name": f"tick-{number}"})
    arena.produce(keyed=False)
    arena.progress()
    while arena.hits["kills of who fires"] < arena.size.hits:
        [[due]] = arena.postgres.execute(DUE)
        time.sleep(max(0.0, due + arena.random.uniform(-0.05, 0.05)))
        leader = arena.postgres.execute("select leader from queue_pg.maintenance where leader is not null")
        if not leader:
            continue
        # The name of who maintains is host, process and chance.
        pid = leader[0][0].split("-")[-2]
        victims = [worker for worker in arena.fleet.workers if str(worker.pid) == pid]
        for victim in victims:
            arena.fleet.kill(victim)
            arena.hits["kills of who fires"] += 1
        arena.fleet.fill()
        time.sleep(0.2)
    arena.progress()
    _end_schedules(arena)


def _end_schedules(arena: Arena) -> None:
    """Let what is due fire, make the schedules fire no more, and count."""
    count = "select count(*) from queue_pg.schedule_fires"
    before = arena.postgres.execute(count)
    arena.until(lambda: arena.postgres.execute(count) != before, "schedules fire")
    arena.postgres.execute("select queue_pg.pause_schedule(name) from queue_pg.schedules")
    fires = arena.postgres.execute(FIRES)
    arena.hits["fires"] += len(fires)
    arena.figures["fires_twice"] = arena.figures["fires_missed"] = 0
    for name, fire_at, count in fires:
        if count != 1:
            arena.figures["fires_twice"] += 1
            arena.violate("S8", f"schedule {name} fired {count} times for {fire_at}")
    for name, missed, count in arena.postgres.execute(MISSED):
        if missed or count != sum(fire[0] == name for fire in fires):
            arena.figures["fires_missed"] += missed
            arena.violate("S1", f"schedule {name} missed {missed} fires, {count} are noted")
