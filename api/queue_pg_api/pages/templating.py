"""The templates' environment: everything is escaped, a name that is missing is a fault, and how values are shown."""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from queue_pg_api.pages.json_text import indented

STATE_SIGNS = {
    "scheduled": "◷",
    "waiting": "◌",
    "queued": "○",
    "running": "▶",
    "completed": "✓",
    "failed": "✕",
    "cancelled": "⊘",
}
# Characters that change the order or the look of those around them, and those that show nothing at all.
HIDDEN = {"Cf", "Cc", "Cs", "Co", "Zl", "Zp"}
PLAIN = {"\n", "\t"}
NONE = "\N{EN DASH}"


def visible(text: object) -> str:
    """Show what would be invisible, or turn the text around it, by its code point: a name may be made to deceive."""
    found = str(text)
    if found.isascii() and found.isprintable():
        return found
    return "".join(
        f"⟨U+{ord(sign):04X}⟩" if unicodedata.category(sign) in HIDDEN and sign not in PLAIN else sign for sign in found
    )


def short(text: object, length: int = 60) -> str:
    found = str(text)
    return visible(found if len(found) <= length else found[: length - 1] + "…")


def number(value: float) -> str:
    return f"{value:,}"


def size(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:,.1f} KB" if count < 1024 * 1024 else f"{count / 1024 / 1024:,.1f} MB"


def duration(seconds: float | None) -> str:
    """Say a duration in its largest two units; clocks may differ, so that one below zero is none."""
    if seconds is None:
        return NONE
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    left = max(0, int(seconds))
    if left < 10 and seconds > 0 and seconds != left:
        return f"{seconds:.1f} s"
    for unit, length, small, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if left >= length:
            rest = left % length // part
            return f"{left // length} {unit} {rest} {small}" if rest else f"{left // length} {unit}"
    return f"{left} s"


def moment(value: datetime | None, now: datetime | None = None) -> Markup:
    """Show a time with its distance from now; the whole of it stands in the title."""
    if value is None:
        return Markup("") + NONE
    if value.year >= 9999:
        return Markup("never")
    found = value.astimezone(UTC)
    text = found.strftime("%H:%M:%S")
    if now is not None:
        away = (found - now).total_seconds()
        text = f"in {duration(away)}" if away > 0.5 else f"{duration(-away)} ago"
    iso = found.isoformat().replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(iso, found.strftime("%Y-%m-%d %H:%M:%S UTC"), text)


def clock(value: datetime) -> Markup:
    found = value.astimezone(UTC)
    shown = found.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return Markup('<time datetime="{}">{} UTC</time>').format(found.isoformat().replace("+00:00", "Z"), shown)


def fire(value: datetime, zone: str) -> Markup:
    """Show when a schedule fires, by the clocks of its zone and those of UTC."""
    found = value.astimezone(UTC)
    there = ""
    if zone != "UTC":
        with suppress(ValueError, OSError, KeyError):  # the database knows zones that this machine does not
            there = value.astimezone(ZoneInfo(zone)).strftime("%a %Y-%m-%d %H:%M %Z, ")
    iso = found.isoformat().replace("+00:00", "Z")
    shown = found.strftime("%H:%M:%S UTC" if there else "%a %Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}">{}{}</time>').format(iso, there, shown)


def state(value: object) -> Markup:
    """Show a state by colour, sign and word."""
    name = str(value)
    return Markup('<span class="state state-{}"><span aria-hidden="true">{}</span> {}</span>').format(
        name, STATE_SIGNS.get(name, "•"), name
    )


def sign(value: object) -> str:
    return STATE_SIGNS.get(str(value), "•")


def make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("queue_pg_api.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "visible": visible,
        "short": short,
        "number": number,
        "size": size,
        "duration": duration,
        "moment": moment,
        "clock": clock,
        "state": state,
        "sign": sign,
        "fire": fire,
        "indented": indented,
    }
    environment.filters.update(filters)
    return environment


ENVIRONMENT = make_environment()
