"""Which commands a worker runs: argv templates with typed slots, from QUEUE_PG_COMMANDS.

    convert {in:path} -resize {width:int(1..4000)} {out:path}; git clone {from:url} copy
    LC_ALL=C sort {files:path...}

Templates are separated by `;` or line ends and split into words as a shell does it: quotes and backslashes, and nothing
else, for no shell is ever involved. A slot is `{name:type(arguments)}`; `{{` is a brace. A job gives the whole argv. It
runs if that fits a template word by word. No value of a slot can become an option, unless the template says so.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from queue_pg.errors import ConfigError

ANY: Final = "any"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")
_SLOT: Final = re.compile(
    r"(?P<name>[A-Za-z_]\w{0,63})(?::(?P<type>\w+)(?:\((?P<arguments>.*)\))?)?(?P<repeat>\.\.\.|\*)?",
    re.DOTALL | re.ASCII,
)
_RANGE: Final = re.compile(r"(-?[0-9.]+)?\.\.(-?[0-9.]+)?")
# The names of variables that are the worker's to set.
RESERVED: Final = "QUEUE_PG_"

Check = Callable[[str], str | None]


class NotAllowed(Exception):
    """A command that this worker does not run; the message says what it does."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a value. `check` says what is wrong with one; `pattern` finds one in a word."""

    text: str
    pattern: str
    check: Check
    # Whether a value may begin with "-" where the word begins.
    may_be_option: bool = False
    repeat: str = ""

    @property
    def is_free(self) -> bool:
        """Whether its pattern finds text of any length and sort."""
        return self.pattern in (_ANYTHING, _ANYTHING_OR_NOTHING)


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a template: text and slots. `pattern` has a group for each slot."""

    parts: tuple[str | Slot, ...]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, parts: Sequence[str | Slot]) -> Word:
        found = [re.escape(part) if isinstance(part, str) else f"({part.pattern})" for part in parts]
        free = [place for place, part in enumerate(parts) if isinstance(part, Slot) and part.is_free]
        # A slot that takes any text ends where what follows it is found first, and no other end is tried: a word is
        # somebody else's and may be long, and with every end of several slots tried it would take for ever.
        for start, after in itertools.pairwise(free):
            found[start] = f"(?>{found[start]}"
            found[after - 1] += ")"
        return cls(tuple(parts), re.compile("".join(found), re.DOTALL))

    @property
    def slots(self) -> list[Slot]:
        return [part for part in self.parts if isinstance(part, Slot)]

    @property
    def repeat(self) -> str:
        return self.slots[0].repeat if self.slots else ""

    @property
    def literal(self) -> str | None:
        return None if self.slots else "".join(part for part in self.parts if isinstance(part, str))

    def refuse(self, value: str) -> str | None:
        """Return why a word does not fit, None if it does."""
        found = self.pattern.fullmatch(value)
        if found is None:
            return f"{_shown(value)} is not {''.join(p if isinstance(p, str) else p.text for p in self.parts)}"
        for slot, part in zip(self.slots, found.groups(), strict=True):
            if value.startswith("-") and self.parts[0] is slot and not slot.may_be_option:
                return f"{slot.text} begins with '-', as an option does"
            if (reason := slot.check(part)) is not None:
                return f"{slot.text} {reason}"
        return None


@dataclass(frozen=True, slots=True)
class Template:
    """One command that may be run. `env` has the variables that it sets or takes from the job."""

    text: str
    env: Mapping[str, Word]
    words: tuple[Word, ...]

    def refuse(self, argv: Sequence[str], env: Mapping[str, str]) -> str | None:
        """Return why a command does not fit, None if it does."""
        words = list(self.words)
        for at, word in enumerate(self.words):
            if word.repeat:
                times = len(argv) - len(words) + 1
                if times < (word.repeat == "..."):
                    return f"it has {len(argv)} words, fewer than {len(words) - (word.repeat == '*')}"
                words[at : at + 1] = [word] * times
        if len(argv) != len(words):
            return f"it has {len(argv)} words, not {len(words)}"
        for word, value in zip(words, argv, strict=True):
            if (reason := word.refuse(value)) is not None:
                return reason
        for name, value in env.items():
            if name not in self.env:
                return f"it takes no variable {name}"
            if (reason := self.env[name].refuse(value)) is not None:
                return f"the variable {name}: {reason}"
        return None

    def variables(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of a command that fits: what the template sets, and what the job gives."""
        fixed = {name: word.literal for name, word in self.env.items() if word.literal is not None}
        return {**fixed, **env}


class Commands:
    """All that a worker may run."""

    def __init__(self, templates: Sequence[Template], *, anything: bool = False) -> None:
        self.templates = tuple(templates)
        self.anything = anything

    def allow(self, argv: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
        """Return the variables to run a command with. Raise NotAllowed for one that must not be run."""
        if self.anything:
            return dict(env)
        reasons: list[str] = []
        for template in self.templates:
            reason = template.refuse(argv, env)
            if reason is None:
                return template.variables(env)
            if template.words[0].literal == argv[0]:
                reasons.append(reason)
        why = f" ({'; '.join(reasons[:3])})" if reasons else ""
        allowed = "; ".join(template.text for template in self.templates[:20])
        more = f" and {len(self.templates) - 20} more" if len(self.templates) > 20 else ""
        raise NotAllowed(f"{_shown(' '.join(argv))} is not allowed here{why}. This worker runs: {allowed}{more}")


def parse_commands(text: str) -> Commands:
    """Return what QUEUE_PG_COMMANDS allows. Raises ConfigError, naming the character."""
    if text.strip().lower() == ANY:
        return Commands((), anything=True)
    templates = _Parser(text).templates()
    if not templates:
        raise ConfigError(
            "QUEUE_PG_COMMANDS names no command.", setting="QUEUE_PG_COMMANDS", hint="Unset it to run no commands."
        )
    return Commands(templates)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def templates(self) -> list[Template]:
        found: list[Template] = []
        while self._at < len(self._text):
            start = self._at
            words = self._words()
            if words:
                found.append(self._template(self._text[start : self._at].strip(" \t\r\n;"), words))
            self._at += 1  # the separator
        return found

    def _words(self) -> list[tuple[int, Word]]:
        """Read words up to a separator; each comes with its place."""
        words: list[tuple[int, Word]] = []
        while self._at < len(self._text) and self._text[self._at] not in ";\n":
            if self._text[self._at].isspace():
                self._at += 1
                continue
            start = self._at
            word = Word.of(self._parts())
            if any(slot.repeat for slot in word.slots) and len(word.parts) > 1:
                raise self._wrong(start, "a slot that repeats has to be a word of its own")
            words.append((start, word))
        return words

    def _parts(self) -> list[str | Slot]:
        """Read one word."""
        parts: list[str | Slot] = []
        text = ""
        quoted, opened = False, self._at
        while self._at < len(self._text):
            here = self._text[self._at]
            if not quoted and (here.isspace() or here == ";"):
                break
            if here == '"':
                quoted, opened = not quoted, self._at
            elif here == "'" and not quoted:
                end = self._text.find("'", self._at + 1)
                if end < 0:
                    raise self._wrong(self._at, "the quote is not closed")
                text += self._text[self._at + 1 : end]
                self._at = end
            elif here == "\\" and (not quoted or self._text[self._at + 1 : self._at + 2] in ('"', "\\")):
                self._at += 1
                if self._at == len(self._text):
                    raise self._wrong(self._at - 1, "nothing follows the backslash")
                text += self._text[self._at]
            elif here in "{}" and self._text[self._at + 1 : self._at + 2] == here:
                text += here
                self._at += 1
            elif here == "{":
                if text:
                    parts.append(text)
                    text = ""
                parts.append(self._slot())
            elif here == "}":
                raise self._wrong(self._at, "a } without its {; write }} for the character")
            else:
                text += here
            self._at += 1
        if quoted:
            raise self._wrong(opened, "the quote is not closed")
        return [*parts, text] if text or not parts else parts

    def _slot(self) -> Slot:
        """Read a slot; leaves the place at its closing brace."""
        start, depth = self._at, 0
        while self._at < len(self._text):
            here = self._text[self._at]
            if here == "\\":
                self._at += 1
            elif here == "{":
                depth += 1
            elif here == "}":
                depth -= 1
                if not depth:
                    break
            self._at += 1
        else:
            raise self._wrong(start, "the { is not closed; write {{ for the character")
        text = self._text[start : self._at + 1]
        given = _SLOT.fullmatch(text[1:-1])
        if given is None:
            raise self._wrong(start, f"{_shown(text)} is no slot; write {{name}}, {{name:type}} or {{name:type(...)}}")
        kind, arguments, repeat = given["type"] or "str", given["arguments"], given["repeat"] or ""
        make = _TYPES.get(kind)
        if make is None:
            raise self._wrong(start, f"there is no type {kind!r}; there are {', '.join(_TYPES)}")
        try:
            pattern, check, may_be_option = make(arguments)
        except ValueError as error:
            raise self._wrong(start, f"{_shown(text)}: {error}") from None
        return Slot(text, pattern, check, may_be_option, repeat)

    def _template(self, text: str, words: list[tuple[int, Word]]) -> Template:
        env: dict[str, Word] = {}
        rest = list(words)
        while rest:
            first = rest[0][1].parts[0]
            name = _ASSIGNMENT.match(first) if isinstance(first, str) else None
            if name is None:
                break
            place, word = rest.pop(0)
            if name[1].startswith(RESERVED):
                raise self._wrong(place, f"the variables {RESERVED}* are not for commands to set")
            left = (
                [part for part in (first[name.end() :], *word.parts[1:]) if part != ""]
                if isinstance(first, str)
                else []
            )
            env[name[1]] = Word.of(left or [""])
        if not rest:
            raise self._wrong(words[0][0], "variables without a program")
        place, program = rest[0]
        if program.literal is None:
            raise self._wrong(place, "the program itself cannot be a slot")
        if not program.literal:
            raise self._wrong(place, "the program has no name")
        if program.literal.lower() == ANY and len(rest) == 1:
            raise self._wrong(place, "'any' cannot be combined with templates")
        if "/" in program.literal and not program.literal.startswith("/"):
            raise self._wrong(
                place, "the program must be a name or an absolute path: relative ones are in the workspace"
            )
        repeated = [place for place, word in rest if word.repeat]
        if len(repeated) > 1:
            raise self._wrong(repeated[1], "only one slot of a template can repeat")
        return Template(text, env, tuple(word for _, word in rest))

    def _wrong(self, place: int, reason: str) -> ConfigError:
        near = " ".join(self._text[place : place + 30].split())
        return ConfigError(
            f"QUEUE_PG_COMMANDS makes no sense at character {place + 1} ({near!r}): {reason}.",
            setting="QUEUE_PG_COMMANDS",
            hint="docs/commands.md shows templates.",
        )


# --- types of slots: each takes the text in parentheses and returns (pattern, check, whether it may be an option) -----

_Made = tuple[str, Check, bool]
_ANYTHING: Final = ".+?"
_ANYTHING_OR_NOTHING: Final = ".*?"
# More digits than a number may have, so that what is too long can be said, and a bound on what is looked at.
_DIGITS: Final = "[0-9]{1,101}"
# What programs take at the beginning of a file name for something else: a list of arguments, a program, a home.
_NO_FILE: Final = "@|~"


def _no_arguments(name: str, given: str | None) -> None:
    if given is not None:
        raise ValueError(f"{name} takes nothing in parentheses")


def _str(given: str | None) -> _Made:
    _no_arguments("str", given)
    return _ANYTHING, lambda _: None, False


def _any(given: str | None) -> _Made:
    _no_arguments("any", given)
    # The empty word too: whoever writes `any` trusts whoever submits.
    return _ANYTHING_OR_NOTHING, lambda _: None, True


def _number(name: str, pattern: str, given: str | None, read: Callable[[str], float]) -> _Made:
    low, high = -math.inf, math.inf
    if given is not None:
        bounds = _RANGE.fullmatch(given.replace(" ", ""))
        if bounds is None:
            raise ValueError(f"{name} takes a range such as (1..100)")
        low, high = (read(bounds[1]) if bounds[1] else low), (read(bounds[2]) if bounds[2] else high)
        if low > high:
            raise ValueError("the range is empty")

    def check(value: str) -> str | None:
        if len(value) > 100:
            return "is too long a number"
        if not low <= read(value) <= high:
            return f"is not within {given}"
        return None

    # A negative number looks like an option; a range that names negative ones allows it.
    return pattern, check, -math.inf < low < 0


def _int(given: str | None) -> _Made:
    return _number("int", f"-?{_DIGITS}", given, int)


def _float(given: str | None) -> _Made:
    return _number("float", rf"-?{_DIGITS}(?:\.{_DIGITS})?(?:[eE][+-]?{_DIGITS})?", given, float)


def _path(given: str | None) -> _Made:
    _no_arguments("path", given)

    def check(value: str) -> str | None:
        if value.startswith("/"):
            return "is an absolute path; paths are relative to the workspace"
        first, *others = value.split("/")
        if ".." in (first, *others):
            return "leads out of the workspace"
        if value[0] in _NO_FILE or ":" in first:
            # `label:@/etc/passwd` makes a picture of that file, `host:file` is one of another machine.
            return f"may be no file to the program: it begins with {first[:30]!r}; begin it with './'"
        return None

    return _ANYTHING, check, False


def _url(given: str | None) -> _Made:
    schemes = [scheme.strip().lower() for scheme in (given or "http|https").split("|")]
    for scheme in schemes:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
            raise ValueError("url takes schemes such as (https|ssh)")

    def check(value: str) -> str | None:
        if any(character.isspace() or not character.isprintable() for character in value):
            return "holds a space or a control character"
        try:
            parsed = urlsplit(value)
            host = parsed.hostname
        except ValueError as error:
            return f"is no URL: {error}"
        if parsed.scheme not in schemes:
            return f"is not a URL of {' or '.join(schemes)}"
        # A host of its own could be an option to the program that the URL is handed on to.
        return "names no host" if not host or host.startswith("-") or parsed.netloc.startswith("-") else None

    return _ANYTHING, check, False


def _choice(given: str | None) -> _Made:
    choices = [choice.strip() for choice in (given or "").split("|")]
    if not all(choices):
        raise ValueError("choice takes words such as (fast|slow)")
    # The longest first, so that one that begins another does not hide it.
    found = "|".join(re.escape(choice) for choice in sorted(choices, key=len, reverse=True))
    return f"(?:{found})", lambda _: None, True


def _regex(given: str | None) -> _Made:
    if not given:
        raise ValueError("regex takes a regular expression in parentheses")
    try:
        pattern = re.compile(given)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None

    def check(value: str) -> str | None:
        return None if pattern.fullmatch(value) else "does not match"

    return _ANYTHING, check, False


_TYPES: Final[dict[str, Callable[[str | None], _Made]]] = {
    "str": _str,
    "int": _int,
    "float": _float,
    "path": _path,
    "url": _url,
    "choice": _choice,
    "regex": _regex,
    "any": _any,
}


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:97] + "...")
