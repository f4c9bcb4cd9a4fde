"""Pages and their regions.

A page is a template and a list of regions. Each region has a template of its own, the data it needs, and the topics
(figures.py) that say when to fetch it again. The whole page holds all its regions; `?part=<name>` is one of them alone,
by the same template, and the browser puts that in place of what it shows (static/live.js). To add a region to a page,
write its template in templates/parts/, a function that loads its data, and a `Region` in the page's list.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from queue_pg.errors import QueuePgError, TooSlow
from queue_pg_api.endpoints import parse_job_id
from queue_pg_api.errors import ApiError, not_found
from queue_pg_api.pages.assets import version
from queue_pg_api.pages.forms import MAX_FIELDS, FormState, Refused, read_form, refusal_of
from queue_pg_api.pages.places import NAVIGATION, address
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


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for a page: on whose behalf, where the app is mounted, and the form that it was refused."""

    request: Request
    service: Service
    org: str
    refused: Refused | None = None

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
        return address(str(self.request.scope.get("root_path", "")), name, query or {}, params)

    def here(self, name: str) -> str:
        """Return the address of the page of this name that is shown; a form that was refused has another."""
        return self.url(name, self.kept, **self.request.path_params)

    @property
    def kept(self) -> Mapping[str, str]:
        """What the address asks for of a list: an action leads back to the same part of it."""
        return {key: value for key, value in self.request.query_params.items() if key not in {"part", "set"}}

    def form(self, name: str, /, **defaults: object) -> FormState:
        """Return what a form is to show: its defaults, or what was in it when it was refused."""
        values = {key: "" if value is None else str(value) for key, value in defaults.items()}
        if self.refused is None or self.refused.form != name:
            return FormState(values)
        # A field that was emptied stays empty; browsers send it, and read_form leaves it out.
        given = {**dict.fromkeys(values, ""), **self.refused.values}
        return FormState(given, self.refused.detail, self.refused.field)

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
        text = ENVIRONMENT.get_template(template).render(
            visit=self, url=self.url, asset=self.asset, navigation=NAVIGATION, **context
        )
        return Markup(text)  # noqa: S704 - the environment has escaped everything in it


Context = Mapping[str, Any]
Load = Callable[[Visit], Awaitable[Context]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of a page that is fetched again by itself. Its template is `parts/<name>.html`.

    `topics` may hold `{id}`, the id in the path; what is loaded may add `more_topics`. Without topics it is fetched
    only with the page.
    """

    name: str
    label: str
    load: Load
    topics: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of the console; called with a visit it answers. `section` is where in the navigation it belongs."""

    name: str
    title: str
    template: str
    section: str = ""
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
        return visit.render(self.template, status, page=self, parts=await self.parts(visit), **context)

    async def parts(self, visit: Visit) -> dict[str, Markup]:
        """Draw all regions."""
        return {region.name: await self._draw(visit, region) for region in self.regions}

    async def take(
        self,
        visit: Visit,
        form: str | None,
        act: Callable[[dict[str, str]], Awaitable[str]],
        *,
        max_fields: int = MAX_FIELDS,
    ) -> Response:
        """Do what a form asks for and go where `act` says; what is refused comes back in the form, in this page.

        A form that has nothing to put right has no name: None.
        """
        values = await read_form(visit.request, max_fields)
        try:
            address = await act(values)
        except (ApiError, QueuePgError) as error:
            if form is None:
                raise
            refused = refusal_of(form, values, error)
            return await self.show(replace(visit, refused=refused), refused.status)
        visit.figures.changed()
        return visit.redirect(address)

    async def _draw(self, visit: Visit, region: Region) -> Markup:
        template, slow = f"parts/{region.name}.html", False
        context: dict[str, Any]
        try:
            context = {**await region.load(visit)}
        except TooSlow as error:
            # The others may have their answers; this one says what to do. A page that shows an older one keeps that.
            template, context, slow = "parts/too_slow.html", {"error": error}, True
        followed: list[str] = [*region.topics, *context.get("more_topics", ())]
        topics = [topic.format(id=visit.request.path_params.get("id", "")) for topic in followed]
        refused = any(isinstance(value, FormState) and value.fault is not None for value in context.values())
        return visit.markup(
            "region.html", region=region, topics=topics, part_template=template, slow=slow, refused=refused, **context
        )
