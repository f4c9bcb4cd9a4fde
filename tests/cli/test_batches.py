"""`batches` and `batch`."""

from __future__ import annotations

from typing import Any

import pytest

ABSENT = "018f0000-0000-7000-8000-000000000000"


def test_a_batch_from_its_making_to_its_end(cli: Any, work: Any) -> None:
    assert "No batches" in cli("batches").err
    made = cli("batches", "create", "import", "--on-all", "report", "--on-failed", '{"kind": "alarm", "priority": 3}')
    [batch] = made.ids
    lines = b'{"n": 1}\n{"n": 2}\n{"n": 3}\n'
    assert cli("submit", "load", "--jsonl", "-", "--batch", batch, "--any-kind", stdin=lines).code == 0
    [job] = cli("submit", "load", "--batch", batch, "--any-kind").ids
    assert cli("get", job, "--json").json["batch_id"] == batch
    assert len(cli("list", "--batch", batch).ids) == 4
    assert cli("batches", "close", batch).out == f"{batch} closed: 4 job(s), 4 unfinished\n"
    assert cli("batches").out.splitlines()[1].split()[:5] == [batch, "import", "closed", "4", "0"]
    work.complete()
    work.fail()
    shown = cli("batch", batch).out
    assert "4, 50 % ended" in shown
    assert '"priority": 3' in shown
    still = cli("batches", "wait", batch, "--timeout", "0")
    assert (still.code, still.err) == (1, f"error: Batch {batch} is still closed after 0 s.\n")
    assert cli("batches", "cancel", batch, "--reason", "enough").out == f"{batch} closed: 2 job(s) cancelled\n"
    work.value("select queue_pg.settle_batches()")
    ended = cli("batches", "wait", batch, "--json")
    assert (ended.code, ended.json["state"], ended.json["cancelled"]) == (1, "cancelled", 2)
    assert cli("batches", "retry", batch, "--json").json["jobs"] == 1
    assert cli("batches", "retry", batch, "--and-cancelled").out == f"{batch} closed: 2 job(s) put back\n"
    for _ in range(5):  # two callbacks among them
        work.complete()
    work.value("select queue_pg.settle_batches()")
    assert cli("batches", "wait", batch).code == 0
    found = cli("batches", "--state", "completed", "--name", "import", "--json").json["batches"]
    assert [(each["id"], each["run"], each["completed"]) for each in found] == [(batch, 2, 4)]


def test_limit_keys_of_callbacks(cli: Any) -> None:
    url = "https://example.org/hooks"
    [batch] = cli(
        *("batches", "create", "--limit-key", "tenant-7", "--cost", "3"),
        *("--on-complete", "report", "--on-failed", url, "--on-first-failed", '{"kind": "alarm", "cost": 0}'),
        *("--on-all", '{"kind": "tell", "limit_key": "mine", "cost": 2}'),
    ).ids
    shown = cli("batch", batch, "--json").json
    assert [
        (shown[name]["kind"], shown[name].get("limit_key"), shown[name].get("cost", 1))
        for name in ("on_complete", "on_failed", "on_first_failed", "on_all")
    ] == [("report", "tenant-7", 3), ("webhook", "tenant-7", 3), ("alarm", "tenant-7", 0), ("tell", "mine", 2)]
    assert shown["on_failed"]["payload"] == {"url": url}
    cli("batches", "close", batch)


def test_pages(cli: Any) -> None:
    ids = [cli("batches", "create").ids[0] for _ in range(3)]
    page = cli("batches", "--limit", "2", "--json").json
    assert [each["id"] for each in page["batches"]] == ids[:0:-1]
    assert "--cursor" in cli("batches", "--limit", "2").err
    rest = cli("batches", "--cursor", page["next_cursor"], "--json").json["batches"]
    assert [each["id"] for each in rest] == ids[:1]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["batch", ABSENT], 4, "No batch"),
        (["batch", "x"], 4, "No batch x"),
        (["batches", "close", ABSENT], 4, "No batch"),
        (["batches", "--state", "queued"], 2, "state"),
        (["batches", "create", "--on-all", "[]"], 2, "on_all: must be a JSON object"),
        (["batches", "create", "--on-all", '{"colour": 1}'], 2, "on_all.colour"),
        (["batches", "create", "--metadata", "7"], 2, "metadata: must be a JSON object"),
        (["batches", "create", "--limit-key", "a"], 2, "limit_key: is that of callbacks, and the batch has none"),
        (["batches", "create", "--cost", "2"], 2, "cost: is that of callbacks, and the batch has none"),
        (["batches", "create", "--on-all", "k", "--limit-key", ""], 2, "on_all.limit_key: must have 1 to 255"),
        (["batches", "create", "--on-all", "k", "--cost", "1000001"], 2, "on_all.cost: must be from 0"),
        (["batches", "create", "--on-all", ""], 2, "on_all.kind"),
        (["batches", "wait", ABSENT, "--timeout", "x"], 2, "timeout"),
        (["submit", "chat", "--batch", "x"], 2, "batch_id: must be the id of a batch"),
        (["submit", "chat", "--batch", ABSENT], 2, "batch_id: there is no batch"),
    ],
)
def test_refusals(cli: Any, argv: list[str], code: int, said: str) -> None:
    refused = cli(*argv)
    assert (refused.code, refused.out) == (code, "")
    assert said in refused.err


def test_a_batch_that_calls_webhooks_back(cli: Any) -> None:
    url = "https://example.org/hooks"
    [batch] = cli(
        "batches",
        "create",
        "--on-first-failed",
        url,
        "--on-all",
        f'{{"kind": "webhook", "payload": {{"url": "{url}"}}}}',
    ).ids
    shown = cli("batch", batch, "--json").json
    assert shown["on_first_failed"]["payload"] == shown["on_all"]["payload"] == {"url": url}
    assert (shown["first_failed_at"], shown["first_failed_id"]) == (None, None)
    assert "on first failed" in cli("batch", batch).out
    refused = cli("batches", "create", "--on-all", "https://u:p@x/")
    assert (refused.code, "on_all.payload.url" in refused.err) == (2, True)
