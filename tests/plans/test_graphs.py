"""Graphs of 10,000 jobs cost what their jobs and edges cost, whatever their shape: rows that Postgres reads."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

JOBS = 10_000
Graph = list[dict[str, Any]]

# What claims walk over in their index has a test of its own: test_floors.py.
COUNTER = """
create function pg_temp.rows_read() returns bigint language sql as $$
  select sum(pg_stat_get_xact_tuples_returned(c.oid))::bigint from pg_class c
  where c.relkind in ('r', 'i') and c.relname !~ 'finished|events|^jobs_claim$'
    and c.relnamespace = 'queue_pg'::regnamespace
$$"""
# Claims and completes until nothing is left, each round in a transaction of its own.
DRIVE = """
create procedure pg_temp.drive(inout rows_read bigint, inout completed bigint) language plpgsql as $$
declare
  v_before bigint;
  v_ids uuid[];
  v_tokens bigint[];
begin
  loop
    v_before := pg_temp.rows_read();
    select array_agg(c.id), array_agg(c.lease_token) into v_ids, v_tokens
    from queue_pg.claim('w', '{default}', max_jobs => 1000) c;
    perform f.id from queue_pg.finish(v_ids, v_tokens, array_fill('complete'::text, array[cardinality(v_ids)])) f
    where v_ids is not null;
    if v_ids is null then
      -- A worker's next claim but some is from the head of the lane by itself.
      perform set_config('queue_pg.floors', '', false);
    end if;
    rows_read := rows_read + pg_temp.rows_read() - v_before;
    completed := completed + coalesce(cardinality(v_ids), 0);
    exit when v_ids is null and queue_pg.settle() = 0 and not exists (select from queue_pg.jobs);
    commit;
  end loop;
end
$$"""


def chain() -> Graph:
    return [{"kind": "k", "key": f"n{n}", "depends_on": [f"n{n - 1}"] if n else []} for n in range(JOBS)]


def chain_from_its_end() -> Graph:
    return chain()[::-1]


def out_and_in() -> Graph:
    middle = [{"kind": "k", "key": f"n{n}", "depends_on": ["start"]} for n in range(JOBS - 2)]
    end = {"kind": "k", "depends_on": [job["key"] for job in middle]}
    return [{"kind": "k", "key": "start"}, *middle, end]


def layers() -> Graph:
    chosen = random.Random(7)
    width = 500
    return [
        {
            "kind": "k",
            "key": f"n{n}",
            "depends_on": [f"n{(n // width - 1) * width + m}" for m in chosen.sample(range(width), 3)]
            if n >= width
            else [],
        }
        for n in range(JOBS)
    ]


@pytest.mark.parametrize("make", [chain, chain_from_its_end, out_and_in, layers])
def test_a_graph_is_submitted_and_driven_to_its_end_in_linear_cost(dsn: str, make: Callable[[], Graph]) -> None:
    graph = make()
    size = len(graph) + sum(len(job.get("depends_on", ())) for job in graph)
    with psycopg.connect(dsn, autocommit=True) as connection, psycopg.connect(dsn) as holder:
        connection.execute("alter table queue_pg.jobs set (autovacuum_enabled = off)")
        connection.execute(COUNTER)
        connection.execute(DRIVE)
        with connection.transaction():
            connection.execute("select count(*) from queue_pg.submit_graph(%s)", (json.dumps(graph),))
            row = connection.execute("select pg_temp.rows_read()").fetchone()
        assert row is not None
        assert row[0] <= 10 * size
        # Any transaction of the server that has written keeps dead rows from being cleared away: here is one always.
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select")
        row = connection.execute("call pg_temp.drive(0, 0)").fetchone()
        assert row is not None
        read, completed = row
        assert completed == JOBS
        # Each job and edge some times over, with the versions left behind; quadratic would be ten thousand times.
        assert read <= 60 * size
        assert connection.execute("select count(*) from queue_pg.jobs").fetchone() == (0,)


@pytest.mark.parametrize("make", [out_and_in, layers])
def test_the_end_of_a_whole_graph_is_linear_too(dsn: str, make: Callable[[], Graph]) -> None:
    graph = make()
    size = len(graph) + sum(len(job.get("depends_on", ())) for job in graph)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(COUNTER)
        with connection.transaction():
            connection.execute("select count(*) from queue_pg.submit_graph(%s)", (json.dumps(graph),))
        with connection.transaction():
            connection.execute(
                "select count(*) from (select id from queue_pg.jobs where state = 'queued' offset 0) j"
                " cross join lateral queue_pg.cancel(j.id)"
            )
            row = connection.execute("select pg_temp.rows_read()").fetchone()
        assert row is not None
        assert row[0] <= 60 * size
        while connection.execute("select queue_pg.settle()").fetchone() != (0,):
            pass
        left = connection.execute("select count(*) from queue_pg.jobs").fetchone()
        assert left == (0,)


def test_a_circle_at_the_end_of_ten_thousand_jobs_is_found(dsn: str) -> None:
    graph = chain()
    graph[9_990]["depends_on"] = ["n9989", "n9999"]
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        pytest.raises(psycopg.Error, match=r"circle of 10: .*n9990"),
    ):
        connection.execute("select count(*) from queue_pg.submit_graph(%s)", (json.dumps(graph),))
