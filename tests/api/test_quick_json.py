"""The fast way to read JSON gives what the careful way gives, or nothing."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from queue_pg_api.quick_json import NotPlainError, parse_plain

from queue_pg.errors import InvalidJob
from queue_pg.payloads import parse_json

REFUSED = [
    b"", b" ", b"{", b"nul", b"NaN", b"-Infinity", b"1e400", b"-1e400", b"9" * 400, b"1." + b"0" * 1000, b"01", b"1 2",
    b"'a'", b'"\\u0000"', b'"\\ud800"', b'"\\uDC00"', b'"\x00"', b'"\n"', b'"\xff"', b'"\xed\xa0\x80"',
    b"\xef\xbb\xbf{}", b'{"a":1,"a":2}',
    b'{"a":[{"b":1,"b":1}]}', b'{"\\u0000":1}', b"[" * 65 + b"]" * 65, b"[" * 100_000, b'{"a":' * 65 + b"1" + b"}" * 65,
]  # fmt: skip
PLAIN = [
    b'{"kind":"chat","payload":{"n":1,"text":"\xc3\xbc","list":[1.5,-0.0,true,null,1e22,999999999999999999]}}',
    b' {"a": "\\n\\t\\u00fc\\\\ [[[["} \r\n',
    b'"text"',
    b"[" * 64 + b"]" * 64,
]
CAREFUL = [b'"\\ud83d\\ude42"', b"12345678901234567890", b"0." + b"1" * 400, b'"' + b"[" * 65 + b'"', b'"\\\\u0000"']


@pytest.mark.parametrize("body", REFUSED)
def test_what_is_refused_is_never_plain(body: bytes) -> None:
    with pytest.raises(InvalidJob):
        parse_json(body)
    with pytest.raises(NotPlainError):
        parse_plain(body)


@pytest.mark.parametrize("body", PLAIN)
def test_plain_bodies_read_alike(body: bytes) -> None:
    assert repr(parse_plain(body)) == repr(parse_json(body))


@pytest.mark.parametrize("body", CAREFUL)
def test_the_careful_way_knows_more(body: bytes) -> None:
    parse_json(body)
    with pytest.raises(NotPlainError):
        parse_plain(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300)
@given(values, st.booleans())
@example(math.nan, False)
@example("\x00", True)
def test_whatever_the_body(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        found = parse_plain(body)
    except NotPlainError:
        return
    assert repr(found) == repr(parse_json(body))
