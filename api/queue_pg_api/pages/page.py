"""Pages and their regions.

A page is a template and a list of regions. Each region has a template of its own, the data it needs, and the topics
(figures.py) that say when to fetch it again. The whole page holds all its regions; `?part=<name>` is one of them alone,
by the same template, and the browser puts that in place of what it shows (static/live.js). To add a region to a page,
write its template in templates/parts/, a function that loads its data, and a `Region` in the page's list.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import UUID

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from queue_pg.errors import TooSlow
from queue_pg_api.endpoints import parse_job_id
from queue_pg_api.errors import not_found
from queue_pg_api.pages.assets import version
from queue_pg_api.pages.templating import ENVIRONMENT

if TYPE_CHECKING:
    from queue_pg.client import Queue
    from queue_pg_api.pages.figures import Figures
    from queue_pg_api.service import Service

# Everything comes from here; nothing is inline. `referrer-policy` may not be no-referrer: forms would then be sent with
# `Origin: null`, which is refused like any other foreign origin (access.py).
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
    "x-robots-tag": "noindex, nofollow",
    # `/` is one thing for browsers and another for programs.
    "vary": "accept",
}

PATHS = {
    "overview": "/",
    "jobs": "/console/jobs",
    "job": "/console/jobs/{id}",
    "cancel": "/console/jobs/{id}/cancel",
    "retry": "/console/jobs/{id}/retry",
    "new": "/console/new",
    "queues": "/console/queues",
    "pause": "/console/queues/pause",
    "resume": "/console/queues/resume",
    "workers": "/console/workers",
    "events": "/console/events",
    "asset": "/console/static/{version}/{name}",
    "api_job": "/jobs/{id}",
    "docs": "/docs",
}


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for a page: on whose behalf, and where the app is mounted."""

    request: Request
    service: Service
    org: str

    @property
    def queue(self) -> Queue:
        return self.service.queue_of(self.org)

    @property
    def figures(self) -> Figures:
        return self.service.figures

    @property
    def job_id(self) -> UUID:
        return parse_job_id(self.request.path_params["id"])

    def url(self, name: str, query: Mapping[str, object] | None = None, /, **params: object) -> str:
        """Return the path of a page where this app is mounted; query values that are empty are left out."""
        path = str(self.request.scope.get("root_path", "")) + PATHS[name].format(**params)
        pairs = [(key, str(value)) for key, value in (query or {}).items() if value not in (None, "")]
        return f"{path}?{urlencode(pairs)}" if pairs else path

    def asset(self, name: str) -> str:
        return self.url("asset", version=version(), name=name)

    def redirect(self, url: str) -> Response:
        """Answer a form: the browser goes on by GET, so that loading again submits nothing twice."""
        return RedirectResponse(url, 303, headers=HEADERS)

    def render(
        self, template: str, status: int = 200, /, *, headers: Mapping[str, str] | None = None, **context: Any
    ) -> Response:
        return HTMLResponse(self.markup(template, **context), status, headers={**HEADERS, **(headers or {})})

    def markup(self, template: str, /, **context: Any) -> Markup:
        text = ENVIRONMENT.get_template(template).render(visit=self, url=self.url, asset=self.asset, **context)
        return Markup(text)  # noqa: S704 - the environment has escaped everything in it


Context = Mapping[str, Any]
Load = Callable[[Visit], Awaitable[Context]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of a page that is fetched again by itself. Its template is `parts/<name>.html`.

    `topics` may hold `{id}`, the id in the path. Without topics it is fetched only with the page.
    """

    name: str
    label: str
    load: Load
    topics: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of the console; called with a visit it answers."""

    name: str
    title: str
    template: str
    regions: Sequence[Region] = field(default=())

    async def __call__(self, visit: Visit) -> Response:
        wanted = visit.request.query_params.get("part")
        if wanted is None:
            return await self.show(visit)
        for region in self.regions:
            if region.name == wanted:
                return HTMLResponse(await self._draw(visit, region), headers=HEADERS)
        raise not_found("This page has no such part.")

    async def show(self, visit: Visit, status: int = 200, **context: Any) -> Response:
        """Answer with the whole page."""
        parts = {region.name: await self._draw(visit, region) for region in self.regions}
        return visit.render(self.template, status, page=self, parts=parts, **context)

    async def _draw(self, visit: Visit, region: Region) -> Markup:
        template = f"parts/{region.name}.html"
        try:
            context = await region.load(visit)
        except TooSlow as error:
            # The others may have their answers; this one says what to do.
            template, context = "parts/too_slow.html", {"error": error}
        topics = [topic.format(id=visit.request.path_params.get("id", "")) for topic in region.topics]
        return visit.markup("region.html", region=region, topics=topics, part_template=template, **context)
