"""Many jobs in one request: all or none, in one transaction.

Jobs are checked one by one, so that a refusal names its line or index, and stored a chunk at a time, by COPY where that
is possible (bulk.py of the library): Postgres stores one chunk while the next is read.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from uuid import UUID

from starlette.responses import Response

from queue_pg.bulk import AsyncBulk
from queue_pg.errors import InvalidJob, SubmitError
from queue_pg.models import NewJob, Submitted
from queue_pg.sqlstates import translated
from queue_pg.submission import CheckedJob
from queue_pg_api.bodies import check_model, parse_body, read_lines
from queue_pg_api.endpoints import Call
from queue_pg_api.errors import ApiError, invalid, json_response, translate
from queue_pg_api.schemas import SubmitBody
from queue_pg_api.submissions import KEY_HEADER, MAX_KEY_LENGTH, fields_of, to_new_job, traceparent

# What is held in memory.
CHUNK_JOBS = 500
CHUNK_BYTES = 8 * 1024 * 1024

PlaceName = Literal["line", "index"]
_OF_JOB: Final = re.compile(r"jobs\[(\d+)\]\.(.+)")


@dataclass(slots=True)
class _Chunk:
    """Checked jobs, with the place of each in the body and of the first of each kind."""

    jobs: list[CheckedJob] = field(default_factory=list[CheckedJob])
    places: list[int] = field(default_factory=list[int])
    kinds: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    size: int = 0

    @property
    def full(self) -> bool:
        return len(self.jobs) >= CHUNK_JOBS or self.size >= CHUNK_BYTES

    def add(self, job: NewJob, checked: CheckedJob, place: int) -> None:
        self.jobs.append(checked)
        self.places.append(place)
        self.kinds.setdefault((job.kind, job.queue), place)
        self.size += len(checked[1])


async def submit_array(
    call: Call[Any, Any], values: Sequence[object], key: str | None, batch_id: UUID | None = None
) -> Response:
    """Store the jobs of a JSON array, in a batch if one is given; when they wait for others, as one graph."""
    if any(isinstance(value, dict) and ("key" in value or "depends_on" in value) for value in values):
        submitted = await _store_graph(call, values, key, batch_id)
    else:
        submitted = await _store(call, _chunks(call, _enumerated(values), "index", key, batch_id), "index")
    content = {"jobs": [{"id": str(each.id), "created": each.created} for each in submitted]}
    return _answer(content, submitted)


async def _store_graph(
    call: Call[Any, Any], values: Sequence[object], key: str | None, batch_id: UUID | None
) -> list[Submitted]:
    """Store jobs that refer to each other, which has to be done at once."""
    trace = traceparent(call.request)
    jobs: list[NewJob] = []
    chunk = _Chunk()
    for place, value in enumerate(values):
        try:
            job = to_new_job(_body(value), _numbered(key, place), trace, batch_id)
        except ApiError as error:
            raise at_place(error, "index", place) from None
        jobs.append(job)
        chunk.kinds.setdefault((job.kind, job.queue), place)
    await _check_kinds(call, chunk, "index")
    async with call.service.bulk_slots:
        try:
            return await call.queue.submit_graph(jobs)
        except InvalidJob as error:
            named = _OF_JOB.fullmatch(error.field)
            if named is None:
                raise
            error.field = named[2]
            error.message = f"{error.field}: {error.reason}"
            raise at_place(translate(error), "index", int(named[1])) from None


async def submit_lines(call: Call[Any, Any], key: str | None, batch_id: UUID | None = None) -> Response:
    """Store the jobs of an NDJSON body as it arrives, in a batch if one is given."""
    submitted = await _store(call, _chunks(call, _parsed_lines(call), "line", key, batch_id), "line")
    content = {
        "count": len(submitted),
        "created": sum(each.created for each in submitted),
        "ids": [str(each.id) for each in submitted],
    }
    return _answer(content, submitted)


def _body(value: object) -> SubmitBody:
    if "template" in fields_of(value):
        raise invalid("template", "is for one job in a request; send it alone, or fill it in here")
    return check_model(SubmitBody, value)


def _answer(content: Any, submitted: Sequence[Submitted]) -> Response:
    if any(each.created for each in submitted):
        return json_response(content, 201)
    return json_response(content, 200, headers={"idempotency-replayed": "true"})


async def _store(call: Call[Any, Any], chunks: AsyncGenerator[_Chunk], name: PlaceName) -> list[Submitted]:
    """Store all chunks in one transaction.

    None is open before the first chunk is full or the body has ended: a slow client costs a connection only when it
    sends much, and then one of the few that `bulk_slots` leaves to bulk submissions.
    """
    async with aclosing(chunks):
        chunk = await anext(chunks, None)
        if chunk is None:
            raise invalid("body", "holds no job; there is nothing to submit")
        submitted: list[Submitted] = []
        async with call.service.bulk_slots, call.queue.connection(unsafe_to_repeat=True) as connection:
            bulk = AsyncBulk(connection, own_transaction=True, streams=True)
            try:
                with translated(unsafe_to_repeat=True):
                    async with bulk:
                        while chunk is not None:
                            submitted += await bulk.add(chunk.jobs, chunk.places)
                            chunk = await anext(chunks, None)
            except SubmitError as error:
                if not bulk.refused:
                    raise
                # Only what Postgres alone can see gets here, and it doesn't always say of which job.
                first, last = bulk.refused[0], bulk.refused[-1]
                where = None if first == last else f"{name}s {first} to {last}"
                raise at_place(translate(error), name, first, where=where) from None
        return submitted


async def _chunks(
    call: Call[Any, Any],
    values: AsyncIterable[tuple[int, object]],
    name: PlaceName,
    key: str | None,
    batch_id: UUID | None,
) -> AsyncGenerator[_Chunk]:
    trace = traceparent(call.request)
    chunk = _Chunk()
    async for place, value in values:
        try:
            job = to_new_job(_body(value), _numbered(key, place), trace, batch_id)
            chunk.add(job, call.service.check(job), place)
        except ApiError as error:
            raise at_place(error, name, place) from None
        except SubmitError as error:
            raise at_place(translate(error), name, place) from None
        if chunk.full:
            await _check_kinds(call, chunk, name)
            yield chunk
            chunk = _Chunk()
    if chunk.jobs:
        await _check_kinds(call, chunk, name)
        yield chunk


async def _check_kinds(call: Call[Any, Any], chunk: _Chunk, name: PlaceName) -> None:
    for wanted, place in chunk.kinds.items():
        try:
            await call.service.kinds.check([wanted])
        except SubmitError as error:
            raise at_place(translate(error), name, place) from None


async def _enumerated(values: Sequence[object]) -> AsyncIterator[tuple[int, object]]:
    for index, value in enumerate(values):
        yield index, value


async def _parsed_lines(call: Call[Any, Any]) -> AsyncIterator[tuple[int, object]]:
    async for number, line in read_lines(call.request):
        try:
            yield number, parse_body(line)
        except ApiError as error:
            raise at_place(error, "line", number) from None


def _numbered(key: str | None, place: int) -> str | None:
    """Return the unique key of one of many jobs under one Idempotency-Key."""
    if key is None:
        return None
    numbered = f"{key}:{place}"
    if len(numbered) > MAX_KEY_LENGTH:
        raise invalid(
            KEY_HEADER, f"is too long for many jobs: with the place of each at most {MAX_KEY_LENGTH} characters"
        )
    return numbered


def at_place(error: ApiError, name: PlaceName, place: int, *, where: str | None = None) -> ApiError:
    """Say in a refusal which of many jobs it is about."""
    about = {**error.about, name: place}
    detail = f"{where or f'{name} {place}'}: {error.detail}"
    return ApiError(error.status, error.code, detail, headers=error.headers, **about)
