"""Which moments a cron expression names: against another library, where the clock jumps, and what is refused."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from cronsim import CronSim

Connection = psycopg.AsyncConnection


async def fires(conn: Connection, cron: str, zone: str, after: str, most: int) -> list[str]:
    """Return the next fires, in local time with its offset."""
    found = await conn.execute(
        "select queue_pg.preview_schedule(%s, time_zone => %s, after => %s, most => %s)", (cron, zone, after, most)
    )
    return [f"{row[0].astimezone(ZoneInfo(zone)):%m-%d %H:%M%z}" for row in await found.fetchall()]


# (zone, expression, after, fires). The days are those on which the zone's clock is changed.
JUMPS = {
    # 2026-03-29: 02:00 becomes 03:00. 2026-10-25: 03:00 becomes 02:00.
    "Berlin, a time that does not exist fires at the jump": (
        "Europe/Berlin", "30 2 * * *", "2026-03-28T02:00Z",
        ["03-29 03:00+0200", "03-30 02:30+0200"],
    ),
    "Berlin, several that do not exist fire once": (
        "Europe/Berlin", "0,20,40 2 * * *", "2026-03-28T02:00Z",
        ["03-29 03:00+0200", "03-30 02:00+0200"],
    ),
    "Berlin, one that does not exist and one at the jump are one": (
        "Europe/Berlin", "0 2,3 * * *", "2026-03-28T03:00Z",
        ["03-29 03:00+0200", "03-30 02:00+0200"],
    ),
    "Berlin, a time that comes twice fires the first time": (
        "Europe/Berlin", "30 2 * * *", "2026-10-24T02:00Z",
        ["10-25 02:30+0200", "10-26 02:30+0100"],
    ),
    "Berlin, seen from within the repeated hour": (
        "Europe/Berlin", "45 2 * * *", "2026-10-25T01:30Z",
        ["10-26 02:45+0100"],
    ),
    "Berlin, the end of the repeated hour is no part of it": (
        "Europe/Berlin", "0 3 * * *", "2026-10-25T01:30Z",
        ["10-25 03:00+0100", "10-26 03:00+0100"],
    ),
    "Berlin, every hour runs on through the gap": (
        "Europe/Berlin", "0 * * * *", "2026-03-28T23:30Z",
        ["03-29 01:00+0100", "03-29 03:00+0200", "03-29 04:00+0200"],
    ),
    "Berlin, every hour fires in both": (
        "Europe/Berlin", "0 * * * *", "2026-10-24T23:30Z",
        ["10-25 02:00+0200", "10-25 02:00+0100", "10-25 03:00+0100"],
    ),
    "Berlin, every quarter of an hour that does not exist": (
        "Europe/Berlin", "*/15 2 * * *", "2026-03-28T02:00Z",
        ["03-30 02:00+0200", "03-30 02:15+0200"],
    ),
    # 2026-03-08: 02:00 becomes 03:00. 2026-11-01: 02:00 becomes 01:00.
    "New York, does not exist": (
        "America/New_York", "30 2 * * *", "2026-03-07T12:00Z",
        ["03-08 03:00-0400", "03-09 02:30-0400"],
    ),
    "New York, comes twice": (
        "America/New_York", "30 1 * * *", "2026-10-31T12:00Z",
        ["11-01 01:30-0400", "11-02 01:30-0500"],
    ),
    "New York, every twenty minutes": (
        "America/New_York", "*/20 * * * *", "2026-11-01T05:30Z",
        ["11-01 01:40-0400", "11-01 01:00-0500", "11-01 01:20-0500", "11-01 01:40-0500", "11-01 02:00-0500"],
    ),
    # Half an hour. 2026-04-05: 02:00 becomes 01:30. 2026-10-04: 02:00 becomes 02:30.
    "Lord Howe, does not exist": (
        "Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00Z",
        ["10-04 02:30+1100", "10-05 02:15+1100"],
    ),
    "Lord Howe, exists in the shorter hour": (
        "Australia/Lord_Howe", "45 2 * * *", "2026-10-03T12:00Z",
        ["10-04 02:45+1100", "10-05 02:45+1100"],
    ),
    "Lord Howe, comes twice": (
        "Australia/Lord_Howe", "45 1 * * *", "2026-04-04T12:00Z",
        ["04-05 01:45+1100", "04-06 01:45+1030"],
    ),
    "Lord Howe, every quarter of an hour": (
        "Australia/Lord_Howe", "*/15 * * * *", "2026-04-04T14:25Z",
        ["04-05 01:30+1100", "04-05 01:45+1100", "04-05 01:30+1030", "04-05 01:45+1030", "04-05 02:00+1030"],
    ),
    "Lord Howe, the hour after the jump is whole": (
        "Australia/Lord_Howe", "*/20 3 * * *", "2026-10-03T12:00Z",
        ["10-04 03:00+1100", "10-04 03:20+1100", "10-04 03:40+1100"],
    ),
    # In the south the year is the other way round. 2026-04-04: 24:00 becomes 23:00. 2026-09-06: 0:00 becomes 1:00.
    "Santiago, midnight does not exist": (
        "America/Santiago", "0 0 * * *", "2026-09-05T12:00Z",
        ["09-06 01:00-0300", "09-07 00:00-0300"],
    ),
    "Santiago, the last hour of the day comes twice": (
        "America/Santiago", "30 23 * * *", "2026-04-04T12:00Z",
        ["04-04 23:30-0300", "04-05 23:30-0400"],
    ),
    "Auckland, comes twice": (
        "Pacific/Auckland", "15 2 * * *", "2026-04-03T20:00Z",
        ["04-05 02:15+1300", "04-06 02:15+1200"],
    ),
    # A whole day that never was: 2011-12-30.
    "Apia, a day that does not exist": (
        "Pacific/Apia", "0 9 * * *", "2011-12-29T12:00Z",
        ["12-29 09:00-1000", "12-31 00:00+1400", "12-31 09:00+1400"],
    ),
    # Around Ramadan. 2026-02-15: 03:00 becomes 02:00. 2026-03-22: 02:00 becomes 03:00.
    "Casablanca, two jumps within weeks": (
        "Africa/Casablanca", "30 2 15 * *", "2026-02-14T12:00Z",
        ["02-15 02:30+0100", "03-15 02:30+0000", "04-15 02:30+0100"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", JUMPS.values(), ids=JUMPS.keys())
async def test_where_the_clock_jumps(conn: Connection, case: tuple[str, str, str, list[str]]) -> None:
    zone, cron, after, expected = case
    assert await fires(conn, cron, zone, after, len(expected)) == expected


async def test_the_session_s_own_time_zone_does_not_matter(conn: Connection) -> None:
    await conn.execute("set timezone = 'America/New_York'")
    assert await fires(conn, "30 2 * * *", "Europe/Berlin", "2026-03-28T02:00Z", 2) == [
        "03-29 03:00+0200",
        "03-30 02:30+0200",
    ]
    found = await conn.execute(
        "select queue_pg.preview_schedule(every => '1 day', starts_at => '2026-03-07T12:00Z',"
        " after => '2026-03-07T00:00Z', most => 3)"
    )
    assert [row[0].astimezone(UTC).hour for row in await found.fetchall()] == [12, 12, 12]


def expression(chance: random.Random) -> str:
    """Make a cron expression of any shape that both readers take."""

    def field(low: int, high: int, names: list[str] | None = None) -> str:
        def value() -> str:
            number = chance.randint(low, high)
            return names[number - low] if names and chance.random() < 0.3 else str(number)

        def term() -> str:
            shape = chance.randrange(7)
            if shape == 0:
                return "*"
            if shape == 1:
                return f"*/{chance.randint(1, high)}"
            if shape == 2:
                first, last = sorted((chance.randint(low, high), chance.randint(low, high)))
                return f"{first}-{last}"
            if shape == 3:
                # Not a-a/n, which that reader takes for a/n.
                first, last = sorted(chance.sample(range(low, high + 1), 2))
                return f"{first}-{last}/{chance.randint(1, 5)}"
            if shape == 4:
                return f"{value()}/{chance.randint(1, 7)}"
            return value()

        return "*" if chance.random() < 0.3 else ",".join(term() for _ in range(chance.choice((1, 1, 1, 2, 3))))

    months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    weekdays = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
    day = chance.choice(("L", field(1, 28), field(1, 28), field(1, 31)))
    weekday = chance.choice(("*", "MON#2", "fri#5", "5L", field(0, 6, weekdays), field(0, 7)))
    return f"{field(0, 59)} {field(0, 23)} {day} {field(1, 12, months)} {weekday}"


@pytest.mark.parametrize("seed", range(8))
async def test_the_same_as_another_reader_on_a_clock_that_never_jumps(conn: Connection, seed: int) -> None:
    chance = random.Random(seed)
    compared = 0
    for _ in range(40):
        cron = expression(chance)
        after = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=chance.randrange(3 * 366 * 1440))
        try:
            other = CronSim(cron.upper(), after)
        except Exception:  # noqa: S112 - a day that no month has; the other reader refuses it at once
            continue
        expected = [moment for moment, _ in zip(other, range(4), strict=False)]
        if expected:
            asked = "select queue_pg.preview_schedule(%s, after => %s, most => 4)"
            found = await (await conn.execute(asked, (cron, after))).fetchall()
            assert [row[0] for row in found] == expected, cron
        else:
            with pytest.raises(psycopg.Error, match="no moment"):
                await conn.execute("select queue_pg.preview_schedule(%s, after => %s)", (cron, after))
        compared += 1
    assert compared > 20


REFUSED: dict[str, tuple[str, str]] = {
    "": ("cron", "five fields"),
    "0 9 * *": ("cron", "five fields"),
    "0 9 * * * *": ("cron", "five fields"),
    "@fortnightly": ("cron", "five fields"),
    "60 9 * * *": ("cron", "minute '60'"),
    "0 24 * * *": ("cron", "hour '24'"),
    "0 9 0 * *": ("cron", "day '0'"),
    "0 9 32 * *": ("cron", "day '32'"),
    "0 9 * 13 *": ("cron", "month '13'"),
    "0 9 * * 8": ("cron", "weekday '8'"),
    "0 9 * * mon#6": ("cron", "weekday 'mon#6'"),
    "0 9 * foo *": ("cron", "month 'foo'"),
    "0 9-5 * * *": ("cron", "hour '9-5'"),
    "*/0 9 * * *": ("cron", "minute '*/0'"),
    "0 9 * * 1,": ("cron", "weekday ''"),
    ", 9 * * *": ("cron", "minute ''"),
    "-1 9 * * *": ("cron", "minute '-1'"),
    "0 9 * * ¹": ("cron", "weekday"),
    "0 0 30 2 *": ("cron", "no moment"),
    "0 0 31 apr,jun *": ("cron", "no moment"),
    "1" * 400: ("cron", "five fields"),
    "0 9 * * * ; drop table x": ("cron", "five fields"),
}


@pytest.mark.parametrize("cron", REFUSED, ids=lambda cron: cron[:20] or "empty")
async def test_what_is_no_expression_is_refused_by_its_field(conn: Connection, cron: str) -> None:
    field, words = REFUSED[cron]
    with pytest.raises(psycopg.Error) as caught:
        await conn.execute("select queue_pg.preview_schedule(%s)", (cron,))
    assert caught.value.sqlstate == "QP005"
    detail: Any = caught.value.diag.message_detail
    assert f'"field": "{field}"' in detail
    assert words in (caught.value.diag.message_primary or "")


@pytest.mark.parametrize(
    "zone", ["", "Nowhere", "Europe/Nowhere", "CEST", "FOO3", "Europe/Berlin5", "../etc/passwd", "+02:00", "Etc/GMT+99"]
)
async def test_what_is_no_time_zone_is_refused(conn: Connection, zone: str) -> None:
    with pytest.raises(psycopg.Error, match="time_zone") as caught:
        await conn.execute("select queue_pg.preview_schedule('0 9 * * *', time_zone => %s)", (zone,))
    assert caught.value.sqlstate == "QP005"


@pytest.mark.parametrize("zone", ["UTC", "Etc/GMT+3", "America/Argentina/Buenos_Aires", "America/Port-au-Prince"])
async def test_what_is_a_time_zone(conn: Connection, zone: str) -> None:
    assert len(await fires(conn, "0 9 * * *", zone, "2026-01-01T00:00Z", 2)) == 2


@pytest.mark.parametrize(
    ("short", "long"),
    [("@hourly", "0 * * * *"), ("@daily", "0 0 * * *"), ("@weekly", "0 0 * * 0"), ("@yearly", "0 0 1 1 *")],
)
async def test_short_forms(conn: Connection, short: str, long: str) -> None:
    after = "2026-05-05T05:05Z"
    assert await fires(conn, short, "UTC", after, 3) == await fires(conn, long, "UTC", after, 3)


async def test_friday_to_sunday(conn: Connection) -> None:
    # 2026-01-02 is a Friday.
    assert await fires(conn, "0 9 * * fri-sun", "UTC", "2026-01-01T00:00Z", 4) == [
        "01-02 09:00+0000",
        "01-03 09:00+0000",
        "01-04 09:00+0000",
        "01-09 09:00+0000",
    ]
