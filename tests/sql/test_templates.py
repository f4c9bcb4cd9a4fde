"""What stands in a payload for what the parents have made, and what happens when it leads nowhere."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

Connection = psycopg.AsyncConnection

RESULT = {"text": 'He said "hi" {{ parents.p.id }}', "n": 3, "none": None, "list": [{"a": 1}, "two"], "größe": 1.5}


async def one(conn: Connection, query: str, *args: Any) -> Any:
    row = await (await conn.execute(query, args)).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


async def filled(conn: Connection, payload: Any, result: Any = RESULT, outcome: str = "complete") -> Any:
    """The payload and error of a child once its parent has ended."""
    parent = await one(conn, "select queue_pg.submit('k')")
    depends_on = json.dumps([{"job": str(parent), "name": "p", "on_unsuccessful": "run"}])
    child = await one(conn, "select queue_pg.submit('k', %s::jsonb, depends_on => %s)", json.dumps(payload), depends_on)
    await conn.execute("select queue_pg.claim('w', '{default}')")
    ending = (
        "select accepted from queue_pg.finish(array[%s::uuid], array[1], array[%s], array[%s::jsonb], array[%s::jsonb])"
    )
    error = '{"code": "broken", "message": "it broke"}'
    assert await one(conn, ending, parent, outcome, json.dumps(result), None if outcome == "complete" else error)
    return await one(conn, "select payload, error from queue_pg.job(%s)", child)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ parents.p.output }}", RESULT),
        ("{{parents.p.output.n}}", 3),
        ("{{ parents.p.output.none }}", None),
        ("{{ parents.p.output.list }}", [{"a": 1}, "two"]),
        ("{{ parents.p.output.list[0].a }}", 1),
        ("{{ parents.p.output.list[-1] }}", "two"),
        ("{{ parents.p.output.größe }}", 1.5),
        # What a parent has made is not read as a template.
        ("{{ parents.p.output.text }}", RESULT["text"]),
        ("{{ parents.p.state }}", "completed"),
        ("{{ parents.p.error }}", None),
        ("a {{ parents.p.output.n }} b {{ parents.p.output.list }}", 'a 3 b [{"a": 1}, "two"]'),
        ("none: {{ parents.p.output.none }}; {{ parents.p.output.text }}", f"none: null; {RESULT['text']}"),
        ("{{{{ literal }} {{ parents.p.output.n }}", "{{ literal }} 3"),
        ("{{{{{{ parents.p.output.n }}", "{{3"),
        ("}} { {", "}} { {"),
        (
            {"{{ parents.p.id }}": ["{{ parents.p.output.n }}", {"x": "{{ parents.p.output.n }}"}]},
            {"{{ parents.p.id }}": [3, {"x": 3}]},
        ),
        ([[], {}, "", 0, None, "{{ parents.p.kind }}"], [[], {}, "", 0, None, "k"]),
    ],
)
async def test_what_stands_for_what(conn: Connection, template: Any, value: Any) -> None:
    assert await filled(conn, template) == (value, None)


async def test_a_parent_without_a_result_has_made_null(conn: Connection) -> None:
    assert await filled(conn, ["{{ parents.p.output }}"], None) == ([None], None)


async def test_what_a_failed_parent_leaves_to_a_child_that_runs_anyway(conn: Connection) -> None:
    template = ["{{ parents.p.error.message }}", "{{ parents.p.state }}"]
    assert await filled(conn, template, outcome="discard") == (["it broke", "failed"], None)


@pytest.mark.parametrize(
    ("template", "outcome", "reason"),
    [
        ("{{ parents.p.output.absent }}", "complete", "{{ parents.p.output.absent }}: parent p has nothing there"),
        ("{{ parents.p.output.list[7] }}", "complete", "{{ parents.p.output.list[7] }}: parent p has nothing there"),
        ("{{ parents.p.output.n.deeper }}", "complete", "{{ parents.p.output.n.deeper }}: parent p has nothing there"),
        ("{{ parents.p.output }}", "discard", "{{ parents.p.output }}: parent p is failed and has no output"),
    ],
)
async def test_a_path_that_leads_nowhere_fails_the_child(
    conn: Connection, template: str, outcome: str, reason: str
) -> None:
    payload, error = await filled(conn, {"a": template}, outcome=outcome)
    assert payload == {"a": template}
    assert error == {"code": "template_error", "message": f"payload: {reason}"}


async def test_the_result_is_bounded_before_it_is_made(conn: Connection) -> None:
    _, error = await filled(conn, ["{{ parents.p.output }}"] * 40, "x" * 1_000_000)
    assert error["code"] == "template_error"
    assert "over 33554432 bytes" in error["message"]
    payload, _ = await filled(conn, ["{{ parents.p.output }}"] * 20, "x" * 1_000_000)
    assert sum(map(len, payload)) == 20_000_000


async def test_the_number_of_placeholders_is_bounded(conn: Connection) -> None:
    with pytest.raises(psycopg.Error, match="more than 1000 placeholders"):
        await filled(conn, ["{{ parents.p.output }}"] * 1001)


async def test_a_result_that_no_payload_may_hold_fails_the_child_alone(conn: Connection) -> None:
    parents = [await one(conn, "select queue_pg.submit('k')") for _ in range(2)]
    children = [
        await one(
            conn,
            "select queue_pg.submit('k', '\"{{ parents.0.output }}\"', depends_on => %s)",
            json.dumps([str(parent)]),
        )
        for parent in parents
    ]
    await conn.execute("select queue_pg.claim('w', '{default}', max_jobs => 2)")
    await conn.execute(
        "select queue_pg.finish(%s, '{1,1}', '{complete,complete}', array['1e131071', '1']::jsonb[])", (parents,)
    )
    assert [await one(conn, "select queue_pg.state_of(%s)", child) for child in children] == ["failed", "queued"]
    assert await one(conn, "select error ->> 'code' from queue_pg.job(%s)", children[0]) == "template_error"


async def test_a_job_without_parents_is_never_filled_in(conn: Connection) -> None:
    job = await one(conn, "select queue_pg.submit('k', '\"{{ parents.p.output }} {{ x\"')")
    payload = await one(conn, "select payload from queue_pg.claim('w', '{default}')")
    assert payload == '"{{ parents.p.output }} {{ x"'
    assert await one(conn, "select queue_pg.state_of(%s)", job) == "running"


async def test_a_million_literal_braces_cost_no_more_than_their_length(conn: Connection) -> None:
    await conn.execute("set statement_timeout = '20s'")  # before, this took longer than ten minutes
    literals, paths = await one(conn, "select * from queue_pg.template_pieces(repeat('{{{{', 1000000) || '{{ a }}b')")
    assert (len(literals[0]), literals[1:], paths) == (2_000_000, ["b"], ["a"])
