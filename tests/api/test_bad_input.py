"""What cannot be stored, and what makes no sense, is refused by name; never a 5xx."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import psycopg
import pytest
from queue_pg_api import bodies

ClaimOne = Callable[..., Awaitable[dict[str, Any]]]


async def refused(client: httpx.AsyncClient, path: str, body: bytes, **headers: str) -> dict[str, Any]:
    answer = await client.post(path, content=body, headers={"content-type": "application/json", **headers})
    assert answer.status_code == 422, (answer.status_code, answer.text)
    refusal = answer.json()
    assert refusal["code"]
    assert refusal["field"] in refusal["detail"]
    return refusal


def with_payload(text: str) -> bytes:
    return f'{{"kind": "chat", "payload": {text}}}'.encode()


# The table of input facts: each as a value inside the payload, and the field that the refusal must name.
UNSTORABLE = {
    "nul": r'"a\u0000b"',
    "nul as a key": r'{"a\u0000b": 1}',
    "lone high surrogate": r'"\ud800"',
    "lone low surrogate": r'"\udc00x"',
    "swapped surrogates": r'"\udc00\ud800"',
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e999": "1e999",
    "1e5000": "1e5000",
    "-1e999": "-1e999",
    "number that is longer written out": "1e131071",
    "many digits": "9" * 5_000,
    "many decimals": "0." + "1" * 5_000,
    "json bomb": "[" + ",".join(["1e131071"] * 100) + "]",
}


@pytest.mark.parametrize("value", UNSTORABLE.values(), ids=UNSTORABLE.keys())
@pytest.mark.parametrize(
    ("template", "field"),
    [
        ('{"kind": "chat", "payload": {"messages": [{"content": %s}]}}', "payload.messages[0].content"),
        ('{"kind": "chat", "metadata": {"x": %s}}', "metadata.x"),
    ],
)
async def test_what_json_or_postgres_cannot_hold(
    client: httpx.AsyncClient, template: str, field: str, value: str
) -> None:
    refusal = await refused(client, "/jobs", (template % value).encode())
    assert refusal["field"].startswith(field)
    assert (await client.get("/jobs")).json()["jobs"] == []


@pytest.mark.parametrize("value", UNSTORABLE.values(), ids=UNSTORABLE.keys())
async def test_results_are_checked_like_payloads(client: httpx.AsyncClient, claim_one: ClaimOne, value: str) -> None:
    await client.post("/jobs", json={"kind": "chat"})
    job = await claim_one()
    body = f'{{"lease_token": {job["lease_token"]}, "result": {{"text": {value}}}}}'
    refusal = await refused(client, f"/jobs/{job['id']}/complete", body.encode())
    assert refusal["field"].startswith("result.text")
    # The refusal cost nothing: the lease stands and the right result is taken.
    answer = await client.post(f"/jobs/{job['id']}/complete", json={"lease_token": job["lease_token"], "result": 1})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("1e300", 1e300),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        (r'"\ud83d\ude42"', "🙂"),
        ('"\u2028 <script> \u007f"', "\u2028 <script> \u007f"),
        ("-0.0", 0.0),
        ("{}", {}),
        ("null", {}),
    ],
)
async def test_odd_but_right_values_are_stored(client: httpx.AsyncClient, value: str, stored: Any) -> None:
    answer = await client.post("/jobs", content=with_payload(value))
    assert answer.status_code == 201, answer.text
    assert answer.json()["payload"] == stored


@pytest.mark.parametrize("depth", [65, 1_000, 10_000, 50_000, 200_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
async def test_nesting_is_bounded(client: httpx.AsyncClient, depth: int, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    nested = opening * depth + "1" + closing * depth
    refusal = await refused(client, "/jobs", with_payload(nested))
    assert "nested deeper than 64" in refusal["detail"]


async def test_nesting_within_the_bound_is_fine(client: httpx.AsyncClient) -> None:
    nested = "[" * 62 + "]" * 62
    assert (await client.post("/jobs", content=with_payload(nested))).status_code == 201


MALFORMED = {
    "empty": (b"", "is empty"),
    "spaces": (b"  \n", "is empty"),
    "half": (b'{"kind": "chat"', "line 1, column 16"),
    "trailing comma": (b'{"kind": "chat",}', "line 1, column 1"),
    "two documents": (b'{"kind": "chat"} {}', "line 1, column 18"),
    "single quotes": (b"{'kind': 'chat'}", "line 1, column 2"),
    "a form": (b"kind=chat&payload=1", "line 1, column 1"),
    "not UTF-8": (b'{"kind": "ch\xffat"}', "byte 12"),
    "overlong UTF-8": (b'{"kind": "\xc0\x80"}', "byte 10"),
    "UTF-8 surrogate": (b'{"kind": "\xed\xa0\x80"}', "byte 10"),
    "UTF-16": ('{"kind": "chat"}'.encode("utf-16"), "byte 0"),
    "byte order mark": (b'\xef\xbb\xbf{"kind": "chat"}', "BOM"),
    "duplicate keys": (b'{"kind": "chat", "kind": "other"}', '"kind" twice'),
    "duplicate keys inside": (b'{"kind": "chat", "payload": {"a": 1, "a": 2}}', '"a" twice'),
    "a string": (b'"chat"', "a string"),
    "a number": (b"1", "a number"),
    "null": (b"null", "null"),
    "true": (b"true", "a boolean"),
}


@pytest.mark.parametrize(("body", "said"), MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_bodies(client: httpx.AsyncClient, body: bytes, said: str) -> None:
    refusal = await refused(client, "/jobs", body)
    assert said in refusal["detail"]


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "kind", "is required"),
    ({"kind": 5}, "kind", "not a number"),
    ({"kind": None}, "kind", "not null"),
    ({"kind": ""}, "kind", "at least 1"),
    ({"kind": "k" * 201}, "kind", "at most 200"),
    ({"queue": ["a"]}, "queue", "not an array"),
    ({"queue": ""}, "queue", "at least 1"),
    ({"priority": "5"}, "priority", "critical, high, normal, low, batch"),
    ({"priority": 40_000}, "priority", "32767"),
    ({"priority": 1.5}, "priority", "not a number"),
    ({"priority": True}, "priority", "not a boolean"),
    ({"run_at": "tomorrow"}, "run_at", "RFC 3339"),
    ({"run_at": "2026-01-01T00:00:00"}, "run_at", "time zone"),
    ({"run_at": "infinity"}, "run_at", "RFC 3339"),
    ({"run_at": 1_700_000_000}, "run_at", "RFC 3339"),
    ({"run_at": "0001-01-01T00:00:00+14:00"}, "run_at", "years 1 to 9999"),
    ({"run_at": "10000-01-01T00:00:00Z"}, "run_at", "RFC 3339"),
    ({"run_at": "0044-03-15T00:00:00Z BC"}, "run_at", "RFC 3339"),
    ({"expires_at": "-infinity"}, "expires_at", "RFC 3339"),
    ({"delay_seconds": -1}, "delay_seconds", "greater than or equal to 0"),
    ({"delay_seconds": 1e300}, "delay_seconds", "less than or equal"),
    ({"delay_seconds": "10"}, "delay_seconds", "not a string"),
    ({"delay_seconds": 1, "run_at": "2999-01-01T00:00:00Z"}, "delay_seconds", "excludes run_at"),
    ({"max_attempts": 0}, "max_attempts", "greater than or equal to 1"),
    ({"max_attempts": 10**30}, "max_attempts", "less than or equal to 1000"),
    ({"timeout_seconds": 0}, "timeout_seconds", "0.001"),
    ({"timeout_seconds": 10**9}, "timeout_seconds", "31536000"),
    ({"unique_key": ""}, "unique_key", "at least 1"),
    ({"unique_key": "x" * 2_800}, "unique_key", "at most 255"),
    ({"tags": "a"}, "tags", "not a string"),
    ({"tags": ["a", 5]}, "tags[1]", "not a number"),
    ({"tags": ["a"] * 65}, "tags", "64"),
    ({"tags": [""]}, "tags[0]", "at least 1"),
    ({"metadata": []}, "metadata", "not an array"),
    ({"metadata": {"x": "y" * 70_000}}, "metadata", "65,536"),
    ({"traceparent": "x" * 256}, "traceparent", "at most 255"),
    ({"payloda": {}}, "payloda", "'payload'"),
    ({"state": "completed"}, "state", "unknown field"),
    ({"attempt": 5}, "attempt", "unknown field"),
    ({"org": "other"}, "org", "unknown field"),
    ({"id": "018f0000-0000-7000-8000-000000000000"}, "id", "unknown field"),
]


@pytest.mark.parametrize(("fields", "field", "said"), BAD_FIELDS)
async def test_bad_fields_are_named(client: httpx.AsyncClient, fields: dict[str, Any], field: str, said: str) -> None:
    body = fields if not fields or "kind" in fields else {"kind": "chat", **fields}
    refusal = await refused(client, "/jobs", json.dumps(body).encode())
    assert refusal["field"] == field
    assert said in refusal["detail"]


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("/jobs", {"kind": ""}, "kind: should have at least 1 character (got '')"),
        ("/jobs", {"kind": "chat", "metadata": []}, "metadata: should be an object, not an array"),
        ("/jobs", {"kind": "chat", "tags": "a"}, "tags: should be an array, not a string"),
        ("/jobs/claim", {"worker": "w", "queues": []}, "queues: should have at least 1 item"),
        ("/jobs/x/fail", {"lease_token": 1, "error": 7}, "error: should be an object, not a number"),
        ("/tasks", {"messages": [{"content": "x"}]}, "messages[0].role: must be given"),
        ("/templates/none/submit", {}, "No template 'none'. See the names with: queue-pg templates"),
    ],
)
async def test_refusals_speak_of_json_and_not_of_python(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], detail: str
) -> None:
    assert (await client.post(path, json=body)).json()["detail"] == detail


async def test_a_typo_gets_a_suggestion(client: httpx.AsyncClient) -> None:
    refusal = await refused(client, "/jobs", b'{"kind": "chat", "prority": 5}')
    assert (refusal["code"], refusal["suggestions"]) == ("unknown_field", ["priority"])


async def test_a_payload_over_the_limit_is_named(make_client: Any) -> None:
    async with make_client(max_payload_bytes=1_000) as client:
        refusal = await refused(client, "/jobs", json.dumps({"kind": "chat", "payload": "x" * 1_000}).encode())
    assert (refusal["field"], refusal["code"]) == ("payload", "too_large")
    assert "1,000 bytes" in refusal["detail"]


async def _pieces(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


async def test_size_is_counted_in_received_bytes(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies.read_body, "__kwdefaults__", {"limit": 1_000})
    # Sent in chunks: there is no Content-Length to believe.
    answer = await client.post("/jobs", content=_pieces(300, 4))
    assert answer.status_code == 413
    refusal = answer.json()
    assert (refusal["code"], refusal["limit"]) == ("body_too_large", 1_000)
    assert "1,000 bytes" in refusal["detail"]


async def test_a_declared_length_over_the_limit_is_refused_unread(client: httpx.AsyncClient) -> None:
    for declared in ("99999999999", "9" * 400):
        answer = await client.post("/jobs", content=b"{}", headers={"content-length": declared})
        assert answer.status_code == 413


async def test_a_body_that_stops_arriving_is_given_up(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "RECEIVE_TIMEOUT_SECONDS", 0.05)

    async def stalling() -> AsyncIterator[bytes]:
        yield b'{"kind":'
        await asyncio.Event().wait()

    answer = await client.post("/jobs", content=stalling())
    assert (answer.status_code, answer.json()["code"]) == (408, "body_timeout")


async def test_compressed_bodies_are_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/jobs", content=b"{}", headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")


async def test_pages_of_other_origins_cannot_write(client: httpx.AsyncClient) -> None:
    for origin in ("https://evil.example", "null", "http://api.evil.example"):
        answer = await client.post("/jobs", json={"kind": "chat"}, headers={"origin": origin})
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
    assert (await client.post("/jobs", json={"kind": "chat"}, headers={"origin": "http://api"})).status_code == 201
    assert (await client.get("/jobs", headers={"origin": "https://evil.example"})).status_code == 200


# ---- the way of errors must not fail --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        "",
        "x" * 200_000,
        {"message": "m", "code": "c", "details": {"deep": [[[1]]]}},
        {"message": "m", "list": list(range(9))},
    ],
    ids=["empty", "long", "details", "list"],
)
async def test_any_error_can_be_reported(client: httpx.AsyncClient, claim_one: ClaimOne, error: Any) -> None:
    await client.post("/jobs", json={"kind": "chat"})
    job = await claim_one()
    answer = await client.post(
        f"/jobs/{job['id']}/fail", json={"lease_token": job["lease_token"], "error": error, "retry": False}
    )
    assert answer.json()["state"] == "failed"
    stored = (await client.get(f"/jobs/{job['id']}")).json()["error"]
    assert stored["code"] == (error["code"] if isinstance(error, dict) and "code" in error else "error")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"lease_token": "1"}, "lease_token"),
        ({"lease_token": -1}, "lease_token"),
        ({"lease_token": 2**63}, "lease_token"),
        ({"lease_token": True}, "lease_token"),
        ({}, "lease_token"),
        ({"lease_token": 1}, "error"),
        ({"lease_token": 1, "error": None}, "error"),
        ({"lease_token": 1, "error": {"code": "x"}}, "error.message"),
        ({"lease_token": 1, "error": 5}, "error"),
        ({"lease_token": 1, "error": "no", "retry": "no"}, "retry"),
        ({"lease_token": 1, "error": "no", "delay_seconds": -1}, "delay_seconds"),
    ],
)
async def test_bad_failures_are_named(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    answer = await client.post("/jobs/018f0000-0000-7000-8000-000000000000/fail", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/018f0000-0000-7000-8000-000000000000/cancel",
        "/jobs/018f0000-0000-7000-8000-000000000000/retry",
        "/queues/x/pause",
        "/queues/x/resume",
    ],
)
async def test_unknown_fields_of_commands_are_named(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json={"resaon": "x"})
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "unknown_field", "resaon")


async def test_a_pause_that_is_over_already_is_refused(client: httpx.AsyncClient) -> None:
    await client.post("/jobs", json={"kind": "chat"})
    answer = await client.post("/queues/default/pause", json={"until": "2001-01-01T00:00:00Z"})
    assert (answer.status_code, answer.json()["field"]) == (422, "until")
    assert (await client.get("/queues/default")).json()["paused"] is False


# ---- rows that plain SQL made ---------------------------------------------------------------------------------------


async def test_a_job_that_python_cannot_decode_is_shown(
    client: httpx.AsyncClient, conn: psycopg.AsyncConnection
) -> None:
    row = await (
        await conn.execute("insert into queue_pg.jobs (kind, payload) values ('chat', '{\"n\": 1e5000}') returning id")
    ).fetchone()
    assert row is not None
    answer = await client.get(f"/jobs/{row[0]}")
    assert answer.status_code == 200, answer.text
    assert "number is too long" in answer.json()["payload"]["unreadable"]
    assert (await client.get("/jobs")).status_code == 200


async def test_a_poison_row_fails_alone(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    poison = [
        '{"n": 1e5000}',
        "[" * 3_000 + "]" * 3_000,
    ]
    for payload in poison:
        await conn.execute("insert into queue_pg.jobs (kind, payload) values ('chat', %s::jsonb)", (payload,))
    good = (await client.post("/jobs", json={"kind": "chat", "payload": {"n": 1}})).json()

    claimed = (await client.post("/jobs/claim", json={"worker": "w", "max": 10})).json()["jobs"]
    assert [job["id"] for job in claimed] == [good["id"]]
    failed = (await client.get("/jobs", params={"state": "failed"})).json()["jobs"]
    assert [job["error"]["code"] for job in failed] == ["unreadable_payload"] * len(poison)


async def test_claims_pass_numbers_on_exactly(client: httpx.AsyncClient, conn: psycopg.AsyncConnection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, payload) values ('chat', '{\"n\": 0.10000000000000000001}')")
    answer = await client.post("/jobs/claim", json={"worker": "w"})
    assert '"n": 0.10000000000000000001' in answer.text


@pytest.mark.parametrize("place", ["{%s}", '{"kind": "chat", "depends_on": [{%s}]}'])
async def test_a_body_with_very_many_faults_is_refused_without_listing_them(
    client: httpx.AsyncClient, place: str
) -> None:
    body = place % ",".join(f'"a{number}":1' for number in range(1_001))
    answer = await client.post("/jobs", content=body)
    assert (answer.status_code, answer.json()["field"]) == (422, "body")
    assert "faults" in answer.json()["detail"]
    answer = await client.post("/jobs", content=place % '"knd":1')
    assert answer.json()["code"] == "unknown_field"


async def test_nothing_alike_is_looked_for_to_a_name_of_megabytes(client: httpx.AsyncClient) -> None:
    tracemalloc.start()
    try:
        answer = await client.post("/jobs", content=b'{"%s":1}' % (b"kind" * 500_000))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_field")
    assert len(answer.content) < 1_000
    # The body and copies of it, but nothing for each of its characters.
    assert most < 40_000_000
