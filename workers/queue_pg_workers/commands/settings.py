"""What the environment says about commands; a payload can change none of it."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSettings:
    """`commands` None: this worker runs none. A limit of 0 is none; sizes are in bytes."""

    commands: str | None = None
    mode: str = "local"
    mode_class: str | None = None
    temp_dir: str | None = None
    user: str | None = None
    grace_seconds: float = 2.0
    max_log_bytes: int = 10 * MIB
    max_log_lines: int = 20_000
    max_artifacts: int = 100
    max_artifact_bytes: int = 1024 * MIB
    max_workspace_bytes: int = 4096 * MIB
    cpu_seconds: int = 3_600
    memory_bytes: int = 4096 * MIB
    file_bytes: int = 1024 * MIB
    open_files: int = 1_024
    processes: int = 4_096
    image: str | None = None
    network: str = "none"
    cpus: float = 1.0

    @property
    def limits(self) -> dict[str, int]:
        """The resource limits of a process, by the names of Python's module `resource`."""
        wanted = {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_NPROC": self.processes,
        }
        return {"RLIMIT_CORE": 0, **{name: value for name, value in wanted.items() if value}}
