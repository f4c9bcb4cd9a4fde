"""What QUEUE_PG_COMMANDS allows: argv templates with typed slots."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest
from commanding import command_runner, commands, run
from hypothesis import given
from hypothesis import strategies as st
from queue_pg_workers.commands.templates import NotAllowed, parse_commands

from queue_pg import Queue
from queue_pg.errors import ConfigError


def allowed(templates: str, *argv: str, **env: str) -> bool:
    try:
        parse_commands(templates).allow(argv, env)
    except NotAllowed:
        return False
    return True


@pytest.mark.parametrize(
    ("template", "good", "bad"),
    [
        ("p", ["p"], ["q", "p p", "P", "/bin/p"]),
        ("p {x}", ["p a", "p é", "p 'a b; $(c)'"], ["p", "p ''", "p -a", "p --", "p -", "p a b"]),
        ("p {x:str}", ["p a"], ["p -a"]),
        ("p -n {x}", ["p -n a"], ["p -n -a", "p n a", "p -n"]),
        ("p --x={x}", ["p --x=a", "p --x=-a"], ["p --x=", "p --x", "p --y=a", "p --x a"]),
        ("p {x:int}", ["p 5", "p 007"], ["p -5", "p 5.0", "p \u0665", "p 1e3", "p '5 '", "p '5\n'", "p " + "9" * 101]),
        ("p {x:int(1..10)}", ["p 1", "p 10"], ["p 0", "p 11", "p -1"]),
        ("p {x:int(-3..3)}", ["p -3", "p 0"], ["p -4", "p --3"]),
        ("p {x:int(5..)}", ["p 5", "p 500"], ["p 4"]),
        ("p {x:float(0..1)}", ["p 0.5", "p 1", "p 1e-3"], ["p 1.1", "p nan", "p inf", "p .5", "p -0.1"]),
        ("p {w:int}x{h:int}", ["p 1x2"], ["p x2", "p 1x", "p -1x2", "p 1x2x3"]),
        (
            "p {x:path}",
            ["p a", "p a/b.c", "p ./a", "p ..a", "p a..b"],
            ["p /a", "p ..", "p ../a", "p a/../b", "p a/..", "p -a"],
        ),
        (
            # To programs `label:@f` is a text read from f, `host:f` on another machine, `@f` more arguments.
            "p {x:path}",
            ["p ./label:@f", "p a/b:c", "p a@b", "p a~", "p ./@f"],
            ["p label:@/etc/passwd", "p host:f", "p @f", "p '|id'", "p ~", "p ~root/x", "p data:x/y"],
        ),
        ("p {x:path...}", ["p a b"], ["p a @f"]),
        ("p --o={x:path}", ["p --o=a"], ["p --o=/etc", "p --o=../a", "p --o=@f", "p --o=msl:f"]),
        ("p {a:path}:{b:path}", ["p a:b"], ["p a:/b", "p a:b:c"]),
        ("p {a}-{b}", ["p x-y", "p x-y-z"], ["p x-", "p --y"]),
        ("p {a}={n:int}.{b}.png", ["p k=1.x.png", "p k=a=1.x.y.png"], ["p k=.x.png", "p k=1..png", "p k=1.x"]),
        ("p {a}{b}", ["p xy"], ["p x", "p -x"]),
        (
            "p {x:url}",
            ["p http://a", "p https://a.b:80/c?d=e#f"],
            ["p a", "p ftp://a", "p file:///etc", "p ext::x", "p http://", "p javascript:x", "p http://[::1"],
        ),
        (
            "p {x:url}",
            ["p http://é"],
            ["p 'http://a b'", "p https://-x/y", "p 'http://a\n'", "p http://a\u200bb"],
        ),
        ("p {x:url(ssh|https)}", ["p ssh://a/b", "p https://a"], ["p http://a", "p ssh://-oProxyCommand=x/y"]),
        ("p {x:choice(fast|slow|--both)}", ["p fast", "p --both"], ["p fas", "p fastslow", "p --bot", "p ''"]),
        ("p {x:choice(a|ab)}b", ["p ab", "p abb"], ["p b", "p aab"]),
        ("p {x:regex([a-z]{2,3})}", ["p ab", "p abc"], ["p a", "p abcd", "p 'ab\n'", "p Ab"]),
        ("p {x:regex(.*)}", ["p a"], ["p -a"]),
        ("p {x:any}", ["p -rf", "p ''"], ["p", "p a b"]),
        ("p {x...}", ["p a", "p a b c"], ["p", "p a -b"]),
        ("p {x*}", ["p", "p a b"], ["p -a"]),
        ("p {x:path...} to {y}", ["p a to b", "p a b to c"], ["p to b", "p a to -b", "p a b", "p ../a to b"]),
        ("p {x:any*} end", ["p end", "p -a -b end"], ["p -a", "p"]),
        ("'a b' \"c d\" e\\ f ''", ["'a b' 'c d' 'e f' ''"], ["a b c d e f"]),
        ("p {{x}}", ["p {x}"], ["p a"]),
        ('p "to {x}"', ["p 'to me'", "p 'to '\\''x'\\'''"], ["p to me", "p 'to '"]),
        ("a; b {x}\nc", ["a", "b x", "c"], ["b", "d"]),
        ("/usr/bin/p {x}", ["/usr/bin/p a"], ["p a"]),
    ],
)
def test_what_fits(template: str, good: list[str], bad: list[str]) -> None:
    for line in good:
        assert allowed(template, *shlex.split(line)), line
    for line in bad:
        assert not allowed(template, *shlex.split(line)), line


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("p {a}x{b}.png", "x" * 40_000),
        ("p {a}x{b}x{c}.png", "x" * 2_500),
        ("p {a}{b}.png", "x" * 40_000),
        ("p {a}{n:int}y", "1" * 40_000),
    ],
)
def test_a_long_word_is_refused_as_quickly_as_a_short_one(template: str, word: str) -> None:
    """Words come from whoever submits, and who looks at them cannot keep the worker's leases meanwhile."""
    began = time.process_time()
    assert not allowed(template, "p", word)
    assert time.process_time() - began < 1


def test_variables_are_the_templates_business() -> None:
    given = "LC_ALL=C WIDTH={w:int} NAME='a b' p {x}"
    assert parse_commands(given).allow(["p", "a"], {}) == {"LC_ALL": "C", "NAME": "a b"}
    assert parse_commands(given).allow(["p", "a"], {"WIDTH": "5"}) == {"LC_ALL": "C", "NAME": "a b", "WIDTH": "5"}
    for env in ({"LD_PRELOAD": "x"}, {"PATH": "."}, {"WIDTH": "x"}, {"LC_ALL": "D"}, {"BASH_ENV": "x"}, {"A": ""}):
        assert not allowed(given, "p", "a", **env), env
    assert parse_commands("any").allow(["p"], {"LD_PRELOAD": "x"}) == {"LD_PRELOAD": "x"}


@given(st.lists(st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_quoting_is_that_of_a_shell(words: list[str]) -> None:
    words = ["program", *words]
    [template] = parse_commands(shlex.join(words)).templates
    assert [word.literal for word in template.words] == words


@pytest.mark.parametrize(
    ("text", "character", "said"),
    [
        ("ls {a", 4, "the { is not closed"),
        ("ls; cp }", 8, "a } without its {"),
        ("ls 'a", 4, "the quote is not closed"),
        ('ls "a', 4, "the quote is not closed"),
        ("ls \\", 4, "nothing follows the backslash"),
        ("{a} b", 1, "the program itself cannot be a slot"),
        ("ls; x{a}", 5, "the program itself cannot be a slot"),
        ("''", 1, "the program has no name"),
        ("./ls", 1, "must be a name or an absolute path"),
        ("bin/ls", 1, "must be a name or an absolute path"),
        ("ls {a:file}", 4, "there is no type 'file'; there are str, int"),
        ("ls {}", 4, "is no slot"),
        ("ls {a b}", 4, "is no slot"),
        ("ls {1}", 4, "is no slot"),
        ("ls {a:int(x)}", 4, "int takes a range"),
        ("ls {a:int(5..1)}", 4, "the range is empty"),
        ("ls {a:str(x)}", 4, "str takes nothing"),
        ("ls {a:choice}", 4, "choice takes words"),
        ("ls {a:choice(x||y)}", 4, "choice takes words"),
        ("ls {a:regex}", 4, "regex takes a regular expression"),
        ("ls {a:regex([)}", 4, "not a regular expression"),
        ("ls {a:url(h t)}", 4, "url takes schemes"),
        ("ls {a...} {b*}", 11, "only one slot of a template can repeat"),
        ("ls x{a...}", 4, "has to be a word of its own"),
        ("A=b", 1, "variables without a program"),
        ("QUEUE_PG_X=b ls", 1, "are not for commands to set"),
        ("ls; any", 5, "'any' cannot be combined with templates"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, character: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_commands(text)
    assert caught.value.message.startswith(f"QUEUE_PG_COMMANDS makes no sense at character {character} (")
    assert said in caught.value.message
    assert caught.value.setting == "QUEUE_PG_COMMANDS"


def test_no_command_at_all_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="names no command"):
        parse_commands(" ;\n; ")


async def test_what_is_not_allowed_fails_for_good_and_says_what_is(dsn: str, queue: Queue, tmp_path: Path) -> None:
    templates = "echo {word}; LC_ALL=C sort {files:path...}; ls"
    async with commands(dsn, tmp_path / "ws", commands=templates):
        good = await run(queue, "echo", "a; id")
        other = await run(queue, "rm", "-rf", "/", max_attempts=3)
        option = await run(queue, "echo", "-n", max_attempts=3)
        variable = await run(queue, "ls", env={"LD_PRELOAD": "/x"}, max_attempts=3)
    assert good.result["stdout"] == "a; id\n"
    for job, why in (
        (other, "'rm -rf /' is not allowed here. "),
        (option, "'echo -n' is not allowed here ({word} begins with '-', as an option does). "),
        (variable, "'ls' is not allowed here (it takes no variable LD_PRELOAD). "),
    ):
        assert (job.state, job.attempt, job.error["code"]) == ("failed", 1, "command_not_allowed")
        assert job.error["message"] == f"{why}This worker runs: {templates}"


def test_settings_that_make_no_sense_are_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    for settings, setting in (
        ({"commands": "ls {"}, "QUEUE_PG_COMMANDS"),
        ({"temp_dir": str(tmp_path / "file")}, "COMMAND_TEMP_DIR"),
        ({"temp_dir": str(tmp_path / "open")}, "COMMAND_TEMP_DIR"),
        ({"temp_dir": str(tmp_path / "link")}, "COMMAND_TEMP_DIR"),
        ({"user": "no such user"}, "COMMAND_USER"),
        ({"user": "root"}, "COMMAND_USER"),
        ({"user": "1000:x"}, "COMMAND_USER"),
        ({"mode": "custom"}, "COMMAND_CLASS"),
        ({"mode": "custom", "mode_class": "no_such_module:X"}, "COMMAND_CLASS"),
        ({"mode": "custom", "mode_class": "queue_pg.models:NoSuchClass"}, "COMMAND_CLASS"),
        ({"mode": "custom", "mode_class": "collections:OrderedDict"}, "COMMAND_CLASS"),
        ({"mode": "docker"}, "COMMAND_IMAGE"),
    ):
        with pytest.raises(ConfigError) as caught, command_runner(tmp_path / "ws", **settings):
            pass
        assert caught.value.setting == setting, settings
        assert caught.value.hint
