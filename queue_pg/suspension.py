"""How a handler is left whose job waits; see steps.py."""

from __future__ import annotations

from typing import cast


class Suspended(BaseException):
    """Leaves a handler whose job sleeps or waits for an event. Let it pass; `except Exception` does.

    No Exception, because a handler that takes it for a failure would go on as if the wait were over.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"waits for {name!r}")
        self.name = name


def is_suspension(error: BaseException) -> bool:
    """Tell whether a handler was left because its job waits. Waits of a TaskGroup come as a group."""
    if isinstance(error, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", error).split(Suspended)[1] is None
    return isinstance(error, Suspended)
