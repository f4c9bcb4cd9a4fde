"""The worker's side of a keeper (keeper.py): starting one, stopping it, hearing how the command ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import marshal
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from queue_pg_workers.commands import keeper
from queue_pg_workers.commands.modes import Launch

log = logging.getLogger(__name__)

PROGRAM: Final = str(Path(keeper.__file__).resolve())
# Beyond the grace and the time of cleaning up: then the keeper itself is stuck, or somebody has stopped it.
STUCK_SECONDS: Final = 5.0
# How long processes that lost their keeper are looked for, and their output waited for.
LOST_SECONDS: Final = 1.0
# Is to be in the environment of everything a command starts, with a value that no other attempt has.
MARK: Final = "QUEUE_PG_COMMAND"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: an exit code, the name of a signal, or why it could not be started; else it was lost."""

    exit_code: int | None = None
    signal: str | None = None
    errno: int | None = None
    stage: str | None = None


class Kept:
    """A command that runs, and its keeper. `end` is done when nothing is left of it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        launch: Launch,
        *,
        outputs: tuple[asyncio.StreamReader, asyncio.StreamReader],
        control: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        transports: list[asyncio.ReadTransport],
    ) -> None:
        self.process = process
        self.stdout, self.stderr = outputs
        self._launch = launch
        self._answers, self._orders = control
        self._transports = transports
        self.end = asyncio.create_task(self._ended(), name="end of a command")

    @classmethod
    async def start(cls, launch: Launch, workspace: Path, stdin: int) -> Kept:
        """Start a keeper and tell it what to run."""
        ours, theirs = socket.socketpair()
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - returns once it is executed
                [sys.executable, "-I", "-S", "-X", "utf8", PROGRAM, str(theirs.fileno())],
                stdin=stdin,
                stdout=out_end,
                stderr=err_end,
                pass_fds=[theirs.fileno()],
                # Nothing of the worker's: the command could read it in /proc.
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            for descriptor in (out, err):
                os.close(descriptor)
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(out_end)
            os.close(err_end)
        transports: list[asyncio.ReadTransport] = []
        outputs = (asyncio.StreamReader(), asyncio.StreamReader())
        try:
            for reader, descriptor in zip(outputs, (out, err), strict=True):
                transports.append(await _reading(reader, descriptor))
            control = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            for transport in transports:
                transport.close()
            process.kill()
            process.wait()
            raise
        told = marshal.dumps(_spec(launch, workspace))
        control[1].write(len(told).to_bytes(8, "big") + told)
        return cls(process, launch, outputs=outputs, control=control, transports=transports)

    def stop(self, grace_seconds: float) -> None:
        """Have everything ended, politely for so long and then not. A second order can only hurry it."""
        self._orders.write(f"stop {grace_seconds:.3f}\n".encode())
        patience = grace_seconds + STUCK_SECONDS + keeper.CLEANUP_SECONDS * len(self._launch.cleanup)
        stuck = asyncio.get_running_loop().call_later(patience, self._kill)
        self.end.add_done_callback(lambda _: stuck.cancel())

    def close(self) -> None:
        """Let go of everything; a keeper that still runs kills its command then."""
        self._orders.close()
        for transport in self._transports:
            transport.close()

    def _kill(self) -> None:
        log.warning("the keeper %d of a command does not answer and is killed", self.process.pid)
        self.process.kill()

    async def _ended(self) -> Ended:
        try:
            line = await self._answers.readline()
        except ConnectionError:
            line = b""
        words = line.decode(errors="replace").strip().split(maxsplit=2)
        if len(words) < 2 or not line.endswith(b"\n"):
            # Somebody has killed the keeper. The command itself died with it; what that had started may not have.
            await asyncio.to_thread(kill_marked, self._launch.env.get(MARK, ""))
            await asyncio.to_thread(clean_up, self._launch)
            await self._wait()
            return Ended()
        await self._wait()
        number = int(words[1])
        if words[0] == "exit":
            return Ended(exit_code=number)
        if words[0] == "signal":
            return Ended(signal=signal_name(number))
        return Ended(errno=number, stage=words[2] if len(words) > 2 else "start")

    async def _wait(self) -> None:
        await asyncio.to_thread(self.process.wait)


async def _reading(reader: asyncio.StreamReader, descriptor: int) -> asyncio.ReadTransport:
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    return transport


def _spec(launch: Launch, workspace: Path) -> dict[str, object]:
    """Return what the keeper is told."""
    return {
        "argv": [word.encode() for word in launch.argv],
        "env": {name.encode(): value.encode() for name, value in launch.env.items()},
        "cwd": os.fsencode(workspace),
        "limits": dict(launch.limits),
        "user": None if launch.user is None else (launch.user.uid, launch.user.gid),
        "cleanup": [[word.encode() for word in argv] for argv in launch.cleanup],
    }


def kill_marked(token: str) -> None:
    """Kill the processes that have this mark in their environment: a last resort, for those that lost their keeper."""
    if not token:
        return
    mark = f"{MARK}={token}\0".encode()
    deadline = time.monotonic() + LOST_SECONDS
    while time.monotonic() < deadline:
        found = [pid for pid in _processes() if _is_marked(pid, mark)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def clean_up(launch: Launch) -> None:
    """Remove what is no process, such as a container, in the place of a keeper that cannot any more."""
    for argv in launch.cleanup:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(  # noqa: S603
                argv,
                env=launch.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=keeper.CLEANUP_SECONDS,
                check=False,
            )


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        # Gone, a zombie, or not ours.
        return False


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
