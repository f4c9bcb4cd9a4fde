"""Not a queue to use: it calls a job done when it hands it out. The harness has to find out that it loses jobs."""

from __future__ import annotations

import asyncio
import os
import sys

import psycopg
from notes import CONCURRENCY, SECONDS, effect, produce

DSN = os.environ["DATABASE_URL"]
TAKE = """
update forgetful set done = true where id = (
  select id from forgetful where not done order by id limit 1 for update skip locked)
returning id, n
"""


async def work(connection: psycopg.AsyncConnection[tuple[int, int]]) -> None:
    while True:
        row = await (await connection.execute(TAKE)).fetchone()
        if row is None:
            await asyncio.sleep(0.05)
            continue
        with effect(row[1], row[0]):
            await asyncio.sleep(SECONDS)


async def main(what: str) -> None:
    async with await psycopg.AsyncConnection.connect(DSN, autocommit=True) as connection:
        if what == "prepare":
            await connection.execute("create table forgetful (id bigserial, n bigint, done boolean default false)")
        elif what == "produce":

            async def submit(n: int) -> object:
                cursor = await connection.execute("insert into forgetful (n) values (%s) returning id", [n])
                return (await cursor.fetchone() or [None])[0]

            await produce(submit)
        else:
            await asyncio.gather(*(work(connection) for _ in range(CONCURRENCY)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
