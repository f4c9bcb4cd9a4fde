"""Jobs that wait for others: what is submitted, what the end of a parent does, and what becomes of a retry."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queue_pg.testing import Clock

Connection = psycopg.AsyncConnection


async def all_of(conn: Connection, query: str, *args: Any) -> list[Any]:
    return await (await conn.execute(query, args)).fetchall()


async def one(conn: Connection, query: str, *args: Any) -> Any:
    [row] = await all_of(conn, query, *args)
    return row[0] if len(row) == 1 else row


async def submit(conn: Connection, *jobs: dict[str, Any]) -> list[UUID]:
    given = json.dumps([{"kind": "k", **job} for job in jobs])
    return [row[0] for row in await all_of(conn, "select id from queue_pg.submit_many(%s) order by position", given)]


async def state(conn: Connection, job: UUID) -> str:
    return await one(conn, "select queue_pg.state_of(%s)", job)


async def states(conn: Connection, jobs: list[UUID]) -> str:
    """The initials of the states: w, q, r, s, c(ompleted), f, x (cancelled)."""
    words = [await state(conn, job) for job in jobs]
    return "".join("x" if word == "cancelled" else word[0] for word in words)


async def code(conn: Connection, job: UUID) -> str | None:
    return await one(conn, "select error ->> 'code' from queue_pg.job(%s)", job)


async def finish(conn: Connection, outcome: str, *jobs: UUID, result: Any = None) -> None:
    """Claim what is queued and end these."""
    await conn.execute("select queue_pg.claim('w', '{default}', max_jobs => 100)")
    rows = await all_of(conn, "select id, lease_token from queue_pg.jobs where id = any (%s)", list(jobs))
    answers = await all_of(
        conn,
        "select accepted from queue_pg.finish("
        "%s, %s, array_fill(%s::text, array[%s]), array_fill(%s::jsonb, array[%s]))",
        *([row[0] for row in rows], [row[1] for row in rows], outcome, len(rows), json.dumps(result), len(rows)),
    )
    assert [row[0] for row in answers] == [True] * len(jobs)


DIAMOND = ({"key": "a"}, {"key": "b", "depends_on": ["a"]}, {"key": "c", "depends_on": ["a"]})


async def test_a_diamond_runs_in_order(conn: Connection) -> None:
    a, b, c, d = jobs = await submit(conn, *DIAMOND, {"depends_on": ["b", "c"]})
    assert await states(conn, jobs) == "qwww"
    await finish(conn, "complete", a)
    assert await states(conn, jobs) == "cqqw"
    await finish(conn, "complete", c)
    assert await states(conn, jobs) == "crcw"
    await finish(conn, "complete", b)
    assert await states(conn, jobs) == "cccq"
    await finish(conn, "complete", d)
    assert await one(conn, "select count(*) from queue_pg.jobs") == 0


async def test_the_order_of_the_array_does_not_matter(conn: Connection) -> None:
    c, b, a = jobs = await submit(conn, {"depends_on": ["b", "a"]}, {"key": "b", "depends_on": ["a"]}, {"key": "a"})
    await finish(conn, "complete", a)
    assert await states(conn, jobs) == "wqc"
    await finish(conn, "complete", b)
    assert await state(conn, c) == "queued"


async def test_one_batch_that_ends_several_parents_of_several_children(conn: Connection) -> None:
    parents = await submit(conn, {}, {}, {})
    ids = [str(parent) for parent in parents]
    children = await submit(conn, {"depends_on": ids}, {"depends_on": ids[:2]}, {"depends_on": ids[2:]})
    await finish(conn, "complete", *parents[:2])
    assert await states(conn, children) == "wqw"
    await finish(conn, "complete", parents[2])
    assert await states(conn, children) == "qrq"


@pytest.mark.parametrize(("outcome", "word"), [("discard", "parent_failed"), ("cancel", "parent_cancelled")])
async def test_an_unsuccessful_parent_by_each_policy(conn: Connection, outcome: str, word: str) -> None:
    [parent, *children] = await submit(
        conn,
        {"key": "p"},
        {"depends_on": [{"job": "p"}]},
        {"depends_on": [{"job": "p", "on_unsuccessful": "fail"}]},
        {"depends_on": [{"job": "p", "on_unsuccessful": "run"}]},
    )
    await finish(conn, outcome, parent)
    assert await states(conn, children) == "xfq"
    assert [await code(conn, child) for child in children] == [word, word, None]
    error = await one(conn, "select error from queue_pg.job(%s)", children[0])
    assert (error["parent"], error["parent_id"]) == ("p", str(parent))
    assert [
        row[0] for row in await all_of(conn, "select type from queue_pg.job_events where job_id = %s", children[1])
    ] == ["failed"]


async def test_an_end_goes_down_the_graph_as_far_as_it_means_something(conn: Connection) -> None:
    jobs = await submit(
        conn,
        {"key": "a"},
        {"key": "b", "depends_on": ["a"]},
        {"key": "c", "depends_on": [{"job": "b", "on_unsuccessful": "fail"}]},
        {"key": "d", "depends_on": [{"job": "c", "on_unsuccessful": "run"}]},
        {"key": "e", "depends_on": ["d"]},
    )
    await conn.execute("select queue_pg.cancel(%s)", (jobs[0],))
    assert await states(conn, jobs) == "xxfqw"


async def test_of_two_unsuccessful_parents_failing_weighs_more(conn: Connection) -> None:
    [a, b, child] = await submit(
        conn, {"key": "a"}, {"key": "b"}, {"depends_on": ["a", {"job": "b", "on_unsuccessful": "fail"}]}
    )
    await finish(conn, "discard", a, b)
    assert await state(conn, child) == "failed"


async def test_a_retried_attempt_of_a_parent_is_no_end(conn: Connection, clock: Clock) -> None:
    [parent, child] = await submit(conn, {"key": "p"}, {"depends_on": ["p"]})
    await finish(conn, "fail", parent)
    assert await states(conn, [parent, child]) == "sw"
    clock.advance(3600)
    await conn.execute("select queue_pg.maintain()")
    await finish(conn, "complete", parent)
    assert await state(conn, child) == "queued"


@pytest.mark.parametrize("way", ["expire", "reap"])
async def test_ends_by_maintenance_reach_the_children(conn: Connection, clock: Clock, way: str) -> None:
    await conn.execute("select queue_pg.configure(max_lease_losses => 1)")
    expires_at = {"expires_at": "2100-01-01T00:00:00Z"} if way == "expire" else {}
    [parent, child] = await submit(conn, {"key": "p", **expires_at}, {"depends_on": ["p"]})
    if way == "expire":
        await conn.execute("update queue_pg.jobs set expires_at = queue_pg.now() + '1 s' where id = %s", (parent,))
    else:
        await conn.execute("select queue_pg.claim('w', '{default}')")
    clock.advance(40)
    await conn.execute("select queue_pg.maintain()")
    assert await states(conn, [parent, child]) == "fx"
    assert await code(conn, child) == "parent_failed"


async def test_parents_that_have_ended_count_at_once(conn: Connection) -> None:
    [done, bad, live] = await submit(conn, {}, {}, {})
    await finish(conn, "complete", done)
    await finish(conn, "discard", bad)
    children = await submit(
        conn,
        {"depends_on": [str(done)]},
        {"depends_on": [str(done), str(live)]},
        {"depends_on": [str(bad)], "key": "x"},
        {"depends_on": [{"job": str(bad), "on_unsuccessful": "run"}]},
        {"depends_on": ["x"]},
    )
    assert await states(conn, children) == "qwxqx"
    assert await code(conn, children[4]) == "parent_cancelled"
    await finish(conn, "complete", live)
    assert await state(conn, children[1]) == "queued"


async def test_a_child_keeps_its_delay_and_its_terms(conn: Connection, clock: Clock) -> None:
    parent = await one(conn, "select queue_pg.submit('k')")
    child = await one(
        conn,
        "select queue_pg.submit('other', '[null, {\"a\": null}]', queue => 'q', priority => 3, delay => '1 hour',"
        " max_attempts => 2, timeout => '7 s', tags => '{t}', metadata => '{\"m\": null}', depends_on => %s)",
        json.dumps([str(parent)]),
    )
    await finish(conn, "complete", parent)
    row = await one(
        conn,
        "select state::text, kind, queue, priority::int, max_attempts, timeout::text, tags, metadata, payload"
        " from queue_pg.job(%s)",
        child,
    )
    assert row == ("scheduled", "other", "q", 3, 2, "00:00:07", ["t"], {"m": None}, [None, {"a": None}])
    clock.advance(3601)
    await conn.execute("select queue_pg.promote()")
    assert await state(conn, child) == "queued"


async def test_a_release_wakes_the_workers_of_its_queue(conn: Connection, dsn: str) -> None:
    [parent, _] = await submit(conn, {"key": "p"}, {"queue": "slow", "depends_on": ["p"]})
    async with await Connection.connect(dsn, autocommit=True) as worker:
        await worker.execute("listen queue_pg_wake")
        await worker.execute("select queue_pg.claim('s', '{slow}', arm => true)")
        await finish(conn, "complete", parent)
        assert [n.payload async for n in worker.notifies(timeout=20, stop_after=1)] == ["slow"]


async def test_jobs_without_parents_leave_nothing_behind(conn: Connection) -> None:
    [job] = await submit(conn, {"depends_on": []})
    assert await one(conn, "select parents_left, awaited, state::text from queue_pg.jobs") == (None, False, "queued")
    await finish(conn, "complete", job)
    for table in ("dependencies", "unsettled", "ended_children"):
        assert await one(conn, f"select count(*) from queue_pg.{table}") == 0


async def test_the_events_of_a_child_tell_its_release_or_its_end(conn: Connection) -> None:
    [a, b, run, ended] = await submit(
        conn, {"key": "a"}, {"key": "b"}, {"depends_on": ["a"], "payload": "{{ parents.a.id }}"}, {"depends_on": ["b"]}
    )
    await finish(conn, "complete", a)
    await finish(conn, "discard", b)
    await finish(conn, "complete", run)
    events = "select array_agg(type order by seq), array_agg(seq order by seq) from queue_pg.events(%s, 0)"
    assert await one(conn, events, run) == (["submitted", "promoted", "started", "completed"], [1, 2, 3, 4])
    assert await one(conn, events, ended) == (["submitted", "cancelled"], [1, 2])


async def test_a_graph_in_a_batch_is_counted(conn: Connection) -> None:
    batch = str(await one(conn, "select queue_pg.create_batch('graph')"))
    [a, b, c] = await submit(
        conn,
        {"key": "a", "batch_id": batch},
        {"key": "b", "batch_id": batch, "depends_on": ["a"]},
        {"batch_id": batch, "depends_on": [{"job": "b", "on_unsuccessful": "run"}]},
    )
    await conn.execute("select queue_pg.close_batch(%s)", (batch,))
    await finish(conn, "discard", a)
    await finish(conn, "complete", c)
    await conn.execute("select queue_pg.maintain()")
    row = await one(conn, "select state, total, completed, failed, cancelled from queue_pg.batch(%s)", batch)
    assert row == ("failed", 3, 1, 1, 1)
    assert await states(conn, [a, b, c]) == "fxc"


# --- refusals ---------------------------------------------------------------------------------------------------------

ABSENT = "018f0000-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    ("jobs", "field", "reason"),
    [
        ([{"key": "a", "depends_on": ["a"]}], "depends_on", "in a circle of 1: a -> a"),
        (
            [{"key": "a", "depends_on": ["c"]}, {"key": "b", "depends_on": ["a"]}, {"key": "c", "depends_on": ["b"]}],
            "depends_on",
            "in a circle of 3: ",
        ),
        ([{"depends_on": [ABSENT]}], "depends_on[0]", ABSENT),
        ([{}, {"depends_on": ["nobody"]}], "jobs[1].depends_on[0]", "nobody"),
        ([{"depends_on": "a"}], "depends_on", "array"),
        ([{"depends_on": [7]}], "depends_on[0]", "id of a job"),
        ([{"depends_on": [{"job": ABSENT, "on_failure": "run"}]}], "depends_on[0]", "on_unsuccessful"),
        ([{"depends_on": [{"job": ABSENT, "on_unsuccessful": "ignore"}]}], "depends_on[0]", "cancel, run or fail"),
        ([{"depends_on": [{"job": ABSENT, "name": "a b"}]}], "depends_on[0]", "name"),
        ([{"depends_on": [{"job": ABSENT, "name": "n"}, {"job": ABSENT, "name": "n"}]}], "depends_on[1]", "twice"),
        ([{"key": "a b"}], "jobs[0].key", "letters"),
        ([{"key": ABSENT}], "jobs[0].key", "id"),
        ([{"key": "a"}, {"key": "a"}], "jobs[1].key", "twice"),
        ([{"key": "a", "unique_key": "u"}, {"unique_key": "u"}], "jobs[1].unique_key", "twice"),
        ([{"key": "a"}, {"payload": "{{ parents.b.output }}", "depends_on": ["a"]}], "payload", "none of its parents"),
        ([{"key": "a"}, {"payload": ["{{ now }}"], "depends_on": ["a"]}], "payload", "no path"),
        ([{"key": "a"}, {"payload": {"x": "{{ parents.a.output"}, "depends_on": ["a"]}], "payload", "without }}"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    conn: Connection, jobs: list[dict[str, Any]], field: str, reason: str
) -> None:
    with pytest.raises(psycopg.Error) as refused:
        await submit(conn, *jobs)
    assert refused.value.sqlstate == "QP005"
    detail = json.loads(refused.value.diag.message_detail or "")
    assert detail["field"] == field
    assert reason in detail["reason"]
    assert await one(conn, "select count(*) from queue_pg.jobs") == 0


async def test_a_circle_behind_other_jobs_is_named_alone(conn: Connection) -> None:
    jobs = [
        {"key": "start"},
        {"key": "x", "depends_on": ["start", "z"]},
        {"key": "y", "depends_on": ["x"]},
        {"key": "z", "depends_on": ["y"]},
        {"key": "after", "depends_on": ["z", "start"]},
    ]
    with pytest.raises(psycopg.Error, match=r"circle of 3: (\w) -> (\w) -> (\w) -> \1\n") as refused:
        await submit(conn, *jobs)
    assert "start" not in str(refused.value.diag.message_primary)


async def test_forgotten_parents_and_those_of_other_tenants_are_unknown(conn: Connection, clock: Clock) -> None:
    [other, gone] = await submit(conn, {"org": "b"}, {})
    await conn.execute("select queue_pg.cancel(%s)", (gone,))
    clock.advance(40 * 86_400)
    for parent in (other, gone):
        with pytest.raises(psycopg.Error, match=str(parent)):
            await submit(conn, {"depends_on": [str(parent)]})
    [child] = await submit(conn, {"org": "b", "depends_on": [str(other)]})
    assert await state(conn, child) == "waiting"


# --- submitting again, retrying ---------------------------------------------------------------------------------------


async def test_a_graph_with_unique_keys_can_be_sent_again(conn: Connection) -> None:
    graph = (
        {"key": "a", "unique_key": "ua"},
        {"unique_key": "ub", "payload": "{{ parents.a.output }}", "depends_on": ["a"]},
    )
    first = await submit(conn, *graph)
    assert await submit(conn, *graph) == first
    await finish(conn, "complete", first[0], result={"n": 1})
    assert await one(conn, "select payload from queue_pg.job(%s)", first[1]) == {"n": 1}
    # Known by its template still.
    assert await submit(conn, *graph) == first
    with pytest.raises(psycopg.Error) as refused:
        await submit(conn, {"unique_key": "ub", "payload": "{{ parents.0.id }}", "depends_on": [str(first[0])]})
    assert refused.value.sqlstate == "QP004"


async def test_children_of_a_retried_parent_stay_ended_until_they_are_retried_too(conn: Connection) -> None:
    a, b, c = jobs = await submit(
        conn,
        {"key": "a"},
        {"key": "b", "payload": "{{ parents.a.output }}", "depends_on": ["a"]},
        {"depends_on": ["b"]},
    )
    await finish(conn, "discard", a)
    assert await states(conn, jobs) == "fxx"
    await conn.execute("select queue_pg.retry(%s)", (a,))
    assert await states(conn, jobs) == "qxx"
    await conn.execute("select queue_pg.retry(%s)", (b,))
    await conn.execute("select queue_pg.retry(%s)", (c,))
    assert await states(conn, jobs) == "qww"
    await finish(conn, "complete", a, result="made")
    assert await one(conn, "select payload from queue_pg.job(%s)", b) == "made"
    await finish(conn, "complete", b)
    assert await states(conn, jobs) == "ccq"


async def test_a_child_retried_without_its_parent_takes_it_as_it_is(conn: Connection) -> None:
    [parent, plain, filled] = await submit(
        conn, {"key": "p"}, {"depends_on": ["p"]}, {"payload": "{{ parents.p.output }}", "depends_on": ["p"]}
    )
    await finish(conn, "discard", parent)
    await conn.execute("select queue_pg.retry(%s)", (plain,))
    assert await state(conn, plain) == "queued"
    await conn.execute("select queue_pg.retry(%s)", (filled,))
    assert (await state(conn, filled), await code(conn, filled)) == ("failed", "template_error")


async def test_a_retry_forgets_what_a_failed_parent_meant_while_others_live(conn: Connection) -> None:
    [a, b, child] = await submit(conn, {"key": "a"}, {"key": "b"}, {"depends_on": ["a", "b"]})
    await finish(conn, "discard", a)
    assert await state(conn, child) == "cancelled"
    await conn.execute("select queue_pg.retry(%s)", (child,))
    assert await state(conn, child) == "waiting"
    await conn.execute("insert into queue_pg.unsettled values (%s)", (child,))
    assert await one(conn, "select queue_pg.settle()") == 1
    assert await state(conn, child) == "waiting"
    await finish(conn, "complete", b)
    assert await state(conn, child) == "queued"


async def test_a_released_child_that_is_retried_is_not_filled_in_again(conn: Connection) -> None:
    [parent, child] = await submit(conn, {"key": "p"}, {"payload": "{{ parents.p.output }}", "depends_on": ["p"]})
    await finish(conn, "complete", parent, result="{{ parents.p.id }}")
    await finish(conn, "discard", child)
    await conn.execute("select queue_pg.retry(%s)", (child,))
    assert await one(conn, "select state::text, payload from queue_pg.job(%s)", child) == (
        "queued",
        "{{ parents.p.id }}",
    )


# --- keeping house ----------------------------------------------------------------------------------------------------


async def test_what_is_too_much_for_one_statement_is_left_to_maintenance(conn: Connection) -> None:
    """A chain longer than one statement follows: all of it ends, some in the statement and some by maintenance."""
    jobs = [{"key": f"n{n}", "depends_on": [f"n{n - 1}"] if n else []} for n in range(1_500)]
    ids = await submit(conn, *jobs)
    await conn.execute("select queue_pg.cancel(%s)", (ids[0],))
    left = await one(conn, "select count(*) from queue_pg.jobs")
    assert 0 < left < 1_500
    assert await one(conn, "select next_due_seconds from queue_pg.maintain(max_jobs => 0)") <= 0.1
    await conn.execute("select queue_pg.maintain()")
    assert await one(conn, "select count(*) from queue_pg.jobs") == 0
    assert await one(conn, "select count(*) from queue_pg.unsettled") == 0
    assert await one(conn, "select next_due_seconds from queue_pg.maintain()") is None


async def test_dependencies_are_forgotten_with_the_child(conn: Connection, clock: Clock) -> None:
    await conn.execute("select queue_pg.configure(retention => '1 hour')")
    [parent, child, waiting] = await submit(
        conn, {"key": "p"}, {"key": "c", "depends_on": ["p"]}, {"depends_on": ["c"], "delay_seconds": 9}
    )
    await finish(conn, "complete", parent)
    await finish(conn, "complete", child)
    count = "select count(*) from queue_pg.dependencies"
    await conn.execute("select queue_pg.maintain_history()")
    assert await one(conn, count) == 2
    clock.advance(4000)
    await conn.execute("select queue_pg.maintain_history()")
    assert await all_of(conn, "select child_id from queue_pg.dependencies") == [(waiting,)]
    await conn.execute("select queue_pg.cancel(%s)", (waiting,))
    clock.advance(4000)
    await conn.execute("select queue_pg.maintain_history()")
    assert await one(conn, count) == 0
    assert await one(conn, "select count(*) from queue_pg.ended_children") == 0


async def test_why_waiting_names_the_parents(conn: Connection) -> None:
    [a, b, child] = await submit(conn, {"key": "a"}, {"key": "b"}, {"depends_on": ["a", "b"]})
    await finish(conn, "complete", a)
    row = await one(conn, "select reason, detail, held_by from queue_pg.why_waiting(%s)", child)
    assert row == ("parents", "The job waits for 1 of its 2 parent(s) to end.", str(b))


@pytest.mark.parametrize("parents", [0, 1])
async def test_retry_gives_nobody_parents(conn: Connection, parents: int) -> None:
    """What has run, or never waited, is retried as it is, however often."""
    [*others, job] = await submit(conn, *[{"key": "p"}] * parents, {"depends_on": ["p"] * parents})
    for other in others:
        await finish(conn, "complete", other)
    for _ in range(3):
        await finish(conn, "discard", job)
        await conn.execute("select queue_pg.retry(%s)", (job,))
        assert await one(conn, "select state::text, parents_left from queue_pg.jobs where id = %s", job) == (
            "queued",
            0 if parents else None,
        )
    types = [row[0] for row in await all_of(conn, "select type from queue_pg.job_events where job_id = %s", job)]
    assert types.count("promoted") == parents
