"""An application in a process of its own, on whatever release PYTHONPATH says: `python -m tests.faults.client`.

It submits until its standard input ends, and tells of how it ended by its exit code.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from queue_pg.client_sync import SyncQueue
from queue_pg.errors import DatabaseUnavailable, QueuePgError
from tests.faults.ledgers import ACKED, read_lines
from tests.faults.mixture import Mixer
from tests.faults.producers import Producer
from tests.faults.releases import Release

END_SECONDS: Final = 90


class ClientProcess:
    """An application on the code of a release, with the numbers from `first` on; it is used as a Producer is."""

    def __init__(
        self, release: Release, dsn: str, folder: Path, *, first: int, rate: float, form: str, seconds: float = 0.0
    ) -> None:
        # Of HTTP, which it does not use.
        self.answers: Counter[int] = Counter()
        self._folder = folder
        self._log = folder / f"client-{first}.log"
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.faults.client", form, "--folder", str(folder),
                    "--first", str(first), "--rate", str(rate), "--seconds", str(seconds),
                ],
                cwd=release.folder, env={**release.environment(), "FAULTS_DSN": dsn},
                stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    @property
    def acked(self) -> int:
        """How many submissions have been acknowledged so far."""
        paths = self._folder.glob(f"submissions-{self._process.pid}-*.jsonl")
        return sum(word == ACKED for path in paths for _, word, *_ in read_lines(path))

    @property
    def failure(self) -> BaseException | None:
        """What it has died of."""
        code = self._process.poll()
        return RuntimeError(f"an application has ended with {code}: {self._log.read_text()[-2000:]}") if code else None

    def stop(self) -> None:
        """Let the submission under way come to its end; raises what went wrong there."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.close()
            raise RuntimeError("an application does not end") from None
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Leave nothing behind."""
        self._process.kill()
        self._process.wait()


class _PatientQueue(SyncQueue):
    """Tries again what was refused because the schema changed under it; releases up to 0.0.1 do not tell it apart."""

    @contextmanager
    def connection(self, *, unsafe_to_repeat: bool = False) -> Generator[psycopg.Connection[Any]]:
        try:
            with super().connection(unsafe_to_repeat=unsafe_to_repeat) as connection:
                yield connection
        except QueuePgError as error:
            if isinstance(error.__cause__, psycopg.errors.DatatypeMismatch):
                raise DatabaseUnavailable("the schema was changed") from error
            raise


def main() -> int:
    """Submit until nobody wants it any more."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.client", description=__doc__)
    parser.add_argument("form", choices=["keyed", "plain", "mixed"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--first", type=int, required=True, help="the number of the first job")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=0.0, help="how long a job takes")
    arguments = parser.parse_args()
    dsn, numbers = os.environ["FAULTS_DSN"], itertools.count(arguments.first)
    producer: Producer
    if arguments.form == "mixed":
        producer = Mixer(dsn, arguments.folder, numbers, rate=arguments.rate)
    else:
        producer = Producer(
            dsn, arguments.folder, numbers, keyed=arguments.form == "keyed", rate=arguments.rate,
            payload={"seconds": arguments.seconds},
        )  # fmt: skip
    producer.queue_class = _PatientQueue
    producer.start()
    sys.stdin.read()
    producer.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
