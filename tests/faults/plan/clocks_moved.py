"""Faults of time that moves: clocks of workers that jump and run wrong, changes to and from summer time (F14)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from queue_pg.testing import Clock
from tests.faults.arena import Arena

HOUR: Final = 3_600
# Seconds that a clock is moved to, and how fast it runs from there on.
MOVES: Final = ((HOUR, 1.0), (-HOUR, 1.0), (0, 1.1), (24 * HOUR, 0.9), (0, 1.0), (-24 * HOUR, 1.0))
JOBS_BETWEEN_MOVES: Final = 40


class Dial:
    """The clock of a process's own, which can be moved while it runs."""

    def __init__(self, path: Path, library: str) -> None:
        self.environment: Final = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Else the true clock's waits are computed by the false one and end at once. A thread of Python that waits
            # for another does so by them: workers would do a tenth of their work.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }
        self._path = path
        self.set(0)

    def set(self, seconds: int, rate: float = 1.0) -> None:
        """Move it to so many seconds from the true time, from where it runs at this rate."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{seconds:+d}s" + (f" x{rate:g}" if rate != 1.0 else "") + "\n")
        os.replace(new, self._path)


def move_clocks(arena: Arena, dials: list[Dial]) -> None:
    """Have clocks jump and run fast and slow, until all moves were made and as many jobs were done as wanted."""
    target = arena.done() + arena.size.hits
    moves = 0
    while moves < len(MOVES) or arena.done() < target:
        for index, dial in enumerate(dials):
            seconds, rate = MOVES[(moves + index) % len(MOVES)]
            dial.set(seconds, rate)
        moves += 1
        arena.hits["moves of clocks"] += len(dials)
        arena.progress(JOBS_BETWEEN_MOVES)
    for dial in dials:
        dial.set(0)


# -- changes to and from summer time -----------------------------------------------------------------------------------

ZONES: Final = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
BEFORE: Final = timedelta(hours=2, minutes=-7)
LEAP: Final = timedelta(minutes=75)
AFTER: Final = timedelta(hours=3)


def no_time_zones() -> str | None:
    """Whether this machine does not know the zones."""
    try:
        ZoneInfo(ZONES[0])
    except ZoneInfoNotFoundError:
        return "no time zones are installed"
    return None


@dataclass(frozen=True, slots=True)
class Change:
    """A moment at which the clocks of a zone are changed; `wall` is in the middle of what is skipped or comes twice."""

    zone: str
    at: datetime
    wall: datetime
    skips: bool

    def fires(self, since: datetime, until: datetime) -> Iterator[tuple[str, datetime]]:
        """Yield (schedule, moment) of all fires after `since` that are due at `until`, by docs/schedules.md."""
        gap = abs(_offset(self.zone, self.at) - _offset(self.zone, self.at - timedelta(seconds=1)))
        # Skipped: at the jump. Twice: the first time only, which is before the clocks are set back.
        yield from _between({"day": [self.at if self.skips else self.at - gap / 2]}, since, until)
        start = since.replace(minute=0, second=0, microsecond=0)
        quarters = [start + timedelta(minutes=15 * number) for number in range(60)]
        # The clock as it runs: what it skips never comes, what comes twice fires twice. With an offset of whole
        # quarters those are the quarters of UTC; the full hours are where the zone's clock says so.
        hours = [moment for moment in quarters if (moment + _offset(self.zone, moment)).minute == 0]
        yield from _between({"quarter": quarters, "hour": hours, "interval": quarters[::2]}, since, until)


def change_times(arena: Arena) -> None:
    """F14: the database passes changes of time in leaps, so that all fires are late; each is made up for, once."""
    arena.blames = True
    clock = Clock(arena.postgres.dsn)
    arena.postgres.execute("select queue_pg.configure(retention => '36500 days')")
    changes = _changes(clock.now(), arena.size.hits)
    clock.advance(changes[0].at - BEFORE - clock.now())
    arena.fleet.size = 2
    arena.fleet.fill()
    for number, change in enumerate(changes):
        _pass(arena, clock, number, change)
        arena.hits["times skipped" if change.skips else "times that came twice"] += 1


def _pass(arena: Arena, clock: Clock, number: int, change: Change) -> None:
    _rest(arena)
    since = clock.advance(change.at - BEFORE - clock.now())
    begin = since.replace(minute=0, second=0, microsecond=0)
    timings = {
        "day": f"cron => '{change.wall.minute} {change.wall.hour} * * *'",
        "quarter": "cron => '*/15 * * * *'",
        "hour": "cron => '0 * * * *'",
        "interval": f"every => '30 minutes', starts_at => '{begin.isoformat()}'",
    }
    for name, timing in timings.items():
        zone = "" if name == "interval" else f", time_zone => '{change.zone}'"
        arena.postgres.execute(f"select queue_pg.schedule('{number}-{name}', 'tick', {timing}{zone}, missed => 'all')")
    now = since
    while now < change.at + AFTER:
        now = clock.advance(LEAP)
        # Maintenance sleeps by a clock that nobody moves, for a second at most.
        arena.postgres.execute("notify queue_pg_due")
        due = sum(1 for _ in change.fires(since, now))
        arena.until(partial(_have_fired, arena, number, due), f"{due} fires at {change}")
        _rest(arena)
    arena.postgres.execute("select queue_pg.pause_schedule(name) from queue_pg.schedules where not paused")
    fired, expected = _fired(arena, number), Counter(change.fires(since, clock.now()))
    arena.hits["fires"] += fired.total()
    for fire in fired.keys() | expected.keys():
        if fired[fire] != expected[fire]:
            arena.violate(
                "S8", f"{change}: {fire[0]} fired {fired[fire]} times at {fire[1]}, not {expected[fire]} times"
            )


def _have_fired(arena: Arena, number: int, count: int) -> bool:
    return _fired(arena, number).total() >= count


def _fired(arena: Arena, number: int) -> Counter[tuple[str, datetime]]:
    rows = arena.postgres.execute(
        "select split_part(metadata #>> '{schedule,name}', '-', 2), (metadata #>> '{schedule,fire_at}')::timestamptz,"
        " created_at from (select metadata, created_at from queue_pg.jobs"
        " union all select metadata, created_at from queue_pg.finished_jobs) j"
        " where metadata #>> '{schedule,name}' like %s",
        (f"{number}-%",),
    )
    for name, fire_at, created_at in rows:
        if created_at < fire_at:
            arena.violate("S8", f"{name} fired at {created_at} for {fire_at}, which is too early")
    return Counter((name, fire_at) for name, fire_at, _ in rows)


def _rest(arena: Arena) -> None:
    """Wait until nobody runs anything: a clock that leaps ends leases."""
    arena.until(lambda: arena.postgres.execute("select 1 from queue_pg.jobs limit 1") == [], "all jobs have ended")


def _between(moments: dict[str, list[datetime]], since: datetime, until: datetime) -> Iterator[tuple[str, datetime]]:
    for name, all_of_it in moments.items():
        for moment in all_of_it:
            if since < moment <= until:
                yield name, moment


def _offset(zone: str, at: datetime) -> timedelta:
    info: tzinfo = ZoneInfo(zone)
    offset = at.astimezone(info).utcoffset()
    assert offset is not None
    return offset


def _changes(after: datetime, count: int) -> list[Change]:
    """Return the next changes of any of the zones."""
    found: list[Change] = []
    at = after.astimezone(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=2)
    while len(found) < count:
        # Zones change at a full hour of UTC, or at half past.
        for zone in ZONES:
            before, later = _offset(zone, at), _offset(zone, at + timedelta(minutes=30))
            # One of either kind after the other.
            if before != later and (not found or found[-1].skips != (later > before)):
                moment = at + timedelta(minutes=30)
                wall = (moment + (before + later) / 2).replace(tzinfo=None)
                found.append(Change(zone, moment, wall, later > before))
        at += timedelta(minutes=30)
    return found[:count]
