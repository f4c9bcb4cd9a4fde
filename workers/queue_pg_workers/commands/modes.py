"""How a command is run: as a process of this machine, in a container, or as a class of the user's says."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast, runtime_checkable

from queue_pg.errors import ConfigError
from queue_pg_workers.commands.settings import CommandSettings
from queue_pg_workers.commands.workspace import ARTIFACTS, TMP, User

log = logging.getLogger(__name__)

# Fixed, so that what runs does not depend on how the worker was started. A template can set another one.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INSIDE: Final = "/workspace"
_DOCKER_SECONDS: Final = 30
# The exit code of `docker run` when the command was never started.
_DOCKER_FAILED: Final = 125
# What the docker program itself needs of the worker's environment; nothing of it gets into a container.
_DOCKER_ENV: Final = ("PATH", "HOME", "XDG_RUNTIME_DIR")
_DOCKER_PREFIX: Final = "DOCKER_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is to run: checked, with all its variables. `name` is of this attempt alone."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    workspace: Path
    has_input: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is started for it. `limits` by the names of the module `resource`.

    `cleanup`: programs to run, with the same variables, when the command was stopped and its processes are killed, for
    what is not among them.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    user: User | None = None
    cleanup: Sequence[Sequence[str]] = ()


@runtime_checkable
class Mode(Protocol):
    """A way to run commands. With COMMAND_MODE=custom a class of the user's, made without arguments."""

    def environment(self, workspace: Path) -> Mapping[str, str]:
        """Return the variables that a command has anyway; `standard_environment` makes most of them."""
        ...

    def launch(self, command: Command) -> Launch:
        """Return what to start. Its processes are killed with the job, however they hide."""
        ...

    def failure(self, exit_code: int, stderr: str) -> tuple[str, str] | None:
        """Return code and message of a failure to run the command at all, None for one of the command's own."""
        ...

    def sweep(self, is_alive: Callable[[Path], bool]) -> None:
        """Remove what killed workers of this machine have left; `is_alive` tells of a worker's folder."""
        ...


class Local:
    """Processes of this machine, with limits, as the worker's user or another one."""

    def __init__(self, settings: CommandSettings, user: User | None) -> None:
        self._limits = settings.limits
        self._user = user

    def environment(self, workspace: Path) -> Mapping[str, str]:
        return {"PATH": PATH, **standard_environment(str(workspace))}

    def launch(self, command: Command) -> Launch:
        return Launch(argv=command.argv, env=command.env, limits=self._limits, user=self._user)

    def failure(self, exit_code: int, stderr: str) -> tuple[str, str] | None:
        return None

    def sweep(self, is_alive: Callable[[Path], bool]) -> None:
        """Do nothing: the keepers of a killed worker have killed everything."""


class Docker:
    """Containers, by the program `docker`: no network, no privileges, nothing to write but the workspace and /tmp."""

    def __init__(self, settings: CommandSettings, user: User | None) -> None:
        if settings.image is None:
            raise ConfigError(
                "COMMAND_MODE is docker, but there is no image.",
                setting="COMMAND_IMAGE",
                hint="Set COMMAND_IMAGE to the image that commands run in.",
            )
        program = shutil.which("docker")
        if program is None:
            raise ConfigError(
                "COMMAND_MODE is docker, but there is no program docker on the PATH.",
                setting="COMMAND_MODE",
                hint="Install the Docker command line, or set COMMAND_MODE=local.",
            )
        self._program = program
        self._settings = settings
        self._image = settings.image
        self._user = user or User(os.geteuid(), os.getegid())
        self._env = {
            name: value for name, value in os.environ.items() if name in _DOCKER_ENV or name.startswith(_DOCKER_PREFIX)
        }
        self._labels = {"queue-pg": "command", "queue-pg.host": socket.gethostname()}

    def environment(self, workspace: Path) -> Mapping[str, str]:
        # Without PATH: the image has one.
        return standard_environment(INSIDE)

    def launch(self, command: Command) -> Launch:
        settings, user = self._settings, f"{self._user.uid}:{self._user.gid}"
        options = ["run", "--rm", "--init", "--name", command.name, "--pull", "missing"]
        options += ["--interactive"] if command.has_input else []
        for label, value in {**self._labels, "queue-pg.worker": str(command.workspace.parent)}.items():
            options += ["--label", f"{label}={value}"]
        options += ["--network", settings.network, "--read-only", "--tmpfs", "/tmp"]  # noqa: S108 - the container's
        options += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", user]
        options += ["--cpus", f"{settings.cpus:g}"] if settings.cpus else []
        options += ["--pids-limit", str(settings.processes)] if settings.processes else []
        if settings.memory_bytes:
            # Without the second one as much again could be swapped.
            options += ["--memory", str(settings.memory_bytes), "--memory-swap", str(settings.memory_bytes)]
        for name, limit in settings.limits.items():
            # What the container bounds as a whole, or counts with the processes of the whole machine, is left out.
            if name not in ("RLIMIT_AS", "RLIMIT_NPROC"):
                options += ["--ulimit", f"{name.removeprefix('RLIMIT_').lower()}={limit}"]
        options += ["--mount", f"type=bind,source={command.workspace},target={INSIDE}", "--workdir", INSIDE]
        for name, value in command.env.items():
            options += ["--env", f"{name}={value}"]
        # The program goes before any entry point of the image; what follows the image is its arguments.
        argv = [self._program, *options, "--entrypoint", command.argv[0], self._image, *command.argv[1:]]
        kill = ([self._program, "kill", command.name], [self._program, "rm", "--force", command.name])
        return Launch(argv=argv, env=self._env, cleanup=kill)

    def failure(self, exit_code: int, stderr: str) -> tuple[str, str] | None:
        if exit_code != _DOCKER_FAILED:
            return None
        said = (stderr.strip().splitlines() or ["it does not say why"])[-1]
        return "docker_failed", f"docker could not run the command: {said}"

    def sweep(self, is_alive: Callable[[Path], bool]) -> None:
        """Remove the containers of dead workers of this machine."""
        filters = [part for label, value in self._labels.items() for part in ("--filter", f"label={label}={value}")]
        shown = '{{.ID}}\t{{.Label "queue-pg.worker"}}'
        listed = self._docker("ps", "--all", *filters, "--format", shown)
        for line in listed.splitlines():
            container, _, folder = line.partition("\t")
            if folder and not is_alive(Path(folder)):
                log.info("removing the container %s, which a dead worker has left", container)
                try:
                    self._docker("rm", "--force", container)
                except ConfigError as error:
                    # It may have ended meanwhile.
                    log.warning("the container %s was not removed: %s", container, error.message)

    def _docker(self, *arguments: str) -> str:
        try:
            done = subprocess.run(  # noqa: S603
                [self._program, *arguments],
                env=self._env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_DOCKER_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _docker_failed(str(error)) from None
        if done.returncode:
            raise _docker_failed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
        return done.stdout


def standard_environment(folder: str) -> dict[str, str]:
    """Return the variables of a command whose workspace it sees under this name."""
    return {
        "HOME": folder,
        "TMPDIR": f"{folder}/{TMP}",
        "LANG": "C.UTF-8",
        "QUEUE_PG_ARTIFACTS": f"{folder}/{ARTIFACTS}",
    }


def make_mode(settings: CommandSettings, user: User | None) -> Mode:
    """Return the way to run commands that the settings ask for. Raises ConfigError."""
    if settings.mode == "docker":
        return Docker(settings, user)
    if settings.mode == "custom":
        return _custom(settings.mode_class)
    return Local(settings, user)


def _custom(path: str | None) -> Mode:
    if path is None:
        raise ConfigError(
            "COMMAND_MODE is custom, but there is no class.",
            setting="COMMAND_CLASS",
            hint="Set COMMAND_CLASS to module:Class; docs/commands.md says what it needs.",
        )
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        made = found()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"COMMAND_CLASS={path} cannot be used: {reason}.", setting="COMMAND_CLASS", hint="Give module:Class."
        ) from error
    missing = [
        each for each in ("environment", "launch", "failure", "sweep") if not callable(getattr(made, each, None))
    ]
    if missing:
        raise ConfigError(
            f"COMMAND_CLASS={path} lacks {', '.join(missing)}.",
            setting="COMMAND_CLASS",
            hint="docs/commands.md says what it needs.",
        )
    return cast("Mode", made)


def _docker_failed(reason: str) -> ConfigError:
    return ConfigError(
        f"Docker cannot be used: {reason}.", setting="COMMAND_MODE", hint="Try: docker ps; or set COMMAND_MODE=local."
    )
