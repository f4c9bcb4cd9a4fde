"""Where each page is. These are no routes of the API: they are not in /openapi.json, and none answers with JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from queue_pg_api.access import SAFE_METHODS, acting_org, refuse_cross_origin
from queue_pg_api.endpoints import CLIENT_GONE
from queue_pg_api.errors import ApiError, not_found
from queue_pg_api.pages import (
    batches,
    create,
    job,
    job_forms,
    job_templates,
    jobs,
    limits,
    new_schedule,
    overview,
    queues,
    replay,
    schedules,
    stream,
    tasks,
    workers,
)
from queue_pg_api.pages.assets import asset
from queue_pg_api.pages.page import HEADERS, Visit
from queue_pg_api.pages.places import PATHS
from queue_pg_api.pages.refusals import error_page

if TYPE_CHECKING:
    from queue_pg_api.service import Service

View = Callable[[Visit], Awaitable[Response]]


class FrontPage(Route):
    """`/` for browsers, which name HTML when they ask; for others it is a route of the API (routes/system.py)."""

    def __init__(self, service: Service) -> None:
        async def endpoint(request: Request) -> Response:
            return await _answer(request, service, overview.page)

        super().__init__(PATHS["overview"], endpoint, methods=["GET"])

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        found, child = super().matches(scope)
        if found is not Match.NONE and "text/html" not in Headers(scope=scope).get("accept", "").lower():
            return Match.NONE, {}
        return found, child


def console_routes(service: Service) -> list[BaseRoute]:
    """Return the routes of the console; what is none of them below /console is answered by a page too."""

    def route(path: str, *, get: View | None = None, post: View | None = None) -> Route:
        views = {"GET": get, "HEAD": get, "POST": post}

        async def endpoint(request: Request) -> Response:
            return await _answer(request, service, views.get(request.method) or _wrong_method)

        return Route(path, endpoint, methods=METHODS)

    return [
        Route("/robots.txt", robots, methods=["GET"]),
        Route(PATHS["asset"], asset_or_refusal(service), methods=["GET"]),
        route(PATHS["tasks"], get=tasks.page),
        route(PATHS["task"], get=tasks.one),
        route(PATHS["jobs"], get=jobs.page),
        route(PATHS["job"], get=job.page),
        route(PATHS["cancel"], post=job_forms.cancel),
        route(PATHS["retry"], post=job_forms.retry),
        route(PATHS["replay"], get=replay.page, post=replay.act),
        route(PATHS["signal"], post=job_forms.signal),
        route(PATHS["chain"], post=job_forms.chain),
        route(PATHS["rerun"], post=job_forms.rerun),
        route(PATHS["new"], get=create.page, post=create.submit),
        route(PATHS["new_schedule"], get=new_schedule.page, post=new_schedule.submit),
        route(PATHS["batches"], get=batches.page),
        route(PATHS["batch"], get=batches.detail),
        route(PATHS["batch_act"], post=batches.act),
        route(PATHS["schedules"], get=schedules.page),
        route(PATHS["schedule"], get=schedules.detail),
        route(PATHS["schedule_act"], post=schedules.act),
        route(PATHS["templates"], get=job_templates.page),
        route(PATHS["template"], get=job_templates.detail, post=job_templates.submit),
        route(PATHS["queues"], get=queues.page),
        route(PATHS["pause"], post=queues.pause),
        route(PATHS["resume"], post=queues.resume),
        route(PATHS["drain"], post=queues.drain),
        route(PATHS["limits"], get=limits.page),
        route(PATHS["limit_act"], post=limits.act),
        route(PATHS["workers"], get=workers.page),
        route(PATHS["events"], get=stream.events),
        route("/console", get=_home),
        route("/console/{path:path}", get=_no_such_page, post=_no_such_page),
    ]


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def asset_or_refusal(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        async def view(visit: Visit) -> Response:
            answer = await asset(visit.request)
            answer.headers.update(
                {name: value for name, value in HEADERS.items() if name not in {"cache-control", "vary"}}
            )
            return answer

        return await _answer(request, service, view)

    return endpoint


async def robots(_: Request) -> Response:
    return PlainTextResponse("User-agent: *\nDisallow: /\n", headers={"x-content-type-options": "nosniff"})


async def _answer(request: Request, service: Service, view: View) -> Response:
    visit = Visit(request, service, service.org)
    try:
        refuse_cross_origin(request)
        _refuse_cross_site(request)
        visit = Visit(request, service, acting_org(request, service))
        return await view(visit)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    except Exception as error:  # the one place where anything becomes a page
        return error_page(visit, error)


def _refuse_cross_site(request: Request) -> None:
    """Refuse a form that a browser says another site has sent, when it hides which."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    if request.method not in SAFE_METHODS and site not in {"same-origin", "none"}:
        raise ApiError(403, "cross_origin", "Forms from pages of another origin are refused.")


async def _home(visit: Visit) -> Response:
    return visit.redirect(visit.url("overview"))


async def _no_such_page(visit: Visit) -> Response:
    raise not_found("There is no such page.")


async def _wrong_method(visit: Visit) -> Response:
    raise ApiError(405, "method_not_allowed", f"{visit.request.method} is not allowed here.")
