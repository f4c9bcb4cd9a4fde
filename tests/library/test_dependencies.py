"""Jobs that wait for others, from Python: submit, submit_graph, chain, dependencies."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from queue_pg import (
    InvalidJob,
    InvalidTransition,
    JobNotFound,
    JobState,
    NewJob,
    Parent,
    PayloadTooLarge,
    Queue,
    SyncQueue,
    Tasks,
)
from queue_pg.testing import drain


@pytest.fixture
async def queue(dsn: str) -> Any:
    async with Queue(dsn, notify=False) as queue:
        yield queue


async def complete(queue: Queue, result: Any = None) -> list[UUID]:
    """Complete all that is queued, and return what it was."""
    claimed = await queue.claim("w", ["default"], max_jobs=100)
    for job in claimed:
        await queue.complete(job.id, job.lease_token, result)
    return [job.id for job in claimed]


async def test_a_child_waits_and_takes_what_its_parents_made(queue: Queue) -> None:
    text = await queue.submit("fetch")
    words = await queue.submit("count")
    child = await queue.submit(
        "join",
        {"text": "{{ parents.text.output.t }}", "n": "{{ parents.1.output.t }}"},
        depends_on=[Parent(text, name="text"), words.id],
    )
    assert child.state is JobState.WAITING
    await complete(queue, {"t": [1, 2]})
    child = await queue.get(child.id)
    assert (child.state, child.payload) == (JobState.QUEUED, {"text": [1, 2], "n": [1, 2]})


async def test_parents_by_name_and_with_policies(queue: Queue) -> None:
    a, b = await queue.submit("k"), await queue.submit("k")
    child = await queue.submit(
        "k", "{{ parents.b.state }}", depends_on={"a": a, "b": Parent(str(b.id), on_unsuccessful="run")}
    )
    await queue.cancel(b.id)
    found = await queue.dependencies(child.id)
    assert [(p.id, p.name, p.on_unsuccessful, p.outcome, p.state) for p in found.parents] == [
        (a.id, "a", "cancel", None, JobState.QUEUED),
        (b.id, "b", "run", JobState.CANCELLED, JobState.CANCELLED),
    ]
    assert (found.parents_count, found.children_count, found.children) == (2, 0, [])
    await complete(queue)
    assert (await queue.get(child.id)).payload == "cancelled"


async def test_a_graph_in_one_call(queue: Queue) -> None:
    end, left, right, start = made = await queue.submit_graph(
        [
            NewJob(kind="end", depends_on=["left", Parent("right", on_unsuccessful="fail")]),
            NewJob(kind="left", key="left", depends_on=["start"]),
            NewJob(kind="right", key="right", depends_on=["start"], payload={"from": "{{ parents.start.output }}"}),
            NewJob(kind="start", key="start"),
        ]
    )
    assert all(each.created for each in made)
    assert await complete(queue, "S") == [start.id]
    assert (await queue.get(right.id)).payload == {"from": "S"}
    assert set(await complete(queue)) == {left.id, right.id}
    assert await complete(queue) == [end.id]
    found = await queue.dependencies(start.id, limit=1)
    assert (found.children_count, len(found.children)) == (2, 1)


async def test_the_tasks_of_a_graph_run_in_order(queue: Queue) -> None:
    tasks = Tasks()
    ran: list[str] = []

    @tasks.task
    async def note(word: str) -> str:
        ran.append(word)
        return word.upper()

    first = await note.using(queue=queue).submit("a")
    await note.using(queue=queue, depends_on=[Parent(first, name="first")]).submit("{{ parents.first.output }}b")
    await drain(queue, tasks)
    assert ran == ["a", "Ab"]


async def test_a_graph_in_a_callers_transaction(queue: Queue, dsn: str, conn: psycopg.AsyncConnection) -> None:
    parent = await queue.submit("k")
    graph = [NewJob(kind="k", key="a", depends_on=[parent]), NewJob(kind="k", depends_on=["a"])]
    async with await psycopg.AsyncConnection.connect(dsn) as own:
        await queue.submit_graph(graph, connection=own)
        await queue.submit("k", depends_on=[parent], connection=own)
        await own.rollback()
    assert len((await queue.list()).jobs) == 1
    async with await psycopg.AsyncConnection.connect(dsn) as own:
        await queue.submit_graph(graph, connection=own)
    assert (await queue.dependencies(parent.id)).children_count == 1


async def test_chain_waits_for_a_live_parent_unless_told_not_to(queue: Queue) -> None:
    parent = await queue.submit("k")
    follow = NewJob(kind="k", payload="{{ parents.parent.output.text }}")
    with pytest.raises(InvalidTransition) as refused:
        await queue.chain(parent.id, follow, completed_only=True)
    assert (refused.value.action, refused.value.state) == ("chain to", "queued")
    waiting = await queue.chain(parent.id, follow)
    await complete(queue, {"text": "T"})
    assert (await queue.get(waiting.id)).payload == "T"
    at_once = await queue.chain(str(parent.id), follow, completed_only=True)
    assert (at_once.state, at_once.payload) == (JobState.QUEUED, "T")
    other = await queue.submit("k")
    both = await queue.chain(parent.id, NewJob(kind="k", depends_on={"other": other}), name="p")
    assert {p.name for p in (await queue.dependencies(both.id)).parents} == {"p", "other"}


async def test_who_is_not_there(queue: Queue) -> None:
    absent = uuid4()
    with pytest.raises(JobNotFound):
        await queue.chain(absent, NewJob(kind="k"))
    with pytest.raises(JobNotFound):
        await queue.dependencies(absent)
    with pytest.raises(InvalidJob, match=str(absent)) as refused:
        await queue.submit("k", depends_on=[absent])
    assert refused.value.field == "depends_on[0]"


async def test_other_tenants_see_no_dependencies(queue: Queue, dsn: str) -> None:
    parent = await queue.submit("k")
    async with Queue(dsn, org="other", notify=False) as other:
        with pytest.raises(JobNotFound):
            await other.dependencies(parent.id)
        with pytest.raises(InvalidJob):
            await other.submit("k", depends_on=[parent])


@pytest.mark.parametrize(
    ("depends_on", "field"),
    [
        ("abc", "depends_on"),
        (7, "depends_on"),
        ([None], "depends_on[0]"),
        (["a b"], "depends_on[0]"),
        (["a\x00"], "depends_on[0]"),
        ({"a b": "a"}, "depends_on[0].name"),
        ({7: "a"}, "depends_on[0].name"),
        ([Parent("a", on_unsuccessful="skip")], "depends_on[0].on_unsuccessful"),  # type: ignore[arg-type]
        (["nobody"], "depends_on[0]"),
    ],
)
async def test_bad_parents_are_refused_by_place(queue: Queue, depends_on: Any, field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        await queue.submit("k", depends_on=depends_on)
    assert refused.value.field == field
    assert (await queue.list()).jobs == []


async def test_a_graph_names_the_job_it_refuses(queue: Queue) -> None:
    for bad, field in (
        (NewJob(kind="k", payload=float("nan")), "jobs[1].payload"),
        (NewJob(kind="k", key="a b"), "jobs[1].key"),
        (NewJob(kind="k", depends_on=["nobody"]), "jobs[1].depends_on[0]"),
    ):
        with pytest.raises(InvalidJob) as refused:
            await queue.submit_graph([NewJob(kind="k"), bad])
        assert refused.value.field == field
    with pytest.raises(InvalidJob, match="circle of 2: "):
        await queue.submit_graph(
            [NewJob(kind="k", key="a", depends_on=["b"]), NewJob(kind="k", key="b", depends_on=["a"])]
        )
    async with Queue(queue.dsn, notify=False, max_payload_bytes=10) as small:
        with pytest.raises(PayloadTooLarge):
            await small.submit_graph([NewJob(kind="k", payload="x" * 20)])


async def test_an_empty_graph_is_fine(queue: Queue) -> None:
    assert await queue.submit_graph([]) == []


@pytest.mark.parametrize("job", [NewJob(kind="k", key="a"), NewJob(kind="k", depends_on=["a"])])
async def test_submit_many_takes_no_graph(queue: Queue, job: NewJob) -> None:
    with pytest.raises(InvalidJob, match="graph"):
        await queue.submit_many([NewJob(kind="k"), job])
    assert (await queue.list()).jobs == []


def test_the_blocking_twin(dsn: str) -> None:
    with SyncQueue(dsn, notify=False) as queue:
        a, b = queue.submit_graph([NewJob(kind="k", key="a"), NewJob(kind="k", depends_on=["a"])])
        assert queue.get(b.id).state is JobState.WAITING
        c = queue.chain(a.id, NewJob(kind="k"))
        assert {child.id for child in queue.dependencies(a.id).children} == {b.id, c.id}
