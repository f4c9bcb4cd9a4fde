from __future__ import annotations

import asyncio
import enum
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import BaseModel, Field

from queue_pg import InvalidJob, Queue, SyncQueue, Tasks, current_job, use_queue
from queue_pg.tasks import JobContext, job_context


class Size(enum.Enum):
    SMALL = "s"


class Document(BaseModel):
    title: str
    pages: int = 1


def make(tasks: Tasks) -> Any:
    @tasks.task(queue="texts", priority=5, max_attempts=3, timeout=90, retry_base_seconds=2, retry_cap_seconds=60)
    async def summarise(
        text: str, words: Annotated[int, Field(ge=1)] = 50, *, style: Literal["short", "long"] = "short"
    ) -> str:
        """Summarise a text.

        More of no interest here.
        """
        return f"{text}/{words}/{style}"

    return summarise


@pytest.fixture(autouse=True)
def _no_default_queue() -> Iterator[None]:
    yield
    use_queue(None)


# --- the registry -----------------------------------------------------------------------------------------------------


def test_a_task_knows_itself() -> None:
    tasks = Tasks()
    summarise = make(tasks)
    assert (summarise.kind, summarise.queue, summarise.is_async) == ("summarise", "texts", True)
    assert tasks.get("summarise") is summarise
    assert list(tasks) == [summarise]
    assert "summarise" in tasks
    [row] = json.loads(tasks.kinds_json())
    assert row["schema"]["properties"].keys() == {"text", "words", "style"}
    assert row["schema"]["required"] == ["text"]
    assert row["schema"]["additionalProperties"] is False
    del row["schema"]
    assert row == {
        "kind": "summarise",
        "max_attempts": 3,
        "timeout_seconds": 90.0,
        "retry_base_seconds": 2,
        "retry_cap_seconds": 60,
        "description": "Summarise a text.",
    }


async def test_a_call_runs_the_function_here() -> None:
    assert await make(Tasks())("a", words=2) == "a/2/short"


def test_a_kind_belongs_to_one_function() -> None:
    tasks = Tasks()
    make(tasks)
    make(tasks)  # the same function again: its module was reloaded

    def other() -> None: ...

    with pytest.raises(ValueError, match=r"'summarise' belongs to .*make.<locals>.summarise already"):
        tasks.task(kind="summarise")(other)
    assert tasks.task(kind="another")(other).kind == "another"


def test_signatures_that_json_cannot_call_are_refused() -> None:
    tasks = Tasks()

    def stars(*texts: str) -> None: ...
    def keywords(**texts: str) -> None: ...
    def positional(text: str, /) -> None: ...

    for function in (stars, keywords, positional):
        with pytest.raises(TypeError, match="cannot come from a JSON object"):
            tasks.task(function)

    class Local: ...

    def local(value: Local) -> None: ...

    with pytest.raises(TypeError, match="'Local' must be importable"):
        tasks.task(local)

    async def asynchronous() -> None: ...

    with pytest.raises(TypeError, match="is async"):
        tasks.task(run_in="process")(asynchronous)
    assert len(tasks) == 0


# --- payloads ---------------------------------------------------------------------------------------------------------


def test_arguments_become_a_json_object() -> None:
    summarise = make(Tasks())
    assert summarise.payload("a", 3) == {"text": "a", "words": 3, "style": "short"}
    assert summarise.payload(text="a", style="long") == {"text": "a", "words": 50, "style": "long"}
    assert summarise.validate({"text": "a"}) == {"text": "a", "words": 50, "style": "short"}


@pytest.mark.parametrize(
    ("args", "kwargs", "field", "reason"),
    [
        ((), {}, "payload.text", "is missing"),
        (("a",), {"text": "b"}, "payload.text", "given twice"),
        (("a", 1, "long", 4), {}, "payload", "4 positional arguments"),
        (("a",), {"wrods": 5}, "payload.wrods", "is not a parameter"),
        (("a", 0), {}, "payload.words", "greater than or equal to 1"),
        (("a",), {"style": "huge"}, "payload.style", "'short' or 'long'"),
        ((7,), {}, "payload.text", "valid string"),
    ],
)
def test_wrong_arguments_are_named(args: Any, kwargs: Any, field: str, reason: str) -> None:
    with pytest.raises(InvalidJob, match=reason) as caught:
        make(Tasks()).payload(*args, **kwargs)
    assert caught.value.field == field


@pytest.mark.parametrize("payload", [None, [], "text", 7, [["text", "a"]]])
def test_a_stored_payload_must_be_an_object(payload: Any) -> None:
    with pytest.raises(InvalidJob, match="must be a JSON object"):
        make(Tasks()).validate(payload)


def test_several_faults_are_counted() -> None:
    with pytest.raises(InvalidJob) as caught:
        make(Tasks()).validate({"words": 0, "x": 1, "style": "?"})
    assert caught.value.hint == "3 more values are wrong too."


def test_rich_types_make_the_journey() -> None:
    def rich(
        at: datetime,
        wait: timedelta,
        job: UUID,
        size: Size,
        document: Document,
        names: set[str],
        pair: tuple[int, str],
        path: Path = Path("/tmp/x"),  # noqa: S108
        anything: Any = None,
    ) -> None: ...

    task = Tasks().task(rich)
    given: dict[str, Any] = {
        "at": datetime(2026, 1, 2, tzinfo=UTC),
        "wait": timedelta(seconds=90),
        "job": uuid4(),
        "size": Size.SMALL,
        "document": Document(title="t"),
        "names": {"a"},
        "pair": (1, "b"),
    }
    payload = task.payload(**given)
    assert payload["document"] == {"title": "t", "pages": 1}
    stored = json.loads(json.dumps(payload))
    assert task.validate(stored) == {**given, "path": Path("/tmp/x"), "anything": None}  # noqa: S108
    with pytest.raises(InvalidJob, match="cannot be written as JSON"):
        task.payload(**given, anything=object())
    with pytest.raises(InvalidJob) as caught:
        task.validate({**stored, "document": {"title": "t", "pages": "many"}})
    assert caught.value.field == "payload.document.pages"


def test_awkward_parameter_names_are_allowed() -> None:
    def awkward(schema: str, json: int, _private: int, model_dump: int, copy: int = 1) -> None: ...

    task = Tasks().task(awkward)
    payload = task.payload("s", 1, 2, 3)
    assert payload == {"schema": "s", "json": 1, "_private": 2, "model_dump": 3, "copy": 1}
    assert task.validate(payload) == payload
    assert set(task.schema["properties"]) == set(payload)


# --- submitting -------------------------------------------------------------------------------------------------------


async def test_submits_with_the_tasks_own_options(dsn: str) -> None:
    summarise = make(Tasks())
    async with Queue(dsn, notify=False) as queue:
        use_queue(queue)
        job = await summarise.submit("a", words=7)
        assert (job.kind, job.queue, job.priority, job.max_attempts) == ("summarise", "texts", 5, 3)
        assert job.timeout == timedelta(seconds=90)
        assert job.payload == {"text": "a", "words": 7, "style": "short"}


async def test_using_overrides(dsn: str) -> None:
    summarise = make(Tasks())
    async with Queue(dsn, notify=False) as queue, await psycopg.AsyncConnection.connect(dsn) as conn:
        fast = summarise.using(queue=queue, priority=20, tags=["t"]).using(delay=60, max_attempts=1)
        job = await fast.submit("a")
        assert (job.queue, job.priority, job.max_attempts, job.state, job.tags) == ("texts", 20, 1, "scheduled", ["t"])
        use_queue(queue)
        assert (await summarise.using(queue="others").submit("a")).queue == "others"
        lost = await summarise.using(connection=conn).submit("a")
        await conn.rollback()
        assert lost.id not in {job.id for job in (await queue.list()).jobs}
        with pytest.raises(InvalidJob) as caught:
            await summarise.submit("\x00")
        assert caught.value.field == "payload.text"


def test_submits_blocking(dsn: str) -> None:
    summarise = make(Tasks())
    with SyncQueue(dsn, notify=False) as queue:
        use_queue(queue)
        assert summarise.submit_sync("a").payload["text"] == "a"
        assert summarise.using(queue=queue, priority=1).submit_sync("b").priority == 1
        with pytest.raises(TypeError, match="await submit"):
            summarise.using(queue=Queue(dsn)).submit_sync("a")
        with pytest.raises(TypeError, match="call submit_sync"):
            asyncio.run(summarise.using(queue=queue).submit("a"))


def test_without_a_queue_the_settings_decide(dsn: str, tmp_path: Path) -> None:
    code = """
import asyncio
from queue_pg import task

@task
def add(a: int, b: int) -> int:
    return a + b

async def main():
    jobs = await asyncio.gather(add.submit(1, 2), add.submit(3, 4))
    print(len({job.id for job in jobs}))

asyncio.run(main())
asyncio.run(main())
print(add.submit_sync(5, 6).payload)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"DATABASE_URL": dsn},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2\n2\n{'a': 5, 'b': 6}\n", "", 0)


# --- the running job --------------------------------------------------------------------------------------------------


def test_the_current_job_is_known_inside_only() -> None:
    context = JobContext(job_id=uuid4(), kind="k", queue="q", attempt=1, max_attempts=3, lease_token=1)
    with pytest.raises(RuntimeError, match="outside of a job"):
        current_job()
    with job_context(context):
        assert current_job() is context
        assert not current_job().cancelled.is_set()
        seen: list[Any] = []
        thread = threading.Thread(target=lambda: seen.append(_outside()))
        thread.start()
        thread.join()
        assert seen == [True]
    with pytest.raises(RuntimeError):
        current_job()


def _outside() -> bool:
    try:
        current_job()
    except RuntimeError:
        return True
    return False
