"""`queues`, `workers`, `stats`."""

from __future__ import annotations

from typing import Any

import pytest


def test_queues_are_listed_paused_and_resumed(cli: Any, work: Any) -> None:
    assert "No queues yet" in cli("queues").err
    work.value("select queue_pg.submit('chat', queue => 'gpu')")
    assert cli("queues").out.splitlines()[1].split()[:4] == ["gpu", "0", "0", "1"]
    paused = cli("queues", "pause", "gpu")
    assert (paused.code, paused.out) == (0, "gpu paused\n")
    [found] = cli("queues", "--json").json["queues"]
    assert (found["queue"], found["paused"], found["queued"]) == ("gpu", True, 1)
    assert cli("queues", "list", "--json").json["queues"][0]["queue"] == "gpu"
    assert work.value("select count(*) from queue_pg.claim('w', array['gpu'])") == 0
    assert cli("queues", "resume", "gpu", "--json").json == {"queue": "gpu", "paused": False}
    assert work.value("select count(*) from queue_pg.claim('w', array['gpu'])") == 1


def test_draining(cli: Any, work: Any) -> None:
    assert cli("queues", "drain", "gpu").out == "gpu draining\n"
    assert cli("queues").out.split()[-1] == "draining"
    refused = cli("submit", "chat", "{}", "--queue", "gpu", "--any-kind")
    assert (refused.code, "is draining" in refused.err) == (6, True)
    lines = b'{"n": 1}\n'
    assert cli("submit", "chat", "--jsonl", "-", "--queue", "gpu", "--any-kind", stdin=lines).code == 6
    assert cli("queues", "drain", "gpu", "--json").json == {"queue": "gpu", "state": "draining"}
    cli("queues", "resume", "gpu")
    assert cli("submit", "chat", "{}", "--queue", "gpu", "--any-kind").code == 0


def test_scale(cli: Any, work: Any) -> None:
    work.value("select count(queue_pg.submit('chat', queue => 'gpu')) from generate_series(1, 25)")
    assert cli("scale", "gpu", "--slots", "10").out == "3\n"
    assert cli("scale", "gpu", "--slots", "10", "--max", "2").out == "2\n"
    assert cli("scale", "gpu", "--slots", "1", "--target-wait", "1m", "--job-seconds", "12").out == "5\n"
    found = cli("scale", "gpu", "--jobs-per-worker", "5", "--min", "1", "--json").json
    assert (found["desired_workers"], found["queued"], found["state"]) == (5, 25, "active")
    for wrong in (["--min", "3", "--max", "2"], ["--jobs-per-worker", "0"], ["--target-wait", "soon"]):
        assert cli("scale", "gpu", *wrong).code == 2


def test_pausing_for_a_while(cli: Any, work: Any) -> None:
    cli("queues", "pause", "a", "--until", "2999-01-01T00:00:00Z")
    cli("queues", "pause", "b", "--until", "30m")
    until = {item["queue"]: item["paused_until"] for item in cli("queues", "--json").json["queues"]}
    assert until["a"] == "2999-01-01T00:00:00Z"
    assert work.value("select %s::timestamptz between now() + '29 min' and now() + '31 min'", until["b"])


@pytest.mark.parametrize("until", ["2001-01-01T00:00:00Z", "0s"])
def test_a_pause_that_is_over_already_is_refused(cli: Any, until: str) -> None:
    refused = cli("queues", "pause", "a", "--until", until)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"error: until: '{until}' is not in the future.")
    assert cli("queues", "--json").json["queues"] == []


def test_workers_and_what_they_do(cli: Any, work: Any) -> None:
    assert "queue-pg worker" in cli("workers").err
    work.value("select queue_pg.register_worker('w-1', 'host-a', 77, '1', array['default'], array['chat'], 8)")
    work.value("select queue_pg.worker_heartbeat('w-1', 3, 120, 2)")
    row = cli("workers").out.splitlines()[1]
    for text in ("w-1", "live", "host-a", "77", "default", "chat", "3/8", "120", "2"):
        assert text in row.split()
    [found] = cli("workers", "--json").json["workers"]
    assert (found["id"], found["capacity"], found["active"]) == ("w-1", 8, 3)


def test_stats_count_every_state(cli: Any, work: Any) -> None:
    for _ in range(3):
        work.value("select queue_pg.submit('chat')")
    work.value("select queue_pg.submit('chat', delay => '1 hour')")
    work.complete()
    work.fail()
    found = cli("stats", "--json").json
    assert found["jobs"] == {
        "scheduled": 1,
        "waiting": 0,
        "queued": 1,
        "running": 0,
        "completed": 1,
        "failed": 1,
        "cancelled": 0,
    }
    shown = dict(line.split() for line in cli("stats").out.splitlines()[1:8])
    assert (shown["queued"], shown["completed"]) == ("1", "1")
