"""The kind `command`: a program run as a job (docs/commands.md)."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from queue_pg.models import Fail
from queue_pg.tasks import current_job
from queue_pg_workers.commands.runner import CommandRunner, Request, as_input
from queue_pg_workers.commands.templates import RESERVED

KIND = "command"
DESCRIPTION = "A program run without a shell, if the worker's settings allow it; its output is the job's log."
MAX_WORDS = 1_000
# What Linux takes for one word and, with room for the environment, for all.
MAX_WORD_BYTES = 128 * 1024 - 1
MAX_ARGV_BYTES = 1024 * 1024
MAX_VARIABLES = 100
MAX_FILES = 100
LONGEST_SECONDS = 31_536_000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class CommandPayload(BaseModel):
    """Payload of a `command` job.

    What may be run, as whom and with which limits is the worker's setting and never the payload's.
    """

    model_config = ConfigDict(extra="forbid")

    cmd: list[str] = Field(
        min_length=1, max_length=MAX_WORDS, description="The program and its arguments; no shell looks at them."
    )
    input: JsonValue = Field(default=None, description="Standard input: a string as it is, anything else as JSON.")
    env: dict[str, str] = Field(default_factory=dict[str, str], max_length=MAX_VARIABLES)
    timeout_secs: float | None = Field(
        default=None, gt=0, le=LONGEST_SECONDS, strict=True, description="Within the job's own timeout."
    )
    files: list[str] = Field(
        default_factory=list[str],
        max_length=MAX_FILES,
        description="Names of artifacts of the job that are put into its workspace.",
    )

    @field_validator("cmd")
    @classmethod
    def _can_be_executed(cls, words: list[str]) -> list[str]:
        if not words[0]:
            raise ValueError("names no program")
        _refuse_words("word", words)
        if sum(len(word.encode()) + 9 for word in words) > MAX_ARGV_BYTES:
            raise ValueError(f"has more than {MAX_ARGV_BYTES:,} bytes in all")
        return words

    @field_validator("env")
    @classmethod
    def _are_variables(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name[:100]!r} is no name of a variable")
            if name.startswith(RESERVED):
                raise ValueError(f"{name} cannot be set: variables {RESERVED}* are the worker's")
        _refuse_words("value", list(env.values()))
        if sum(len(name) + len(value.encode()) + 10 for name, value in env.items()) > MAX_ARGV_BYTES:
            raise ValueError(f"has more than {MAX_ARGV_BYTES:,} bytes in all")
        return env

    def request(self) -> Request:
        return Request(
            argv=self.cmd,
            input=as_input(self.input),
            env=self.env,
            timeout_seconds=self.timeout_secs,
            files=self.files,
        )


async def run_command(runner: CommandRunner, payload: CommandPayload) -> dict[str, Any] | Fail:
    """Return {exit_code, stdout, stderr, duration_seconds, artifacts}, or how the command failed."""
    return await runner.run(current_job(), payload.request())


def _refuse_words(what: str, words: list[str]) -> None:
    for place, word in enumerate(words):
        if "\0" in word:
            raise ValueError(f"{what} {place} holds a NUL character")
        if len(word.encode("utf-8", "surrogatepass")) > MAX_WORD_BYTES:
            raise ValueError(f"{what} {place} is longer than {MAX_WORD_BYTES:,} bytes")
