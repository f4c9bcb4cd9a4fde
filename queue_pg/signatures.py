"""A function's signature as a pydantic model, and calls of it as JSON objects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from queue_pg.errors import InvalidJob
from queue_pg.payloads import sanitise_text

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=False, protected_namespaces=(), validate_by_alias=True)
_KINDS = inspect.Parameter


def payload_model(function: Callable[..., Any]) -> type[BaseModel]:
    """Return the model of the parameters; unknown fields are refused. Raises TypeError if JSON can't call it."""
    place = f"{function.__module__}.{function.__qualname__}"
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"{place}: the annotation {error.name!r} must be importable in its module") from error
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (_KINDS.VAR_POSITIONAL, _KINDS.VAR_KEYWORD, _KINDS.POSITIONAL_ONLY):
            raise TypeError(
                f"{place}: the parameter {parameter} cannot come from a JSON object; name and annotate each"
            )
        required = parameter.default is _KINDS.empty
        name = _field_name(parameter.name)
        made = Field(alias=parameter.name) if required else Field(default=parameter.default, alias=parameter.name)
        fields[name] = (hints.get(parameter.name, Any), made)
    return create_model(function.__name__, __config__=_CONFIG, __module__=function.__module__, **fields)


def named_arguments(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name. Raises InvalidJob for too many; what is missing the model will say."""
    names = list(inspect.signature(function).parameters)
    if len(args) > len(names):
        raise InvalidJob("payload", f"{len(args)} positional arguments for {len(names)} parameters")
    named = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in named:
            raise InvalidJob(f"payload.{name}", "given twice, by position and by name")
        named[name] = value
    return named


def refusal(error: ValidationError) -> InvalidJob:
    """Return the first thing that pydantic found wrong with a payload, naming its place."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = found[0]
    path = "payload"
    for step in first["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    reason = {
        "missing": "is missing",
        "extra_forbidden": "is not a parameter",
        "model_type": "must be a JSON object",
    }.get(first["type"], re.sub(r"^Value error, ", "", first["msg"]))
    others = len(found) - 1
    hint = f"{others} more {'value is' if others == 1 else 'values are'} wrong too." if others else None
    return InvalidJob(sanitise_text(path, 200), reason, hint=hint)


def _field_name(parameter: str) -> str:
    """Return a name that pydantic takes as a field: parameters may be called `schema`, `json` or `_private`."""
    if parameter.startswith("_") or hasattr(BaseModel, parameter):
        return f"parameter_{parameter.strip('_')}"
    return parameter
