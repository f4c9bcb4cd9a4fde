"""One attempt of a command: from the payload to the result, with its folder, its log and its files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from queue_pg.errors import ArtifactError
from queue_pg.models import Fail
from queue_pg.payloads import sanitise_text
from queue_pg.tasks import JobContext
from queue_pg_workers.commands.collecting import collect, fetch
from queue_pg_workers.commands.keeping import LOST_SECONDS, MARK, Ended, Kept
from queue_pg_workers.commands.modes import Command, Mode, make_mode
from queue_pg_workers.commands.output import Allowance, Output
from queue_pg_workers.commands.settings import CommandSettings
from queue_pg_workers.commands.templates import NotAllowed, parse_commands
from queue_pg_workers.commands.workspace import User, Workspace, Workspaces, find_user, used_bytes

log = logging.getLogger(__name__)

T = TypeVar("T")

# A second after a handler was stopped its job may be somebody else's; the tree has to be gone by then.
INTERRUPTED_GRACE_SECONDS: Final = 0.5
# Between two looks at what the workspace takes, and how many times as long as a look took.
LOOK_SECONDS: Final = 1.0
_LOOK_SHARE: Final = 20
_MAX_SKIPPED: Final = 20
# Why a program could not be executed, where the next attempt would find it no different.
_HOPELESS: Final = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR),
    *(errno.E2BIG, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG),
)
SYSTEM: Final = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a job asks for."""

    argv: Sequence[str]
    input: str | None
    env: dict[str, str]
    timeout_seconds: float | None
    files: list[str]


class CommandRunner:
    """Runs the commands of one worker. Raises ConfigError for settings that make no sense."""

    def __init__(self, settings: CommandSettings) -> None:
        self._settings = settings
        self._commands = parse_commands(settings.commands or "")
        # Whom files in a workspace belong to, where not to the worker's user.
        self._owner = find_user(settings.user)
        if os.geteuid() == 0 and self._owner is None:
            if settings.mode == "docker":
                self._owner = User(1000, 1000)
            else:
                log.warning("commands run as root, as this worker does; COMMAND_USER names another user")
        self._mode: Mode = make_mode(settings, self._owner)
        self._workspaces = Workspaces(Path(settings.temp_dir) if settings.temp_dir else None, self._owner)
        try:
            self._workspaces.sweep()
            self._mode.sweep(self._workspaces.is_alive)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the worker's folder."""
        self._workspaces.close()

    async def run(self, job: JobContext, request: Request) -> dict[str, Any] | Fail:
        """Run a command to its end. However this is left, nothing is left of the command then."""
        try:
            variables = self._commands.allow(request.argv, request.env)
        except NotAllowed as refused:
            return Fail(str(refused), code="command_not_allowed", retry=False)
        stopped = asyncio.Event()
        # In a task of its own: the handler's may be cancelled again while it cleans up.
        running = asyncio.create_task(self._run(job, request, variables, stopped), name=f"command of {job.job_id}")
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stopped.set()
            while not running.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({running})
            if not running.cancelled():
                running.exception()
            raise

    async def _run(
        self, job: JobContext, request: Request, variables: dict[str, str], stopped: asyncio.Event
    ) -> dict[str, Any] | Fail:
        workspace = await asyncio.to_thread(self._workspaces.make)
        try:
            if request.files:
                try:
                    await _unless(
                        stopped, fetch(job, workspace, request.files, self._owner, self._settings.max_workspace_bytes)
                    )
                except ArtifactError as error:
                    return Fail(error.message, code=error.code, retry=False)
            return await self._run_in(workspace, job, request, variables, stopped)
        finally:
            await asyncio.to_thread(self._workspaces.remove, workspace)

    async def _run_in(
        self,
        workspace: Workspace,
        job: JobContext,
        request: Request,
        variables: dict[str, str],
        stopped: asyncio.Event,
    ) -> dict[str, Any] | Fail:
        began = time.monotonic()
        env = {
            **self._mode.environment(workspace.path),
            **variables,
            "QUEUE_PG_JOB_ID": str(job.job_id),
            "QUEUE_PG_ATTEMPT": str(job.attempt),
            MARK: workspace.token,
        }
        command = Command(
            name=f"queue-pg-{job.job_id}-{job.lease_token}",
            argv=request.argv,
            env=env,
            workspace=workspace.path,
            has_input=request.input is not None,
        )
        allowance = Allowance(self._settings.max_log_bytes, self._settings.max_log_lines)

        async def say(events: list[tuple[str, str]]) -> None:
            await job.linked().events.add(job, events)

        outputs = [Output(stream, allowance, say) for stream in ("stdout", "stderr")]
        with await asyncio.to_thread(_stdin, request.input, workspace.path.parent, self._owner) as stdin:
            kept = await Kept.start(self._mode.launch(command), workspace.path, stdin.fileno())
        attempt = _Attempt(kept, outputs, workspace, self._settings, stopped)
        try:
            ended = await attempt.run(request.timeout_seconds)
        finally:
            kept.close()
        if stopped.is_set():
            raise asyncio.CancelledError
        report: dict[str, Any] = {
            "exit_code": ended.exit_code,
            "stdout": outputs[0].tail,
            "stderr": outputs[1].tail,
            "duration_seconds": round(time.monotonic() - began, 3),
            "artifacts": await _unless(stopped, self._collect(job, workspace)),
        }
        return self._outcome(request, ended, attempt.reason, report)

    async def _collect(self, job: JobContext, workspace: Workspace) -> list[dict[str, Any]]:
        count = 0

        async def skipped(name: str, reason: str) -> None:
            nonlocal count
            count += 1
            if count <= _MAX_SKIPPED:
                await job.log(f"artifacts/{sanitise_text(name, 300)} is not kept: {reason}", stream=SYSTEM)

        kept = await collect(
            job,
            workspace,
            max_files=self._settings.max_artifacts,
            max_bytes=self._settings.max_artifact_bytes,
            owner=None if self._owner is None else self._owner.uid,
            skipped=skipped,
        )
        if count > _MAX_SKIPPED:
            await job.log(f"{count - _MAX_SKIPPED:,} more files are not kept", stream=SYSTEM)
        return kept

    def _outcome(
        self, request: Request, ended: Ended, reason: str | None, report: dict[str, Any]
    ) -> dict[str, Any] | Fail:
        """Return the result of a command, or how it failed."""
        program = sanitise_text(request.argv[0], 200)
        if reason == "timeout":
            message = f"the command ran longer than its timeout_secs of {request.timeout_seconds:g} s"
            return Fail(message, code="timeout", details=report)
        if reason == "workspace_full":
            limit = self._settings.max_workspace_bytes
            message = f"the workspace of the command took more than {limit:,} bytes (COMMAND_MAX_WORKSPACE_BYTES)"
            return Fail(message, code="workspace_full", retry=False, details=report)
        if ended.exit_code == 0:
            return report
        if ended.exit_code is not None:
            if (failure := self._mode.failure(ended.exit_code, report["stderr"])) is not None:
                return Fail(failure[1], code=failure[0], details=report)
            return Fail(f"the command ended with exit code {ended.exit_code}", code="exit_code", details=report)
        if ended.signal is not None:
            message = f"the command was killed by {ended.signal}"
            return Fail(message, code="killed_by_signal", details={**report, "signal": ended.signal})
        if ended.errno is not None:
            said = os.strerror(ended.errno)
            message = f"{program} cannot be started: {said}"
            if ended.stage == "execute" and ended.errno in _HOPELESS:
                return Fail(message, code="command_not_startable", retry=False, details=report)
            return Fail(f"{message} (to {ended.stage} it)", code="command_not_started", details=report)
        return Fail("the keeper of the command was killed", code="command_lost", details=report)


class _Attempt:
    """Watches over a command that runs. `reason`: why it was stopped before its end, other than by the worker."""

    def __init__(
        self, kept: Kept, outputs: list[Output], workspace: Workspace, settings: CommandSettings, stopped: asyncio.Event
    ) -> None:
        self._kept = kept
        self._outputs = outputs
        self._workspace = workspace
        self._settings = settings
        self._stopped = stopped
        self.reason: str | None = None

    async def run(self, timeout_seconds: float | None) -> Ended:
        """Return when nothing is left of the command and all it said is logged. Raises LeaseLost."""
        readers = (self._kept.stdout, self._kept.stderr)
        reading = [
            asyncio.create_task(output.read(reader), name=f"reading {output.stream}")
            for output, reader in zip(self._outputs, readers, strict=True)
        ]
        watching = {asyncio.create_task(self._stopped.wait()), asyncio.create_task(self._until_full())}
        if timeout_seconds is not None:
            watching.add(asyncio.create_task(asyncio.sleep(timeout_seconds), name="timeout"))
        try:
            await self._until_over(reading, watching)
            await self._until_read(reading)
        finally:
            for task in (*reading, *watching):
                task.cancel()
            await asyncio.gather(*reading, *watching, return_exceptions=True)
        return self._kept.end.result()

    async def _until_over(self, reading: list[asyncio.Task[None]], watching: set[asyncio.Task[Any]]) -> None:
        """Wait for the end of the command, and bring it about when there is a reason to."""
        waiting: set[asyncio.Task[Any]] = {self._kept.end, *reading, *watching}
        while not self._kept.end.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self._kept.end.done():
                return
            if self._stopped.is_set() or any(task.done() and task.exception() for task in reading):
                # Another worker may have the job.
                self._kept.stop(min(self._settings.grace_seconds, INTERRUPTED_GRACE_SECONDS))
            elif found := done & watching:
                self.reason = "timeout" if any(task.get_name() == "timeout" for task in found) else "workspace_full"
                self._kept.stop(self._settings.grace_seconds)

    async def _until_read(self, reading: list[asyncio.Task[None]]) -> None:
        """Wait until all that was said is logged. Somebody else may hold the output open, and is not waited for."""
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            left: set[asyncio.Task[Any]] = set(reading)
            while left and not stopped.done():
                done, pending = await asyncio.wait(
                    {*left, stopped}, timeout=LOST_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done - {stopped}:
                    task.result()
                left = pending - {stopped}
                open_ends = [output for output, task in zip(self._outputs, reading, strict=True) if task in left]
                if not done and all(output.waits for output in open_ends):
                    return
        finally:
            stopped.cancel()

    async def _until_full(self) -> None:
        """Return when the workspace takes more than it may; never, where there is no limit."""
        limit = self._settings.max_workspace_bytes
        pause = LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            if limit:
                began = time.monotonic()
                if await asyncio.to_thread(used_bytes, self._workspace, limit) > limit:
                    return
                pause = max(LOOK_SECONDS, _LOOK_SHARE * (time.monotonic() - began))


async def _unless(stopped: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """Do something unless the attempt is stopped meanwhile, which raises CancelledError."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise asyncio.CancelledError
        return working.result()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


def _stdin(given: str | None, folder: Path, owner: User | None) -> IO[bytes]:
    """Return what the command reads: a file without a name, which waits for nobody. Or nothing."""
    if given is None:
        return open(os.devnull, "rb")
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    if owner is not None:
        os.fchown(file.fileno(), owner.uid, owner.gid)
    file.write(given.encode())
    file.flush()
    file.seek(0)
    return file


def as_input(value: Any) -> str | None:
    """Return the standard input for a payload's `input`: text as it is, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
