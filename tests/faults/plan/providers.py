"""Faults of what jobs call: a model server that throttles, fails and hangs for long (F36)."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final

from tests.faults.arena import Arena
from tests.workers.model_server import ModelServer, Request, Step, model_server

RETRY_AFTER_SECONDS: Final = 2.0
WINDOW_SECONDS: Final = 0.1
BASE_SECONDS: Final = 1.0
CAP_SECONDS: Final = 2.0
IMPATIENT_ATTEMPTS: Final = 2
PATIENT_ATTEMPTS: Final = 1_000
# A call that hangs is given up by its job after this.
TIMEOUT_SECONDS: Final = 1.0

THROTTLED, FAILED, HUNG, CUT, ANSWERED = "throttled", "failed", "hung", "cut", "answered"
STEPS: Final[Mapping[str, Step]] = {
    THROTTLED: Step(behaviour="status", status=429, headers={"Retry-After": f"{RETRY_AFTER_SECONDS:g}"}),
    FAILED: Step(behaviour="status", status=500),
    HUNG: Step(behaviour="hang"),
    CUT: Step(behaviour="cut"),
    ANSWERED: Step(),
}


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and what it was answered. `number` is that of its job."""

    at: float
    number: int
    word: str


class StormyServer(ModelServer):
    """Answers as the weather is, and keeps a record of who called when."""

    def __init__(self, randomness: random.Random) -> None:
        super().__init__()
        self.calls: list[Call] = []
        # What calls are answered: any of these, at random.
        self.weather: Sequence[str] = (ANSWERED,)
        self._random = randomness
        # So many calls are kept waiting, and then all answered at once.
        self._volley: asyncio.Barrier | None = None

    def hold(self, calls: int) -> None:
        """Answer the next so many calls at one moment."""
        self._volley = asyncio.Barrier(calls)

    async def _serve(self, step: Step, request: Request, reader: StreamReader, writer: StreamWriter) -> bool:
        word = self._random.choice(self.weather)
        self.calls.append(Call(time.monotonic(), request.body["n"], word))
        if (volley := self._volley) is not None:
            await volley.wait()
            self._volley = None
        return await super()._serve(STEPS[word], request, reader, writer)


class _Thread(threading.Thread):
    """Runs the server on a loop of its own."""

    def __init__(self, server: StormyServer) -> None:
        super().__init__(daemon=True)
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self._server = server
        self._halt = asyncio.Event()

    def run(self) -> None:
        self.loop.run_until_complete(self._main())
        self.loop.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._halt.set)
        self.join(60)

    async def _main(self) -> None:
        async with model_server(self._server):
            self.ready.set()
            await self._halt.wait()


def storm(arena: Arena) -> None:
    """F36: a provider refuses everything for long. Nobody gives up early, comes back too early, or with all others."""
    # What the server was asked for is what `chat` jobs are held against.
    arena.may_fail = arena.unwitnessed = ["chat"]
    server = StormyServer(random.Random(arena.random.random()))
    thread = _Thread(server)
    thread.start()
    thread.ready.wait(60)
    arena.stack.callback(thread.stop)
    arena.postgres.execute(
        "select queue_pg.configure(retry_base => make_interval(secs => %s), retry_cap => make_interval(secs => %s))",
        (BASE_SECONDS, CAP_SECONDS),
    )
    arena.fleet.environment = {
        **arena.fleet.environment, "LLM_PROVIDER": "openai", "OPENAI_BASE_URL": server.base_url,
    }  # fmt: skip
    arena.fleet.size = 3
    arena.fleet.fill()
    everybody = arena.fleet.size * arena.size.concurrency
    for word in (FAILED, THROTTLED):
        _volley(arena, thread, server, word, everybody)
    begin = len(server.calls)
    server.weather = (THROTTLED, THROTTLED, FAILED, FAILED, HUNG, CUT)
    _chat(arena, max_attempts=PATIENT_ATTEMPTS, rate=40.0)
    _chat(arena, max_attempts=IMPATIENT_ATTEMPTS, rate=10.0)
    # Other work goes on meanwhile.
    arena.produce(keyed=True)
    until = time.monotonic() + arena.size.hits
    while time.monotonic() < until:
        arena.progress()
    arena.hits["seconds of storm"] = arena.size.hits
    refused = list(server.calls[begin:])
    server.weather = (ANSWERED,)
    for word, count in Counter(call.word for call in refused).items():
        arena.hits[f"calls {word}"] = count
    for producer in arena.producers:
        producer.stop()
    arena.until(partial(_is_over, arena), "all that was refused is done")
    _judge(arena, server.calls, refused, everybody)


def _chat(arena: Arena, **options: Any) -> None:
    arena.produce(
        keyed=True, kind="chat", timeout=options.pop("timeout", TIMEOUT_SECONDS),
        payload={"messages": [{"role": "user", "content": "Say hello"}]}, **options,
    )  # fmt: skip


def _volley(arena: Arena, thread: _Thread, server: StormyServer, word: str, calls: int) -> None:
    """Have as many jobs as can run at once refused at one moment: they must not come back at one."""
    thread.loop.call_soon_threadsafe(server.hold, calls)
    server.weather = (word,)
    before, seen = arena.acked(), len(server.calls)
    _chat(arena, max_attempts=PATIENT_ATTEMPTS, rate=1_000.0, jobs=calls, timeout=60.0)
    arena.until(lambda: arena.acked() >= before + calls, "a volley is submitted")
    arena.until(lambda: len(server.calls) >= seen + calls, "a volley is under way")
    numbers = [call.number for call in server.calls[seen : seen + calls]]
    arena.until(partial(_have_ended, arena, numbers), "a volley is refused")
    server.weather = (ANSWERED,)
    waits = sorted(wait for [wait] in arena.postgres.execute(_WAITS, (numbers,)))
    crowd = max(sum(start <= wait < start + WINDOW_SECONDS for wait in waits) for start in waits)
    arena.hits[f"jobs {word} at once"] = len(numbers)
    arena.figures[f"{word}_at_once_back_in_100_ms"] = crowd
    if crowd > 0.7 * len(waits):
        arena.violate("L3", f"{crowd} of {len(waits)} jobs that were {word} at once were to come back within 100 ms")
    # They may wait longer than those of the storm.
    arena.until(partial(_is_over, arena), "a volley is done")


_ENDED: Final = """
select count(*) from (select id, payload from queue_pg.jobs union all select id, payload from queue_pg.finished_jobs) j,
  lateral (select a.ended_at from queue_pg.attempts(j.id) a order by a.seq limit 1) a
where (j.payload ->> 'n')::bigint = any (%s) and a.ended_at is not null
"""
_WAITS: Final = """
select extract(epoch from a.run_at - a.ended_at)::float8
from (select id, payload from queue_pg.jobs union all select id, payload from queue_pg.finished_jobs) j,
  lateral (select a.run_at, a.ended_at from queue_pg.attempts(j.id) a order by a.seq limit 1) a
where (j.payload ->> 'n')::bigint = any (%s)
"""


def _have_ended(arena: Arena, numbers: Sequence[int]) -> bool:
    return arena.postgres.execute(_ENDED, (numbers,)) == [(len(numbers),)]


def _is_over(arena: Arena) -> bool:
    return arena.postgres.execute("select 1 from queue_pg.jobs where kind = 'chat' limit 1") == []


def _judge(arena: Arena, calls: Sequence[Call], refused: Sequence[Call], everybody: int) -> None:
    by_number: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        by_number[call.number].append(call)
    for number, own in by_number.items():
        for earlier, later in pairwise(own):
            if later.at < earlier.at + (RETRY_AFTER_SECONDS if earlier.word == THROTTLED else BASE_SECONDS / 2):
                arena.violate("L3", f"number {number} called {later.at - earlier.at:.3f} s after it was {earlier.word}")
    for number, state, most in arena.postgres.execute(
        "select (payload ->> 'n')::bigint, state::text, max_attempts from queue_pg.finished_jobs where kind = 'chat'"
    ):
        burnt = sum(call.word in {FAILED, HUNG, CUT} for call in by_number[number])
        if burnt > most or (state == "failed" and burnt < most):
            arena.violate("L3", f"number {number} is {state} after {burnt} failures of {most} that it may have")
        if state != "completed" and most > IMPATIENT_ATTEMPTS:
            arena.violate("L1", f"number {number} is {state} although it had attempts left")
    windows = Counter(int(call.at / WINDOW_SECONDS) for call in refused)
    mean = len(refused) * WINDOW_SECONDS / max(refused[-1].at - refused[0].at, WINDOW_SECONDS)
    arena.figures["calls_per_100_ms"] = round(mean, 2)
    arena.figures["calls_per_100_ms_max"] = max(windows.values())
    # As many as can be called at once may be; more at one time than ten times the usual are no chance.
    if max(windows.values()) > 10 * mean + everybody:
        arena.violate("L3", f"{max(windows.values())} calls came within 100 ms, {mean:.1f} on the average")
