"""Stored text cannot drive the terminal, and JSON stays JSON."""

from __future__ import annotations

import json

import pytest

from queue_pg.cli.output import duration
from queue_pg.cli.text import printable, printable_json, printable_lines, shorten

HOSTILE = "red \x1b[31m bell \x07 csi \x9b31m title \x1b]0;x\x07 bidi \u202e del \x7f lone \ud800 back\rfront"


def test_no_control_character_passes() -> None:
    shown = printable(HOSTILE)
    assert not [char for char in shown if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char in "\u202e\ud800"]
    assert "\\x1b[31m" in shown
    assert printable("a\nb\tc") == "a\\nb\\tc"
    assert printable_lines("a\nb\tc\x1b") == "a\nb\tc\\x1b"
    assert printable("Grüße, 世界 🎉") == "Grüße, 世界 🎉"


def test_json_means_the_same_after_escaping() -> None:
    text = printable_json(json.dumps({HOSTILE: ["ü", HOSTILE]}, ensure_ascii=False, indent=2))
    assert json.loads(text) == {HOSTILE: ["ü", HOSTILE]}
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e", "\x7f", "\ud800"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (12.3, "12 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (18120, "5 h 2 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_shortening() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abcde…"
