"""The demo's input: one summarisation request for each documented module of the Python standard library.

The texts are on every machine that has Python, they are real prose of very different lengths, and nothing has to be
downloaded. Sources are read, not imported: importing has side effects (`antigravity` opens a browser).
"""

from __future__ import annotations

import ast
import importlib.machinery
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from queue_pg.models import NewJob

MAX_TEXT_CHARS = 6000
MIN_TEXT_CHARS = 20
INSTRUCTION = "Summarise what this module of the Python standard library is for, in one sentence for a newcomer."

# Modules in C have no source to read; these are plain to import, in a process of their own.
_READ_C_MODULES = """
import importlib, json, sys
docs = {}
for name in json.load(sys.stdin):
    try:
        docs[name] = importlib.import_module(name).__doc__ or ""
    except Exception:
        pass
json.dump(docs, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Module:
    """A module and what its documentation says."""

    name: str
    text: str


def documented_modules() -> list[Module]:
    """Return the documented public modules of this Python's standard library, by name."""
    folders = [sysconfig.get_path("stdlib"), cast("str | None", sysconfig.get_config_var("DESTSHARED")) or ""]
    texts: dict[str, str] = {}
    compiled: list[str] = []
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_"):
            continue
        spec = importlib.machinery.BuiltinImporter.find_spec(name)
        spec = spec or importlib.machinery.PathFinder.find_spec(name, folders)
        if spec is None or spec.loader is None:
            continue  # a module of another operating system
        if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            texts[name] = _documentation(spec.loader.get_source(name) or "")
        else:
            compiled.append(name)
    texts.update(_compiled_documentation(compiled))
    return [Module(name, text[:MAX_TEXT_CHARS]) for name, text in sorted(texts.items()) if len(text) >= MIN_TEXT_CHARS]


def _documentation(source: str) -> str:
    """Return the docstring of the module, or those of its public classes and functions when it has none."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    own = ast.get_docstring(tree)
    if own:
        return own
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            text = ast.get_docstring(node)
            if text:
                found.append(f"{node.name}: {text}")
    return "\n\n".join(found)


def _compiled_documentation(names: list[str]) -> Mapping[str, str]:
    done = subprocess.run(  # noqa: S603  (our own text, run by this interpreter)
        [sys.executable, "-I", "-c", _READ_C_MODULES],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return {}
    return cast("dict[str, str]", json.loads(done.stdout))


def request(module: Module) -> dict[str, Any]:
    """Return the payload of the `chat` job that asks for one module's summary."""
    return {
        "messages": [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": f"Module {module.name}\n\n{module.text}"},
        ],
        "max_tokens": 120,
        # Only the mock provider reads this: it takes longer for longer texts, as models do.
        "mock": {"latency_seconds": round(0.2 + 0.8 * len(module.text) / MAX_TEXT_CHARS, 3)},
    }


def summary_jobs(*, tag: str, queue: str = "default", modules: int | None = None) -> Iterator[NewJob]:
    """Yield one `chat` job per documented module, all with `tag` and with the module's name in `metadata`."""
    for module in documented_modules()[:modules]:
        yield NewJob(kind="chat", payload=request(module), queue=queue, tags=[tag], metadata={"module": module.name})
