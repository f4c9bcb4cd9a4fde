"""`demo`: a whole queue-pg on this machine, at work on real input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from queue_pg.cli.demo_scenes import failures
from queue_pg.cli.dev import Port, addresses
from queue_pg.cli.output import DatabaseUrl, JsonFlag, error_text, print_json, print_text
from queue_pg.cli.text import printable, shorten
from queue_pg.models import Job, JobState

if TYPE_CHECKING:
    from queue_pg.cli.demo_scenes import Scene
    from queue_pg.cli.system import Signals, System
    from queue_pg.cli.terminal import Screen
    from queue_pg.settings import Settings

WORKERS = 2
SHOWN_RESULTS = 4
NAMED_FAILURES = 5
SHOWN_LOG_LINES = 10
PLAIN_PROGRESS_SECONDS = 2.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    port: Port = None,
    exit_when_done: Annotated[bool, typer.Option("--exit", help="End when all requests have completed.")] = False,
    modules: Annotated[int | None, typer.Option(min=1, help="Submit only this many requests.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs of API and workers.")] = False,
    as_json: JsonFlag = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Start everything here and summarise the modules of Python's standard library.

    An embedded Postgres (unless DATABASE_URL is set), the API, two worker processes, and about 200 real requests:
    sent to the model server of OPENAI_BASE_URL / OPENAI_API_KEY when set, else answered by a mock. Then a plan with its
    subtasks, a chain, and a command with its log while it runs.
    """
    from queue_pg.cli.connect import load_settings
    from queue_pg.cli.demo_scenes import allowed_commands, play
    from queue_pg.cli.process_tree import ProcessFailed
    from queue_pg.cli.system import Interrupted, Plan, require_free_port, run_system
    from queue_pg.cli.terminal import Screen

    settings = load_settings(database_url)
    api_port = port or settings.api_port
    require_free_port(api_port, command="queue-pg demo")
    # Whatever QUEUES says, the demo's own jobs are to be run.
    queues = dict.fromkeys([*settings.queues, "default", settings.subtask_queue])
    plan = Plan(
        database_url=settings.database_url,
        data_dir=settings.data_dir,
        port=api_port,
        api=["serve", "--host", "127.0.0.1", "--port", str(api_port)],
        workers=[["worker", "--queues", ",".join(queues), "--grace", "5"] for _ in range(WORKERS)],
        environment={"QUEUE_PG_COMMANDS": allowed_commands(settings.commands)},
    )
    screen = Screen(logs=verbose)

    async def work(system: System, signals: Signals) -> int:
        screen.say(f"Ready: Postgres, the API on {system.url}, {WORKERS} workers; model: {_model(settings)}")
        run = await _run_sample(system, signals, screen, modules=modules)
        show = _unheard if as_json else _shown_at_once
        _print_results(run, show)
        scenes = await play(system, signals, show, subtask_queue=settings.subtask_queue)
        _print_outcome(run, scenes, system, as_json=as_json)
        if exit_when_done:
            return _exit_code(run, scenes, screen)
        screen.logs = True
        screen.say("It stays up; its logs follow. Ctrl-C stops it.")
        await signals.stop.wait()
        return 0

    try:
        raise typer.Exit(asyncio.run(run_system(plan, work, say=screen.say, show=screen.show)))
    except Interrupted as stopped:
        # Stopping it is how a demo ends; with --exit the requests were to complete first.
        if exit_when_done:
            screen.say("error: Stopped before all requests had completed.")
        raise typer.Exit(128 + stopped.number if exit_when_done else 0) from None
    except ProcessFailed as error:
        if not verbose:
            for line in error.lines[-SHOWN_LOG_LINES:]:
                screen.say(f"  {line}")
        raise


@dataclass(slots=True)
class Run:
    """The sample: which job is about which module, and the jobs that have ended."""

    modules: dict[UUID, str]
    started: float = field(default_factory=time.monotonic)
    ended: list[Job] = field(default_factory=list[Job])
    seconds: float = 0.0

    def in_state(self, state: JobState) -> list[Job]:
        return [job for job in self.ended if job.state == state]


async def _run_sample(system: System, signals: Signals, screen: Screen, *, modules: int | None) -> Run:
    """Submit the requests and wait for them; Interrupted when a signal comes before the end."""
    from queue_pg.cli.stdlib_summaries import summary_jobs

    jobs = await asyncio.to_thread(lambda: list(summary_jobs(tag=f"demo-{secrets.token_hex(4)}", modules=modules)))
    submitted = await system.queue.submit_many(jobs)
    run = Run({item.id: str(job.metadata["module"]) for item, job in zip(submitted, jobs, strict=True)})
    screen.say(f"Submitted {len(jobs)} requests: one summary for each documented module of the standard library")
    with _progress(screen, run) as moved:
        stopping = asyncio.create_task(signals.stop.wait())
        waits = [asyncio.create_task(system.queue.wait(job_id)) for job_id in run.modules]
        try:
            pending: set[asyncio.Task[Any]] = {stopping, *waits}
            while len(run.ended) < len(waits) and not stopping.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                run.ended += [task.result() for task in done if task is not stopping]
                moved()
        finally:
            for task in (stopping, *waits):
                task.cancel()
            await asyncio.gather(stopping, *waits, return_exceptions=True)
    if len(run.ended) < len(waits):
        signals.raise_if_stopped()
    run.seconds = time.monotonic() - run.started
    return run


@contextlib.contextmanager
def _progress(screen: Screen, run: Run) -> Generator[Any]:
    """Show how many jobs have ended, with rate and time left: a bar, or a line now and then without a terminal."""
    if not screen.interactive:
        shown = [time.monotonic()]

        def line() -> None:
            if time.monotonic() - shown[0] > PLAIN_PROGRESS_SECONDS:
                shown[0] = time.monotonic()
                screen.say(f"{len(run.ended)} of {len(run.modules)} done, {_rate(run)} per second")

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("Summaries"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen.console) as bar:
        task = bar.add_task("summaries", total=len(run.modules), rate="0")

        def move() -> None:
            bar.update(task, completed=len(run.ended), rate=_rate(run))

        yield move


def _print_results(run: Run, show: Callable[[str], None]) -> None:
    completed = run.in_state(JobState.COMPLETED)
    show(f"{len(completed)} of {len(run.modules)} completed in {run.seconds:.1f} s ({_rate(run)} per second)\n")
    for job in sorted(completed, key=lambda job: run.modules[job.id])[:: max(1, len(completed) // SHOWN_RESULTS)][
        :SHOWN_RESULTS
    ]:
        show(f"  {run.modules[job.id]:<14} {shorten(printable(summary_text(job.result)), 90)}")
    show("")


def _print_outcome(run: Run, scenes: list[Scene], system: System, *, as_json: bool) -> None:
    completed = run.in_state(JobState.COMPLETED)
    example = (completed or run.ended)[0]
    if as_json:
        print_json(
            {
                "submitted": len(run.modules),
                "completed": len(completed),
                "failed": len(run.ended) - len(completed),
                "seconds": round(run.seconds, 3),
                **{scene.name: scene.told for scene in scenes},
                "url": system.url,
                "example_job": example.id,
                "database_url": system.dsn,
            }
        )
    else:
        for line in (f"A job      {system.url}/jobs/{example.id}", *addresses(system.url, system.dsn)):
            print_text(line)
    sys.stdout.flush()


def _shown_at_once(line: str) -> None:
    """Print a line of the demo at once, also into a pipe: somebody watches."""
    print_text(line)
    sys.stdout.flush()


def _unheard(line: str) -> None:
    """With --json programs read standard output."""
    del line


def _rate(run: Run) -> str:
    """Return the jobs ended per second so far; a slow model server shows as 0.3, not as 0."""
    rate = len(run.ended) / max(run.seconds or time.monotonic() - run.started, 0.001)
    return f"{rate:.1f}" if rate < 10 else f"{rate:.0f}"


def summary_text(result: Any) -> str:
    """Return the text in the result of a `chat` job."""
    if isinstance(result, dict):
        text = result.get("text")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(text, str):
            return text
    return json.dumps(result, ensure_ascii=False)


def _exit_code(run: Run, scenes: list[Scene], screen: Screen) -> int:
    for said in (wrong := failures(scenes)):
        screen.say(f"error: {said}")
    bad = [job for job in run.ended if job.state != JobState.COMPLETED]
    if not bad:
        return 1 if wrong else 0
    names = ", ".join(run.modules[job.id] for job in bad[:NAMED_FAILURES]) + (
        ", ..." if len(bad) > NAMED_FAILURES else ""
    )
    screen.say(
        f"error: {len(bad)} of {len(run.ended)} requests did not complete ({names}); the first: {error_text(bad[0])}"
    )
    return 1


def _model(settings: Settings) -> str:
    if settings.llm_provider == "mock":
        return "mock"
    if settings.ollama_host and not (settings.openai_api_key or settings.openai_base_url):
        return f"{settings.ollama_model} on {settings.ollama_host}"
    if settings.llm_provider is None and not (settings.openai_api_key or settings.openai_base_url):
        return "mock (set OPENAI_BASE_URL or OPENAI_API_KEY for a real one)"
    return f"{settings.openai_model} on {settings.openai_base_url or 'api.openai.com'}"
