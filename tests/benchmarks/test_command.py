"""`python -m benchmarks`: arguments, and a tiny run from end to end. No test here looks at how fast anything was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import proc
from benchmarks.__main__ import main
from benchmarks.bench import Bench
from benchmarks.marks import Marks
from benchmarks.measures import (
    artifacts,
    drain,
    event_latency,
    events,
    flow_latency,
    idle_streams,
    latency,
    submit_latency,
)
from benchmarks.measures.catalogue import MEASURES
from benchmarks.progress import Progress
from benchmarks.results import RESULTS
from benchmarks.server import running_server

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workshop() -> Iterator[Path]:
    """A folder for a server's data, which root's server account may enter."""
    with tempfile.TemporaryDirectory(prefix="queue-pg bench ") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder) / "shop"


def test_a_wrong_name_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drian"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no measure is called 'drian'" in said


def test_no_runs_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runs", "0"]) == 2
    assert capsys.readouterr().err == "error: --runs needs 1 or more\n"


def test_the_list_names_all_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(MEASURES)


def test_a_quick_run_makes_complete_records(workshop: Path) -> None:
    before = RESULTS.read_bytes() if RESULTS.exists() else None
    with running_server(workshop) as server:
        bench = Bench(server, runs=1, quick=True, peers=False)
        drained, picked_up = drain.run(bench), latency.run(bench)
    assert list(drained.figures) == ["raw", "queue-pg", "queue-pg, 2 processes"]
    for figures in drained.figures.values():
        assert figures.keys() == {metric.name for metric in drain.METRICS}
        assert figures["wal"][0] > 0
        assert figures["rss"][0] > 0
    assert list(picked_up.figures) == ["raw", "queue-pg", "queue-pg, NOTIFY off"]
    for figures in picked_up.figures.values():
        assert figures.keys() == {metric.name for metric in latency.METRICS}
    assert before == (RESULTS.read_bytes() if RESULTS.exists() else None)


def test_a_quick_run_of_streams_and_flows_makes_complete_records(workshop: Path) -> None:
    measures = (events, event_latency, idle_streams, flow_latency, submit_latency, artifacts)
    with running_server(workshop) as server:
        bench = Bench(server, runs=1, quick=True, peers=False)
        records = {measure.NAME: measure.run(bench) for measure in measures}
    for measure in measures:
        figures = records[measure.NAME].figures
        assert {name for target in measure.TARGETS for name, _ in target.pairs} <= set(figures)
        assert set().union(*figures.values()) == {metric.name for metric in measure.METRICS}
    assert records["events"].figures["job.log"]["wal"][0] > 0
    assert records["idle_streams"].figures["queue-pg"]["rss"][0] > 10


def test_progress_finds_the_tenths(tmp_path: Path) -> None:
    progress = Progress(Marks(tmp_path), jobs=100, seconds=[0.0, 1.0, 3.0], done=[0, 50, 100])
    assert progress.tenths() == pytest.approx([50.0] * 5 + [25.0] * 5)
    assert progress.rate == pytest.approx(100 / 3)


def test_processor_time_counts_ended_children() -> None:
    burn = "n = 0\nfor i in range(3_000_000): n += i"
    before = proc.cpu_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert proc.cpu_seconds(os.getpid()) - before > 0.03


def test_a_signal_ends_everything(workshop: Path) -> None:
    script = (
        "import sys, pathlib, benchmarks.__main__ as command\n"
        f"command.WORKSHOP = pathlib.Path({str(workshop)!r})\n"
        "sys.exit(command.main(['--quick', '--no-peers', 'latency']))"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        while "raw" not in process.stderr.readline():  # then the server runs, and a worker of queue-pg is about to
            assert process.poll() is None
        below = [one.pid for one in proc.tree(process.pid) if one.pid != process.pid]
        postmaster = int((workshop / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0])
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 130
    assert all(proc.stat(pid) is None for pid in [*below, postmaster])
