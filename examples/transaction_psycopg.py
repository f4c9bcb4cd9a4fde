"""Submit in the transaction that stores your own data: both are there, or neither.

python examples/transaction_psycopg.py
"""

from __future__ import annotations

import asyncio

import psycopg

from queue_pg import Queue


async def place_order(queue: Queue, conn: psycopg.AsyncConnection, item: str, *, paid: bool) -> None:
    async with conn.transaction():
        await conn.execute("insert into example_orders (item) values (%s)", (item,))
        # Runs on `conn`; a worker sees the job at the moment of the commit, not before.
        await queue.submit("send_receipt", {"item": item}, connection=conn)
        if not paid:
            raise psycopg.Rollback


async def main() -> None:
    async with Queue() as queue, await psycopg.AsyncConnection.connect(queue.dsn, autocommit=True) as conn:
        await conn.execute("create table if not exists example_orders (item text)")
        await place_order(queue, conn, "book", paid=True)
        await place_order(queue, conn, "lamp", paid=False)
        for job in (await queue.list(kind="send_receipt", with_payload=True)).jobs:
            print(f"{job.kind} for a {job.payload['item']}: {job.state}")
        await conn.execute("drop table example_orders")


asyncio.run(main())
