"""Declare endpoints once: the same declaration routes a request, checks its query and body, and documents it.

A handler says by its annotation what it reads:

    @jobs.get("/jobs/{id}", answers={200: JobAnswer}, refuses=(404,))
    async def get_job(call: Call[JobWait, NoBody]) -> Response:
        \"\"\"Read a job.\"\"\"
"""

from __future__ import annotations

import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from queue_pg.errors import JobNotFound
from queue_pg_api.access import acting_org, refuse_cross_origin
from queue_pg_api.bodies import read_model, read_query
from queue_pg_api.errors import error_response
from queue_pg_api.schemas import NoBody

if TYPE_CHECKING:
    from queue_pg.client import Queue
    from queue_pg_api.service import Service

Q = TypeVar("Q", bound=BaseModel)
B = TypeVar("B", bound=BaseModel)

# The client closed the connection: nobody reads this answer, but logs and tests do.
CLIENT_GONE = 499


@dataclass(frozen=True, slots=True)
class Call(Generic[Q, B]):
    """One request, checked: on whose behalf, with which query and body."""

    request: Request
    service: Service
    org: str
    query: Q
    body: B

    @property
    def queue(self) -> Queue:
        """Return the client that sees the jobs of this request's organisation, and no others."""
        return self.service.queue_of(self.org)

    @property
    def job_id(self) -> UUID:
        """Return the id in the path; what is no id can be no job's."""
        return parse_job_id(self.request.path_params["id"])

    def url(self, path: str) -> str:
        """Return the URL path of `path` where this app is mounted."""
        return f"{self.request.scope.get('root_path', '')}{path}"


def parse_job_id(text: str) -> UUID:
    """Read a job's id; JobNotFound for anything that is none."""
    try:
        # UUID() alone also takes braces, "urn:uuid:" and hyphens anywhere.
        if len(text) not in {32, 36}:
            raise ValueError(text)
        return UUID(text)
    except ValueError:
        raise JobNotFound(text[:60].encode("ascii", "replace").decode()) from None


Handler = Callable[[Any], Awaitable[Response]]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One method on one path."""

    method: str
    path: str
    tag: str
    handler: Handler
    query: type[BaseModel]
    body: type[BaseModel]
    answers: Mapping[int, type[BaseModel] | None]
    refuses: Sequence[int]
    # A body that the handler reads itself: its schema by media type, and the models that those refer to.
    raw_body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    raw_models: Sequence[type[BaseModel]] = ()
    # It answers as text/event-stream too.
    event_stream: bool = False

    @property
    def name(self) -> str:
        return str(getattr(self.handler, "__name__", ""))


class Endpoints(list[Endpoint]):
    """The endpoints of one resource."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self.tag = tag

    def get(self, path: str, **declared: Any) -> Callable[[H], H]:
        return self._declare("GET", path, **declared)

    def post(self, path: str, **declared: Any) -> Callable[[H], H]:
        return self._declare("POST", path, **declared)

    def put(self, path: str, **declared: Any) -> Callable[[H], H]:
        return self._declare("PUT", path, **declared)

    def delete(self, path: str, **declared: Any) -> Callable[[H], H]:
        return self._declare("DELETE", path, **declared)

    def _declare(
        self,
        method: str,
        path: str,
        *,
        answers: Mapping[int, type[BaseModel] | None],
        refuses: Sequence[int] = (),
        raw_body: Mapping[str, Any] | None = None,
        raw_models: Sequence[type[BaseModel]] = (),
        event_stream: bool = False,
    ) -> Callable[[H], H]:
        def declare(handler: H) -> H:
            query, body = _models_of(handler)
            self.append(
                Endpoint(
                    method=method,
                    path=path,
                    tag=self.tag,
                    handler=handler,
                    query=query,
                    body=body,
                    answers=answers,
                    refuses=refuses,
                    raw_body=raw_body or {},
                    raw_models=raw_models,
                    event_stream=event_stream,
                )
            )
            return handler

        return declare


def _models_of(handler: Handler) -> tuple[type[BaseModel], type[BaseModel]]:
    # The annotation names Call and the models, which handlers import at run time for this.
    hint = typing.get_type_hints(handler)["call"]
    query, body = typing.get_args(hint)
    return query, body


def routes_of(endpoints: Sequence[Endpoint], service: Service) -> list[Route]:
    """Make one route per path, so that a wrong method is answered with every right one."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    return [Route(path, _dispatch(methods, service), methods=list(methods)) for path, methods in by_path.items()]


def _dispatch(methods: Mapping[str, Endpoint], service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def dispatch(request: Request) -> Response:
        endpoint = methods["GET" if request.method == "HEAD" else request.method]
        try:
            refuse_cross_origin(request)
            call = Call(
                request=request,
                service=service,
                org=acting_org(request, service),
                query=read_query(request, endpoint.query),
                body=NoBody() if endpoint.body is NoBody else await read_model(request, endpoint.body),
            )
            return await endpoint.handler(call)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except Exception as error:  # the one place where anything becomes an answer
            return error_response(error)

    return dispatch
