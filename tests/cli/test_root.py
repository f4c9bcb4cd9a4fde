"""The command line as a whole: help, mistakes, interruption, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import queue_pg
from queue_pg.cli import main
from queue_pg.cli.root import BUILT_IN, SERVICES, report
from queue_pg.errors import DatabaseUnavailable

UNREACHABLE = "postgresql://nobody:secret-word@127.0.0.1:1/nowhere"


def test_help_names_every_command(bare_cli: Any) -> None:
    shown = bare_cli("--help")
    assert shown.code == 0
    for command in BUILT_IN:
        assert f"\n  {command} " in shown.out


@pytest.mark.parametrize("command", BUILT_IN)
def test_every_command_has_help_with_a_first_sentence(bare_cli: Any, command: str) -> None:
    shown = bare_cli(command, "--help")
    assert shown.code == 0
    assert f"queue-pg {command}" in shown.out
    first = " ".join(shown.out.split("\n\n")[1].split())
    assert first.endswith(".") or ". " in first


@pytest.mark.parametrize("command", SERVICES)
def test_the_services_commands_are_listed_as_they_describe_themselves(bare_cli: Any, command: str) -> None:
    assert f"\n  {command} " in bare_cli("--help").out
    described = " ".join(bare_cli(command, "--help").out.split())
    assert SERVICES[command].rstrip(".") in described


def test_no_arguments_show_the_help(bare_cli: Any) -> None:
    assert bare_cli().out == bare_cli("--help").out


def test_version(bare_cli: Any) -> None:
    shown = bare_cli("--version")
    assert (shown.code, shown.out.split()[0]) == (0, "queue-pg")


def test_the_command_line_itself_imports_no_driver(bare_program: Any) -> None:
    # The package's own __init__ is left out here: what it imports is its own business.
    code = (
        "import sys, types; package = types.ModuleType('queue_pg'); package.__path__ = [sys.argv[1]];"
        "sys.modules['queue_pg'] = package; from queue_pg.cli import main; main(['--help']);"
        "print([name for name in ('psycopg', 'pydantic_settings', 'rich', 'queue_pg_api', 'queue_pg_workers')"
        " if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(Path(queue_pg.__file__).parent)]
    done = subprocess.run(command, env=bare_program.env, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(("typed", "meant"), [("submitt", "submit"), ("worker-s", "workers"), ("quues", "queues")])
def test_an_unknown_command_is_answered_with_a_suggestion(bare_cli: Any, typed: str, meant: str) -> None:
    refused = bare_cli(typed)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"error: No command '{typed}'. Did you mean ")
    assert meant in refused.err
    assert refused.err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense-that-resembles-nothing"],
        ["get"],
        ["get", "not-an-id"],
        ["wait"],
        ["wait", "018f0000-0000-7000-8000-000000000000", "--timeout", "soon"],
        ["list", "--state", "complete"],
        ["list", "--limit", "0"],
        ["list", "--limit", "many"],
        ["cancel"],
        ["cancel", "x"],
        ["retry", "x"],
        ["retry", "018f0000-0000-7000-8000-000000000000", "--max-attempts", "0"],
        ["why", "x"],
        ["queues", "paus", "x"],
        ["queues", "pause"],
        ["queues", "pause", "x", "--until", "later"],
        ["queues", "resume"],
        ["workers", "extra"],
        ["stats", "--nope"],
        ["migrate", "--plan", "--sql"],
        ["migrate", "--lock-timeout", "x"],
        ["reaper", "extra"],
        ["dev", "--port", "0"],
        ["demo", "--port", "70000"],
        ["demo", "--modules", "0"],
        ["config", "extra"],
        ["doctor", "extra"],
        ["doctor", "db", "extra"],
        ["submit"],
        ["submit", "chat", "{"],
        ["submit", "chat", "{}", "--priority", "urgent"],
    ],
    ids=" ".join,
)
def test_wrong_input_is_one_line_and_exit_code_2(bare_cli: Any, argv: list[str]) -> None:
    refused = bare_cli(*argv)
    assert refused.code == 2
    assert refused.out == ""
    assert refused.err.startswith("error: ")
    assert refused.err.count("\n") == 1
    as_json = bare_cli(*argv, "--json") if argv[0] not in {"reaper", "dev"} and argv[:2] != ["doctor", "db"] else None
    if as_json is not None:
        error = json.loads(as_json.err)["error"]
        assert (as_json.code, as_json.out) == (2, "")
        assert set(error) >= {"code", "message", "hint"}


def test_without_a_database_the_next_step_is_named(bare_cli: Any) -> None:
    refused = bare_cli("list")
    assert refused.code == 2
    assert "DATABASE_URL" in refused.err
    assert "queue-pg dev" in refused.err


@pytest.mark.parametrize("argv", [["list"], ["stats"], ["submit", "chat"], ["migrate"], ["queues"]], ids=" ".join)
def test_an_unreachable_database_is_exit_code_5(bare_cli: Any, argv: list[str]) -> None:
    refused = bare_cli(*argv, "--database-url", UNREACHABLE)
    assert refused.code == 5
    assert refused.err.startswith("error: ")
    assert refused.err.count("\n") == 1
    assert "secret-word" not in refused.err
    again = bare_cli(*argv, "--database-url", UNREACHABLE, "--json")
    assert json.loads(again.err)["error"]["code"] == "database_unavailable"


def test_a_database_without_the_schema_is_exit_code_3(bare_cli: Any, empty_dsn: str) -> None:
    for argv in (["list"], ["stats"], ["submit", "chat"], ["workers"]):
        refused = bare_cli(*argv, "--database-url", empty_dsn)
        assert refused.code == 3, refused
        assert "queue-pg migrate" in refused.err
        assert refused.err.count("\n") == 1


def test_without_typer_one_line_tells_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["list"]) == 2
    shown = capsys.readouterr()
    assert "pip install 'queue-pg[cli]'" in shown.err
    assert shown.err.count("\n") == 1


def test_ctrl_c_ends_with_130_and_no_traceback(program: Any, work: Any) -> None:
    job_id = work.value("select queue_pg.submit('chat')")
    waiting = program.start("wait", str(job_id))
    work.until("select watched from queue_pg.jobs where id = %s", job_id)
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert (out, err) == ("", "")


@pytest.mark.parametrize("importing", ["typer", "queue_pg.cli.jobs"])
def test_ctrl_c_while_a_command_is_being_imported_shows_no_traceback(bare_program: Any, importing: str) -> None:
    code = (
        "import os, signal, sys\n"
        "interrupted = sys.argv.pop()\n"
        "class Interrupter:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == interrupted:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupter())\n"
        "from queue_pg.cli import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", code, "list", importing]
    done = subprocess.run(command, env=bare_program.env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_error_of_several_lines_is_shown_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    error = DatabaseUnavailable("Connection refused\n\tIs the server running?", hint="Start it.")
    assert report(error, as_json=False) == 5
    assert capsys.readouterr().err == "error: Connection refused Is the server running? Start it.\n"
    report(error, as_json=True)
    assert json.loads(capsys.readouterr().err)["error"]["message"] == "Connection refused Is the server running?"


@pytest.mark.parametrize("command", ["migrate", "dev", "demo", "list"])
def test_a_dead_server_is_told_in_plain_words(bare_cli: Any, command: str) -> None:
    refused = bare_cli(command, "--database-url", UNREACHABLE)
    assert refused.code == 5
    [error] = [line for line in refused.err.splitlines() if line.startswith("error: ")]
    assert "\\" not in error


def test_a_closed_pipe_is_no_error(program: Any, work: Any) -> None:
    work.value("select count(queue_pg.submit('chat')) from generate_series(1, 400)")
    reading, writing = os.pipe()
    os.close(reading)
    listing = program.start("list", "--limit", "400", stdout=writing)
    os.close(writing)
    _, err = listing.communicate(timeout=30)
    assert listing.returncode == 141
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_a_terminal_without_unicode_shows_escapes(program: Any, work: Any) -> None:
    job_id = work.value("""select queue_pg.submit('chat', '{"prompt": "世界"}')""")
    program.env.update(PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    shown = program.run("get", str(job_id))
    assert (shown.code, shown.err) == (0, "")
    assert "\\u4e16" in shown.out
