"""`/console/templates`: job templates, their versions, and jobs made from them by a form with their variables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from starlette.responses import Response

from queue_pg.errors import InvalidJob
from queue_pg.look_plans import TemplateLook, look_template, look_template_versions, look_templates
from queue_pg.looking import now
from queue_pg.payloads import parse_json
from queue_pg_api.bodies import check_model
from queue_pg_api.errors import not_found
from queue_pg_api.pages.forms import FormState, check_fields, whole
from queue_pg_api.pages.lists import ListPage, asked, pages
from queue_pg_api.pages.page import Context, Page, Region, Visit
from queue_pg_api.rendering import json_or_mark
from queue_pg_api.schemas import PRIORITY_NAMES
from queue_pg_api.template_schemas import SubmitTemplateBody, TemplateFilter, TemplateVersion

OPTIONS = ("version", "queue", "priority", "unique_key", "delay")
# A form may have a hundred variables beside its options.
MAX_FIELDS = 120
MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable as the form asks for it: `value` stands in its field, `choices` are what there is to choose from."""

    name: str
    type: str
    value: str
    needed: bool
    default: str | None
    choices: list[str]
    description: str
    bounds: str


def _specs(template: TemplateLook) -> Mapping[str, Any]:
    """Return what the template says of its variables; nothing, if it was stored past the library and is no object."""
    found: Any = template.variables
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}


def variables_of(template: TemplateLook, form: FormState) -> list[Variable]:
    """Return the variables, those that have to be given first."""
    found = [
        _variable(name, cast("Mapping[str, Any]", spec), form)
        for name, spec in _specs(template).items()
        if isinstance(spec, dict)
    ]
    return sorted(found, key=lambda each: (not each.needed, each.name))


def _variable(name: str, spec: Mapping[str, Any], form: FormState) -> Variable:
    bounds = [
        f"{words} {spec[key]}"
        for key, words in (("minimum", "at least"), ("maximum", "at most"), ("max_length", "characters at most:"))
        if key in spec
    ]
    choices = [_written(each) for each in cast("list[Any]", spec.get("enum") or [])]
    return Variable(
        name=name,
        type=str(spec.get("type", "any")),
        value=form[f"variables.{name}"],
        needed="default" not in spec,
        default=_written(spec["default"]) if "default" in spec else None,
        choices=["true", "false"] if spec.get("type") == "boolean" and not choices else choices,
        description=str(spec.get("description", "")),
        bounds=", ".join(bounds),
    )


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(json_or_mark(value), ensure_ascii=False)


def values_of(form: Mapping[str, str], template: TemplateLook) -> dict[str, Any]:
    """Return the variables that the form gives, each as its type says. Raises ApiError naming the field."""
    specs = _specs(template)
    values: dict[str, Any] = {}
    for field, text in form.items():
        name = field.removeprefix("variables.")
        if name == field:
            continue
        spec: Mapping[str, Any] = specs.get(name, {})
        # An `any` that is no JSON is the text itself.
        if spec.get("type", "any") == "string":
            values[name] = text
        elif spec.get("type", "any") == "any":
            values[name] = _json_or_text(text)
        else:
            values[name] = parse_json(text.encode(), field=field, max_bytes=MAX_BYTES)
    return values


def _json_or_text(text: str) -> Any:
    try:
        return parse_json(text.encode(), max_bytes=MAX_BYTES)
    except InvalidJob:
        return text


async def table(visit: Visit) -> Context:
    given = asked(visit, ())
    wanted = check_model(TemplateFilter, {"limit": given["limit"], "after": given.get("cursor")})
    async with visit.figures.looking() as conn:
        found = await look_templates(conn, org=visit.org, limit=wanted.limit + 1, after=wanted.after)
        at = await now(conn)
    shown = found[: wanted.limit]
    cursor = shown[-1].name if len(found) > wanted.limit else None
    return {"templates": shown, "now": at, **pages(visit, (), wanted.limit, cursor)}


def name_of(visit: Visit) -> str:
    """Return the name in the path; what cannot be a template's names none."""
    name = str(visit.request.path_params["name"])
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise not_found("There is no such template.")
    return name


def _version(visit: Visit) -> str | None:
    return visit.refused.values.get("version") if visit.refused else visit.request.query_params.get("version")


async def _look(visit: Visit, version: str | None) -> TemplateLook:
    number = check_model(TemplateVersion, {"version": version or None}).version
    async with visit.figures.looking() as conn:
        return await look_template(conn, name_of(visit), org=visit.org, version=number)


async def one(visit: Visit) -> Context:
    template = await _look(visit, _version(visit))
    async with visit.figures.looking() as conn:
        versions = await look_template_versions(conn, template.name, org=visit.org)
    return {"template": template, "versions": versions}


async def submit(visit: Visit) -> Response:
    """Submit a job made from the template and go to its page."""

    async def make(form: dict[str, str]) -> str:
        check_fields([name for name in form if not name.startswith("variables.")], OPTIONS)
        template = await _look(visit, form.get("version"))
        wanted: dict[str, Any] = {name: form[name] for name in ("queue", "priority", "unique_key") if name in form}
        if (seconds := whole(form, "delay")) is not None:
            wanted["delay_seconds"] = seconds
        body = check_model(SubmitTemplateBody, {"variables": values_of(form, template), **wanted})
        made = await visit.queue.submit_template(
            template.name,
            body.variables,
            version=template.version,
            queue=body.queue,
            priority=body.priority,
            delay=body.delay_seconds,
            unique_key=body.unique_key,
        )
        return visit.url("job", id=made.id)

    return await detail.take(visit, "template", make, max_fields=MAX_FIELDS)


class TemplatePage(Page):
    """A template in one version, with the form that its variables make."""

    async def show(self, visit: Visit, status: int = 200, **context: Any) -> Response:
        template = await _look(visit, _version(visit))
        query = visit.request.query_params
        fields = [*(f"variables.{name}" for name in _specs(template)), *OPTIONS]
        form = visit.form("template", **{name: query.get(name, "") for name in fields})
        return await Page.show(
            self,
            visit,
            status,
            template=template,
            form=form,
            variables=variables_of(template, form),
            priorities=list(PRIORITY_NAMES),
            **context,
        )


page = ListPage(
    name="templates",
    title="Templates",
    template="templates.html",
    regions=[Region(name="templates", label="Job templates", load=table)],
)

detail = TemplatePage(
    name="template",
    title="Template",
    template="template.html",
    section="templates",
    # A version never changes; there may be a newer one, which a look at the page tells.
    regions=[Region(name="template", label="Template", load=one)],
)
