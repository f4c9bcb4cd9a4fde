"""Where everything is, and what the navigation offers. A page is added by its path here and its route in routes.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlencode

PATHS: Final = {
    "overview": "/",
    "jobs": "/console/jobs",
    "job": "/console/jobs/{id}",
    "cancel": "/console/jobs/{id}/cancel",
    "retry": "/console/jobs/{id}/retry",
    "replay": "/console/replay",
    "chain": "/console/jobs/{id}/chain",
    "rerun": "/console/jobs/{id}/rerun",
    "signal": "/console/jobs/{id}/signal",
    "tasks": "/console/tasks",
    "task": "/console/tasks/{id}",
    "new": "/console/new",
    "new_schedule": "/console/new/schedule",
    "batches": "/console/batches",
    "batch": "/console/batches/{id}",
    "batch_act": "/console/batches/{id}/{act}",
    "schedules": "/console/schedules",
    "schedule": "/console/schedules/{name}",
    "schedule_act": "/console/schedules/{name}/{act}",
    "templates": "/console/templates",
    "template": "/console/templates/{name}",
    "queues": "/console/queues",
    "pause": "/console/queues/pause",
    "resume": "/console/queues/resume",
    "drain": "/console/queues/drain",
    "limits": "/console/limits",
    "limit_act": "/console/limits/{act}",
    "workers": "/console/workers",
    "events": "/console/events",
    "asset": "/console/static/{version}/{name}",
    "api_job": "/jobs/{id}",
    "api_artifact": "/jobs/{id}/artifacts/{path}",
    "docs": "/docs",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A page that the navigation leads to, by a click or by its keys."""

    name: str
    label: str
    keys: str


NAVIGATION: Final[Sequence[tuple[str, Sequence[Entry]]]] = (
    (
        "Work",
        (
            Entry("overview", "Overview", "g o"),
            Entry("tasks", "Tasks", "g t"),
            Entry("jobs", "Jobs", "g j"),
            Entry("batches", "Batches", "g b"),
        ),
    ),
    ("Plans", (Entry("schedules", "Schedules", "g s"), Entry("templates", "Templates", "g e"))),
    (
        "System",
        (Entry("queues", "Queues", "g q"), Entry("limits", "Limits", "g l"), Entry("workers", "Workers", "g w")),
    ),
)


def address(root: str, name: str, query: Mapping[str, object], params: Mapping[str, object]) -> str:
    """Return the address of a page below `root`; what goes into the path is quoted, query values that are empty go."""
    # Only a path may hold slashes; a name that does is one part of the address all the same.
    parts = {key: quote(str(value), safe="/" if key == "path" else "") for key, value in params.items()}
    path = root + PATHS[name].format(**parts)
    pairs = [(key, str(value)) for key, value in query.items() if value not in (None, "")]
    return f"{path}?{urlencode(pairs)}" if pairs else path
