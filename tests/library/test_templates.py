"""Job templates: versions, typed variables, and jobs submitted by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from queue_pg import InvalidJob, Queue, SyncQueue, TemplateNotFound, UniqueKeyConflict

VARIABLES: dict[str, Any] = {
    "topic": "string",
    "words": {"type": "integer", "default": 50, "minimum": 1, "maximum": 500},
    "tone": {"type": "string", "default": "plain", "enum": ["plain", "warm"]},
    "user": {"type": "object", "default": {"name": "nobody"}},
    "extra": {"type": "any", "default": None},
    "short": {"type": "string", "default": "", "max_length": 3},
}
PAYLOAD = {
    "prompt": "Write {{ variables.words }} words about {{variables.topic}} for {{ variables.user.name }}.",
    "words": "{{ variables.words }}",
    "tone": ["{{ variables.tone }}", {"deep": "{{ variables.extra }}"}],
    "literal": "{{{{ stays }} and so does {this}",
    "n": 7,
}


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    async with Queue(dsn, notify=False) as queue:
        yield queue


async def test_a_job_is_made_from_the_newest_version(queue: Queue) -> None:
    first = await queue.put_template("summary", "chat", PAYLOAD, variables=VARIABLES, queue="texts", max_attempts=2)
    assert (first.version, first.kind, first.variables["topic"]) == (1, "chat", {"type": "string"})
    made = await queue.submit_template("summary", {"topic": "rain", "words": 3, "extra": [1, None]})
    assert made.created
    job = await queue.get(made.id)
    assert (job.kind, job.queue, job.max_attempts, job.state) == ("chat", "texts", 2, "queued")
    assert job.metadata == {"template": {"name": "summary", "version": 1}}
    assert job.payload == {
        "prompt": "Write 3 words about rain for nobody.",
        "words": 3,
        "tone": ["plain", {"deep": [1, None]}],
        "literal": "{{ stays }} and so does {this}",
        "n": 7,
    }
    second = await queue.put_template("summary", "chat", {"p": "{{ variables.topic }}"}, variables={"topic": "any"})
    assert second.version == 2
    newest = await queue.get((await queue.submit_template("summary", {"topic": 1})).id)
    assert (newest.payload, newest.queue) == ({"p": 1}, "default")
    old = await queue.submit_template("summary", {"topic": "{{ variables.words }} {{ x"}, version=1)
    # What a variable holds is no template.
    assert (await queue.get(old.id)).payload["prompt"].startswith("Write 50 words about {{ variables.words }} {{ x for")


async def test_the_same_template_again_is_no_new_version(queue: Queue, conn: psycopg.AsyncConnection) -> None:
    async def put() -> int:
        return (await queue.put_template("t", "k", PAYLOAD, variables=VARIABLES, timeout=60, priority=3)).version

    assert set(await asyncio.gather(*(put() for _ in range(5)))) == {1}
    assert (await queue.put_template("t", "k", PAYLOAD, variables=VARIABLES, timeout=61, priority=3)).version == 2
    found = await queue.get_template("t", 1)
    assert (found.timeout, found.priority, found.payload) == (timedelta(seconds=60), 3, PAYLOAD)
    assert (await queue.get_template("t")).version == 2
    for change in ("priority = 4", "payload = '{}'"):
        with pytest.raises(psycopg.Error, match="never changes"):
            await conn.execute(f"update queue_pg.job_templates set {change}")


async def test_options_win_over_the_template(queue: Queue) -> None:
    await queue.put_template("t", "k", {}, queue="texts", priority=3, timeout=60)
    options: dict[str, Any] = {
        "queue": "gpu",
        "priority": 0,
        "timeout": 5,
        "delay": 60,
        "tags": ["a"],
        "max_attempts": 9,
    }
    made = await queue.submit_template("t", metadata={"user": 7, "template": "mine"}, **options)
    job = await queue.get(made.id)
    assert (job.queue, job.priority, job.timeout, job.max_attempts) == ("gpu", 0, timedelta(seconds=5), 9)
    assert (job.state, job.tags) == ("scheduled", ["a"])
    assert job.metadata == {"user": 7, "template": {"name": "t", "version": 1}}
    async with queue.batch() as batch:
        await queue.submit_template("t", batch_id=batch.id)
    assert (await queue.get_batch(batch.id)).total == 1


async def test_a_unique_key_gives_the_same_job_again(queue: Queue) -> None:
    await queue.put_template("t", "k", {"x": "{{ variables.x }}"}, variables={"x": "any"})
    first = await queue.submit_template("t", {"x": 1}, unique_key="a")
    again = await queue.submit_template("t", {"x": 1}, unique_key="a")
    assert (again.id, again.created) == (first.id, False)
    with pytest.raises(UniqueKeyConflict):
        await queue.submit_template("t", {"x": 2}, unique_key="a")


@pytest.mark.parametrize(
    ("variables", "field", "said"),
    [
        ({}, "variables.topic", "must be given"),
        ({"topic": None}, "variables.topic", "must be given"),
        ({"topic": 7}, "variables.topic", "must be of type string, not number"),
        ({"topic": "x", "words": "3"}, "variables.words", "must be of type integer, not string"),
        ({"topic": "x", "words": 1.5}, "variables.words", "must be an integer"),
        ({"topic": "x", "words": True}, "variables.words", "not boolean"),
        ({"topic": "x", "words": 0}, "variables.words", "at least 1"),
        ({"topic": "x", "words": 501}, "variables.words", "at most 500"),
        ({"topic": "x", "tone": "loud"}, "variables.tone", "one of"),
        ({"topic": "x", "short": "long"}, "variables.short", "at most 3 characters"),
        ({"topic": "x", "user": {}}, "variables.user", "has nothing at {{ variables.user.name }}"),
        ({"topic": "x", "colour": 1}, "variables.colour", "is no variable of template summary version 1; it has extra"),
        ([], "variables", "must be an object"),
        ({"topic": "\x00"}, "variables.topic", "NUL"),
    ],
)
async def test_wrong_variables_are_refused_by_name(queue: Queue, variables: Any, field: str, said: str) -> None:
    await queue.put_template("summary", "chat", PAYLOAD, variables=VARIABLES)
    with pytest.raises(InvalidJob) as caught:
        await queue.submit_template("summary", variables)
    assert caught.value.field == field
    assert said in caught.value.reason
    assert (await queue.list()).jobs == []


async def test_all_missing_variables_are_named(queue: Queue) -> None:
    await queue.put_template("t", "k", {}, variables={"b": "string", "a": "number", "c": {"type": "any", "default": 1}})
    with pytest.raises(InvalidJob, match=r"variables\.a: must be given \(as all of a, b\)"):
        await queue.submit_template("t")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"kind": ""}, "kind"),
        ({"payload": {"p": "{{ variables.y }}"}}, "payload"),
        ({"payload": {"p": "{{ y }}"}}, "payload"),
        ({"payload": {"p": "{{ variables.x"}}, "payload"),
        ({"payload": {"p": "{{ parents.a.output }}"}}, "payload"),
        ({"payload": "{{ variables.x }}" * 1001}, "payload"),
        ({"payload": "x" * 1_100_000}, "payload"),
        ({"variables": []}, "variables"),
        ({"variables": {"x": "text"}}, "variables.x"),
        ({"variables": {"x": 7}}, "variables.x"),
        ({"variables": {"x": {"type": "string", "default": 7}}}, "variables.x.default"),
        ({"variables": {"x": {"type": "string", "enum": 7}}}, "variables.x.enum"),
        ({"variables": {"x": {"type": "string", "minimum": "a"}}}, "variables.x"),
        ({"variables": {"x": {"type": "string", "max_length": -1}}}, "variables.x.max_length"),
        ({"variables": {"x": {"type": "string", "required": True}}}, "variables.x.required"),
        ({"variables": {"x y": "string"}}, "variables.x y"),
        ({"variables": {f"v{n}": "any" for n in range(101)}}, "variables"),
        ({"priority": 99_999}, "priority"),
        ({"timeout": -1}, "timeout"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"queue": ""}, "queue"),
        ({"description": "x" * 2_001}, "description"),
    ],
    ids=str,
)
async def test_wrong_templates_are_refused(queue: Queue, fields: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {"name": "t", "kind": "k", "payload": {}, "variables": {"x": "any"}, **fields}
    with pytest.raises(InvalidJob) as caught:
        await queue.put_template(**given)
    assert caught.value.field == field
    assert await queue.list_templates() == []


async def test_a_rendered_payload_is_bounded(queue: Queue) -> None:
    await queue.put_template("t", "k", ["{{ variables.x }}"] * 1000, variables={"x": "string"})
    with pytest.raises(InvalidJob, match=r"variables\.x: makes a payload of over"):
        await queue.submit_template("t", {"x": "y" * 40_000})


async def test_what_does_not_exist(queue: Queue, dsn: str) -> None:
    await queue.put_template("t", "k")
    async with Queue(dsn, notify=False, org="other") as other:
        for client, name, version in ((queue, "u", None), (queue, "t", 2), (other, "t", None)):
            with pytest.raises(TemplateNotFound) as caught:
                await client.submit_template(name, version=version)
            assert (caught.value.name, caught.value.version) == (name, version)
            with pytest.raises(TemplateNotFound):
                await client.get_template(name, version)
        assert await other.list_templates() == []
    for wrong in (0, "1", True, 2**31):
        with pytest.raises(InvalidJob, match="version"):
            await queue.submit_template("t", version=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match="colour: is no option"):
        await queue.submit_template("t", colour="red")
    with pytest.raises(InvalidJob, match="delay"):
        await queue.submit_template("t", delay="soon")


async def test_templates_are_listed_by_name_in_their_newest_version(queue: Queue) -> None:
    for name in ("b", "a", "c"):
        await queue.put_template(name, "k")
    await queue.put_template("a", "k", {"new": 1})
    assert [(each.name, each.version) for each in await queue.list_templates(limit=2)] == [("a", 2), ("b", 1)]
    assert [each.name for each in await queue.list_templates(after="b")] == ["c"]


async def test_by_sql_and_in_a_callers_transaction(queue: Queue, conn: psycopg.AsyncConnection, dsn: str) -> None:
    await conn.execute("select queue_pg.put_template('t', 'k', '\"{{ variables.x }}\"', '{\"x\": \"any\"}')")
    await conn.execute("select queue_pg.submit_template('t', '{\"x\": [1]}', options => '{\"priority\": 5}')")
    [job] = (await queue.list(with_payload=True)).jobs
    assert (job.payload, job.priority) == ([1], 5)
    with pytest.raises(psycopg.Error, match=r"options\.kind: is no option") as caught:
        await conn.execute("select queue_pg.submit_template('t', '{\"x\": 1}', options => '{\"kind\": \"z\"}')")
    assert caught.value.sqlstate == "QP005"
    async with await psycopg.AsyncConnection.connect(dsn) as own:
        await queue.submit_template("t", {"x": 1}, connection=own)
        await own.rollback()
    assert len((await queue.list()).jobs) == 1


def test_the_blocking_twin(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        queue.put_template("t", "k", {"p": "about {{ variables.x }}"}, variables={"x": "string"})
        assert queue.get(queue.submit_template("t", {"x": "rain"}).id).payload == {"p": "about rain"}
        assert [each.name for each in queue.list_templates()] == ["t"]
