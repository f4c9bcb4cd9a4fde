"""Work that starts by the clock: by cron expression, by interval, once, and at once.

python examples/schedules.py
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from queue_pg import InvalidJob, Queue, Timing


async def main() -> None:
    async with Queue() as queue:
        # Each weekday at nine as Berlin's clocks show it, through summer and winter.
        report = await queue.schedule(
            "report",
            "report",
            {"day": "{{ schedule.fire_at }}", "to": "team@example.org"},
            cron="0 9 * * mon-fri",
            time_zone="Europe/Berlin",
            missed="once",
        )
        print("report:", report.cron, report.time_zone, "- fires known:", len(report.next_fires))

        await queue.schedule("ping", "ping", every=30)
        await queue.schedule("reminder", "remind", at=datetime.now(UTC) + timedelta(days=3))
        print("schedules:", ", ".join(each.name for each in await queue.schedules()))

        # The days on which clocks are changed: 02:30 does not exist, and then exists twice.
        for day in ("2026-03-28", "2026-10-24"):
            timing = Timing(cron="30 2 * * *", time_zone="Europe/Berlin")
            fires = await queue.preview_schedule(timing, after=datetime.fromisoformat(f"{day}T12:00+00:00"), most=2)
            print("30 2 * * *:", ", ".join(f"{fire:%d %H:%M} UTC" for fire in fires))

        job = await queue.get(await queue.run_schedule_now("report"))
        print("now:", job.kind, job.state, job.metadata["schedule"]["name"], job.payload["to"])

        paused = await queue.pause_schedule("ping")
        print("paused:", paused.paused, paused.next_fires)
        await queue.resume_schedule("ping")

        try:
            await queue.schedule("wrong", "ping", cron="0 25 * * *")
        except InvalidJob as error:
            print("refused:", error)

        for name in ("report", "ping", "reminder"):
            await queue.unschedule(name)


asyncio.run(main())
