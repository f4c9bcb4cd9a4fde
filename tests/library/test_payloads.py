from __future__ import annotations

import json
import math
import sys
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from queue_pg.errors import InvalidJob, PayloadTooLarge
from queue_pg.payloads import (
    MAX_DEPTH,
    Unreadable,
    UnreadableJson,
    decode_json,
    decode_or_mark,
    encode_json,
    error_object,
    parse_json,
    sanitise_text,
)


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


# --- encode_json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ({"a": [1, 2.5, True, None, "ü"]}, '{"a":[1,2.5,true,null,"ü"]}'),
        ((1, 2), "[1,2]"),
        (Colour.RED, '"red"'),
        (Number.ONE, "1"),
        ("\\u0000 is only text here", '"\\\\u0000 is only text here"'),
        (int(sys.float_info.max), str(int(sys.float_info.max))),
        (1e23, "99999999999999991611392"),
        ("\x7f\u2028", '"\x7f\u2028"'),
    ],
)
def test_encodes(value: Any, text: str) -> None:
    assert encode_json(value) == text
    assert decode_json(text) == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ({"a": float("nan")}, "payload.a", "nan"),
        ([1, float("-inf")], "payload[1]", "-inf"),
        ({"a": {"b": ["x", "\x00"]}}, "payload.a.b[1]", "NUL"),
        ({"a": {"b\x00": 1}}, "payload.a", "key that holds the NUL"),
        ({"a": "\ud800"}, "payload.a", "surrogate"),
        ({"a": [{"\udfff": 1}]}, "payload.a[0]", "surrogate"),
        ({"a": 10**309}, "payload.a", "range of a float"),
        ([10**100_000], "payload[0]", "range of a float"),
        (-(10**400), "payload", "range of a float"),
        ({"a": datetime(2026, 1, 1)}, "payload.a", "datetime"),
        ({"a": {1: 2}}, "payload.a", "keys must be strings"),
        ({"a b": {1, 2}}, 'payload["a b"]', "set"),
        ({"x": b"bytes"}, "payload.x", "bytes"),
        (nested(MAX_DEPTH + 1), "payload", "64 levels"),
        (nested(100_000), "payload", "64 levels"),
        (circular(), "payload", "64 levels"),
    ],
)
def test_refuses_to_encode(value: Any, field: str, reason: str) -> None:
    with pytest.raises(InvalidJob, match=reason) as caught:
        encode_json(value)
    assert caught.value.field == field


def test_the_field_is_the_root_of_the_path() -> None:
    with pytest.raises(InvalidJob) as caught:
        encode_json({"a": [math.inf]}, field="metadata")
    assert caught.value.field == "metadata.a[0]"
    with pytest.raises(InvalidJob) as caught:
        encode_json({"tags": ["\x00"]}, field="")
    assert caught.value.field == "tags[0]"


def test_depth_64_is_allowed_and_65_is_not() -> None:
    assert decode_json(encode_json(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    with pytest.raises(InvalidJob):
        encode_json(nested(MAX_DEPTH + 1))


def test_size_is_counted_in_utf8() -> None:
    assert encode_json("ü" * 4, max_bytes=10) == '"üüüü"'
    with pytest.raises(PayloadTooLarge) as caught:
        encode_json("ü" * 5, max_bytes=11)
    assert (caught.value.size, caught.value.limit, caught.value.field) == (12, 11, "payload")


# --- decode_json ------------------------------------------------------------------------------------------------------

UNREADABLE = [
    "1e5000",
    "[1" + "0" * 5000 + "]",
    "NaN",
    '{"a": -1e999}',
    "[" * 65 + "]" * 65,
    "[" * 50_000 + "]" * 50_000,
]


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: text[:20])
def test_what_python_cannot_hold_is_marked(text: str) -> None:
    with pytest.raises(UnreadableJson):
        decode_json(text)
    marked = decode_or_mark(text)
    assert isinstance(marked, Unreadable)
    assert marked.text == text
    assert marked.reason


def test_decodes_wide_documents() -> None:
    value = [{"a": [index]} for index in range(1000)]
    assert decode_json(json.dumps(value)) == value
    assert decode_or_mark(None) is None


# --- parse_json -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "line 1, column 2"),
        (b"nul", "not JSON"),
        (b"\xff{}", "UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "range of a float"),
        (b'{"a": 1' + b"0" * 400 + b"}", "range of a float"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "1,000 digits"),
        (b'{"a": 0.' + b"1" * 1000 + b"}", "1,000 digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', '"c" twice'),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"\\u0000": 1}', "NUL"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'"\x01"', "not JSON"),
        (b"[" * 65 + b"]" * 65, "64 levels"),
        (b"[" * 1_000_000, "64 levels"),
        (b'{"a":' * 200_000, "64 levels"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_refuses_a_request_body(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidJob, match=reason) as caught:
        parse_json(body)
    assert caught.value.field.startswith("body")


def test_parses_a_request_body() -> None:
    assert parse_json(b' {"a": ["\\ud83d\\ude00", 1e3, "\xc3\xbc"]} ') == {"a": ["\U0001f600", 1000.0, "ü"]}
    with pytest.raises(PayloadTooLarge):
        parse_json(b"[1,2,3]", max_bytes=6)


# --- error texts ------------------------------------------------------------------------------------------------------


class Hostile(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_error_texts_are_made_storable() -> None:
    assert sanitise_text("a\x00b\ud800c") == "a\ufffdb" + sanitise_text("\ud800") + "c"
    assert "\ufffd" in sanitise_text("\ud800")
    assert sanitise_text(Hostile()) == "<Hostile without a readable text>"
    long = sanitise_text("x" * 10_000 + "the end", max_chars=100)
    assert len(long) <= 100
    assert long.endswith("the end")


def test_error_objects_are_always_storable() -> None:
    error = error_object(
        "Bad\x00Code", Hostile(), number=math.nan, good={"a": 1}, deep=nested(100), none=None, bad={"\ud800": object()}
    )
    assert decode_json(encode_json(error)) == error
    assert error["good"] == {"a": 1}
    assert set(error) == {"code", "message", "number", "good", "deep", "bad"}
    assert error_object("", "x" * 100_000, extra="y" * 10_000_000)["code"] == "error"


@given(st.text(st.characters(exclude_categories=[])), st.dictionaries(st.text(max_size=5), st.text(), max_size=3))
@example("\x00\ud800", {"a\x00": "\udfff"})
def test_any_text_makes_a_storable_error(text: str, details: dict[str, str]) -> None:
    details = {key: value for key, value in details.items() if key not in ("code", "message")}
    encode_json(error_object(text, text, **details), field="error")


# --- what we accept, Postgres accepts and gives back ------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**310), max_value=10**310)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=[])), inner),
    max_leaves=20,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=documents)
@example(value=1e23)
@example(value=-1.5e300)
@example(value=5e-324)
@example(value=-0.0)
@example(value={"": "", "a\\u0000": "\\u0000"})
@example(value=[9007199254740993, 0.1, 1e16, 123456789012345680.0])
def test_what_is_accepted_survives_postgres(dsn: str, value: Any) -> None:
    try:
        text = encode_json(value)
    except InvalidJob:
        return
    row = _postgres(dsn).execute("select (%s::text::jsonb)::text", (text,)).fetchone()
    assert row is not None
    assert decode_json(row[0]) == value
    assert decode_json(text) == value
    assert parse_json(text.encode()) == value


_connections: dict[str, psycopg.Connection] = {}


def _postgres(dsn: str) -> psycopg.Connection:
    # One connection for all examples; the database is dropped with it after the test.
    if dsn not in _connections:
        _connections[dsn] = psycopg.connect(dsn, autocommit=True)
    return _connections[dsn]


@pytest.fixture(autouse=True)
def _close_connections() -> Any:
    yield
    while _connections:
        _connections.popitem()[1].close()
