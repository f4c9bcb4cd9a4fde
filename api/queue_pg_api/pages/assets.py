"""The console's own files. Their address holds a hash of all of them, so that browsers may keep them for ever."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from queue_pg_api.errors import not_found

FOLDER: Final = Path(__file__).parent / "static"
MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FOREVER: Final = "public, max-age=31536000, immutable"


@cache
def assets() -> dict[str, bytes]:
    """Return all files by name; a table, so that no path that a client sends is ever joined to one of ours."""
    return {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}


@cache
def version() -> str:
    """Return the hash over all files: modules import each other by relative paths, so they have one in common."""
    digest = hashlib.sha256()
    for name, content in assets().items():
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:12]


async def asset(request: Request) -> Response:
    """Answer with a file. An old version in the address, from a page open since before an update, gets the new one."""
    name = str(request.path_params["name"])
    if name not in assets():
        raise not_found("No such file.")
    keep = FOREVER if request.path_params["version"] == version() else "no-cache"
    return Response(assets()[name], media_type=MEDIA_TYPES[Path(name).suffix], headers={"cache-control": keep})
