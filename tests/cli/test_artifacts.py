"""`queue-pg artifacts`: list, get, put."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

ABSENT = "018f0000-0000-7000-8000-000000000000"
MiB = 1024 * 1024


@pytest.fixture
def job(work: Any) -> str:
    return str(work.value("select queue_pg.submit('chat')"))


def test_in_and_out(cli: Any, job: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192  # 2 MiB
    (tmp_path / "given.bin").write_bytes(data)
    put = cli("artifacts", "put", job, "in/data.bin", "given.bin")
    assert (put.code, put.out) == (0, sha256(data).hexdigest() + "\n")
    assert cli("artifacts", job).out == "in/data.bin\n"
    got = cli("artifacts", "get", job, "in/data.bin")
    assert (got.code, got.out) == (0, "")
    assert "2,097,152 bytes in data.bin" in got.err
    assert (tmp_path / "data.bin").read_bytes() == data
    again = cli("artifacts", "get", job, "in/data.bin")
    assert again.code == 2
    assert "there already" in again.err
    (tmp_path / "other").write_bytes(b"before")
    assert cli("artifacts", "get", job, "in/data.bin", "-o", "other").code == 0
    assert (tmp_path / "other").read_bytes() == data


def test_by_pipes(cli: Any, job: str) -> None:
    made = cli("artifacts", "put", job, "a.txt", "-", "--json", stdin=b"some text\n").json
    assert (made["name"], made["size"], made["content_type"], made["attempt"]) == ("a.txt", 10, "text/plain", 0)
    assert made["created_at"].endswith("Z")
    assert cli("artifacts", "get", job, "a.txt", "--output", "-").out == "some text\n"
    assert cli("artifacts", "list", job, "--json").json == cli("artifacts", job, "--json").json == {"artifacts": [made]}


def test_a_running_job_needs_the_token(cli: Any, work: Any, job: str) -> None:
    _, token = work.claim()
    assert cli("artifacts", "put", job, "a", "-", stdin=b"x").code == 2
    assert cli("artifacts", "put", job, "a", "-", "--lease-token", str(token + 1), stdin=b"x").code == 6
    assert cli("artifacts", "put", job, "a", "-", "--lease-token", str(token), stdin=b"x").code == 0


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["get", "JOB", "nothing"], 4, "has no artifact"),
        (["get", ABSENT, "a"], 4, "No job"),
        ([ABSENT], 4, "No job"),
        (["no-id"], 2, "not a job id"),
        (["put", "JOB", "../a", "file"], 2, "segment .."),
        (["put", "JOB", "a", "missing"], 2, "No such file"),
        (["put", "JOB", "a", "file", "--content-type", "nonsense"], 2, "content_type"),
        (["get", "JOB", "a", "-o", "no/such/folder"], 2, "cannot write"),
    ],
)
def test_refusals(cli: Any, job: str, tmp_path: Path, argv: list[str], code: int, said: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    cli("artifacts", "put", job, "a", "file")
    result = cli("artifacts", *(job if word == "JOB" else word for word in argv))
    assert result.code == code
    assert said in result.err
    assert result.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_corrupt_is_not_saved(cli: Any, work: Any, job: str, tmp_path: Path) -> None:
    cli("artifacts", "put", job, "a", "-", stdin=b"the truth")
    work.database.execute("update queue_pg.chunks set data = 'the trush'")
    result = cli("artifacts", "get", job, "a")
    assert (result.code, os.listdir(tmp_path)) == (1, [])
    assert "corrupt" in result.err
