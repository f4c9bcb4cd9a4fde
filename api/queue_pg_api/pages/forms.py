"""Forms as browsers send them without help: URL-encoded, read with a bound, each field as text.

A form that is refused comes back in its page, with the reason and what was in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.requests import Request

from queue_pg.errors import QueuePgError
from queue_pg_api.bodies import media_type, read_body
from queue_pg_api.errors import ApiError, invalid, translate

MAX_FIELDS = 40
MEDIA_TYPE = "application/x-www-form-urlencoded"


async def read_form(request: Request, max_fields: int = MAX_FIELDS) -> dict[str, str]:
    """Return the fields of a posted form; what nobody filled in is left out. Line ends become those of Unix."""
    if media_type(request) != MEDIA_TYPE:
        raise ApiError(415, "unsupported_media_type", f"This page takes forms ({MEDIA_TYPE}).")
    body = await read_body(request)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=max_fields)
    except ValueError:
        raise invalid("body", "is not a form in UTF-8 with a few fields") from None
    if any("\x00" in name + value for name, value in pairs):
        raise invalid("body", "holds a NUL character, which Postgres cannot store")
    return {name: value.replace("\r\n", "\n") for name, value in pairs if value != ""}


@dataclass(frozen=True, slots=True)
class Refused:
    """A form that was refused: which, what was in it, why, and the field that is to be put right."""

    form: str
    values: Mapping[str, str]
    detail: str
    field: str
    status: int


@dataclass(frozen=True, slots=True)
class FormState:
    """What a form shows."""

    values: Mapping[str, str]
    fault: str | None = None
    field: str = ""

    def __getitem__(self, name: str) -> str:
        return self.values.get(name, "")


def refusal_of(name: str, values: Mapping[str, str], error: ApiError | QueuePgError) -> Refused:
    """Make of an error what the form shows. Raises what the one who fills it in cannot put right."""
    refusal = translate(error) if isinstance(error, QueuePgError) else error
    # A conflict may be about a field, such as a name that is taken; most are about what became of the thing meanwhile.
    if refusal.status not in {413, 422} and not (refusal.status == 409 and "field" in refusal.about):
        raise error
    field = str(refusal.about.get("field", "")).partition("[")[0]
    return Refused(name, values, refusal.detail, field, refusal.status)


def check_fields(form: Iterable[str], known: Collection[str]) -> None:
    unknown = [name for name in form if name not in known]
    if unknown:
        raise invalid(unknown[0][:60], "is no field of this form")


def whole(form: Mapping[str, str], field: str, least: int = 0, most: int = 999_999_999) -> int | None:
    """Return the number in a field, None when it is empty."""
    text = form.get(field, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and least <= int(text) <= most):
        raise invalid(field, f"should be a whole number from {least:,} to {most:,}")
    return int(text)


def words(text: str) -> list[str]:
    """Return what stands between the commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
