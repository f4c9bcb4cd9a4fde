"""Variables of the founding systems that have nothing to set here, and what takes their place.

Nothing else reads them. `queue-pg config` names those that are set, so that nobody relies on what has no effect.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

_DATABASE = "Jobs are in Postgres: DATABASE_URL says where, without it an embedded server is used."

RETIRED: Final[Mapping[str, str]] = {
    "REDIS_HOST": _DATABASE,
    "REDIS_PORT": _DATABASE,
    "REDIS_DB": _DATABASE,
    "REDIS_URL": _DATABASE,
    "ZBRAIN_ARTIFACTS": "Artifacts are in Postgres too; MAX_ARTIFACT_BYTES and its kin bound them.",
    "QDRANT_URL": "The queue needs no vector store. Handlers see their worker's environment, this variable too.",
    "FLASK_ENV": "`queue-pg serve` is for production; `queue-pg dev` is for development.",
}


@dataclass(frozen=True, slots=True)
class RetiredVariable:
    """One that is set: where (`environment` or `.env`), and what takes its place."""

    name: str
    place: str
    instead: str


def retired_variables(env_file: Path | None = Path(".env")) -> list[RetiredVariable]:
    """List the variables in force that have no effect here; an empty one counts as unset, as everywhere."""
    places: list[tuple[str, Mapping[str, str | None]]] = [("environment", os.environ)]
    if env_file is not None and env_file.is_file():
        places.append((env_file.name, dotenv_values(env_file)))
    found: dict[str, RetiredVariable] = {}
    for place, values in places:
        for name, instead in RETIRED.items():
            if (values.get(name) or "").strip():
                found.setdefault(name, RetiredVariable(name, place, instead))
    return [found[name] for name in RETIRED if name in found]
