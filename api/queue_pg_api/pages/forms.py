"""Forms as browsers send them without help: URL-encoded, read with a bound, each field as text."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request

from queue_pg_api.bodies import media_type, read_body
from queue_pg_api.errors import ApiError, invalid

MAX_FIELDS = 40
MEDIA_TYPE = "application/x-www-form-urlencoded"


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a posted form; what nobody filled in is left out. Line ends become those of Unix."""
    if media_type(request) != MEDIA_TYPE:
        raise ApiError(415, "unsupported_media_type", f"This page takes forms ({MEDIA_TYPE}).")
    body = await read_body(request)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError:
        raise invalid("body", "is not a form in UTF-8 with a few fields") from None
    if any("\x00" in name + value for name, value in pairs):
        raise invalid("body", "holds a NUL character, which Postgres cannot store")
    return {name: value.replace("\r\n", "\n") for name, value in pairs if value != ""}
