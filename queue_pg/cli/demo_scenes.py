"""What `demo` shows beside its sample: a plan and its subtasks, a chain, and a command with its log while it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from queue_pg.cli.output import error_text
from queue_pg.cli.text import one_line, shorten
from queue_pg.models import Job, JobState

if TYPE_CHECKING:
    from queue_pg.cli.system import Signals, System
    from queue_pg.client import Queue

TEXT_CHARS = 84
DESCRIPTION: Final = "Build a REST API for a library"
PROMPTS: Final = ("Name one thing that Postgres is good at.", "Shorten this: {{ parents.first.output.text }}")
# It says something now and then, as long programs do, and leaves a file. Workers of the demo run this and nothing else.
COMMAND: Final = (
    "sh",
    "-c",
    "for n in 1 2 3; do echo step $n of 3; sleep 0.4; done; echo nearly >&2; uname -s > artifacts/system.txt",
)

T = TypeVar("T")
Print = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scene:
    """What was shown: under which name, the jobs it took, and what programs may want to know (`--json`)."""

    name: str
    jobs: list[Job]
    told: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def failed(self) -> Job | None:
        return next((job for job in self.jobs if job.state is not JobState.COMPLETED), None)


def allowed_commands(configured: str | None) -> str:
    """Return the setting QUEUE_PG_COMMANDS that also allows the demo's command."""
    if configured is not None and configured.strip() == "any":
        return configured
    own = " ".join(f"'{word}'" for word in COMMAND)
    return own if configured is None else f"{configured}\n{own}"


async def play(system: System, signals: Signals, show: Print, *, subtask_queue: str) -> list[Scene]:
    """Show one scene after the other; Interrupted when a signal comes first."""
    queue = system.queue

    async def plan() -> Scene:
        return await show_plan(queue, show, subtask_queue)

    async def chain() -> Scene:
        return await show_chain(queue, show)

    async def command() -> Scene:
        return await show_command(queue, show)

    scenes: list[Scene] = []
    for scene in (plan, chain, command):
        scenes.append(await _unless_stopped(signals, scene()))
        show("")
    return scenes


async def show_plan(queue: Queue, show: Print, subtask_queue: str) -> Scene:
    """Have a description split into subtasks, and say how the task follows them."""
    from queue_pg.task_model import NewTask

    task = await queue.submit_task(NewTask(description=DESCRIPTION, subtask_queue=subtask_queue))
    show(f"A plan     {DESCRIPTION!r} became {len(task.subtasks)} subtasks, which the task follows")
    parts = [await queue.get_task(subtask_id) for subtask_id in task.subtask_ids]
    descriptions = {part.id: one_line(part.description or "") for part in parts}
    ended: list[Job] = []
    waits = [asyncio.create_task(queue.wait(part.id)) for part in parts]
    try:
        for waiting in asyncio.as_completed(waits):
            ended.append(await waiting)
            show(f"  {ended[-1].state:<10} {shorten(descriptions[ended[-1].id], TEXT_CHARS)}")
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    whole = await queue.wait(task.id)
    show(f"  {whole.state:<10} the task itself")
    told = {"id": task.id, "state": whole.state, "subtasks": task.subtasks, "subtask_ids": task.subtask_ids}
    return Scene("plan", [*ended, whole], told)


async def show_chain(queue: Queue, show: Print) -> Scene:
    """Submit a prompt, and one that waits for its answer and takes it."""
    show("A chain    the second prompt waits for the first, and takes what it made")
    first = await queue.submit("chat", {"prompt": PROMPTS[0]})
    second = await queue.submit("chat", {"prompt": PROMPTS[1]}, depends_on={"first": first.id})
    ended: list[Job] = []
    for job_id in (first.id, second.id):
        job = await queue.wait(job_id)
        ended.append(job)
        asked, answered = _field(job.payload, "prompt"), _field(job.result, "text")
        show(f"  asked      {shorten(one_line(asked), TEXT_CHARS)}")
        show(f"  {job.state:<10} {shorten(one_line(answered), TEXT_CHARS)}")
    return Scene("chain", ended, {"ids": [job.id for job in ended], "prompt": _field(ended[1].payload, "prompt")})


async def show_command(queue: Queue, show: Print) -> Scene:
    """Run a program as a job, and show what it writes while it runs."""
    show("A command  sh, run as a job; what it writes is seen while it runs")
    job = await queue.submit("command", {"cmd": list(COMMAND)}, max_attempts=1)
    started = time.monotonic()
    lines: list[str] = []
    async for event in queue.events(job.id):
        if event.type == "log":
            lines.append(str(event.data.get("line", "")))
            seconds = time.monotonic() - started
            show(f"  {seconds:4.1f} s     {event.data.get('stream', ''):<7} {shorten(one_line(lines[-1]), TEXT_CHARS)}")
    ended = await queue.get(job.id)
    files = [artifact.name for artifact in await queue.artifacts(job.id)]
    show(f"  {ended.state:<10} it left {', '.join(files) or 'no files'}")
    return Scene("command", [ended], {"id": job.id, "state": ended.state, "log": lines, "artifacts": files})


def failures(scenes: list[Scene]) -> list[str]:
    """Return one sentence for each scene that did not end well."""
    return [f"The {scene.name} did not complete: {error_text(job)}" for scene in scenes if (job := scene.failed)]


async def _unless_stopped(signals: Signals, work: Awaitable[T]) -> T:
    doing, stopping = asyncio.ensure_future(work), asyncio.create_task(signals.stop.wait())
    try:
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            signals.raise_if_stopped()
        return await doing
    finally:
        for task in (doing, stopping):
            task.cancel()
        await asyncio.gather(doing, stopping, return_exceptions=True)


def _field(value: Any, name: str) -> str:
    """Return a text of an object, and nothing where there is none."""
    found: object = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""
