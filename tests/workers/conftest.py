"""Fixtures of the worker tests; their helper modules are imported by name."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from queue_pg import Queue

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
async def queue(dsn: str) -> AsyncIterator[Queue]:
    """A client of the test's database."""
    async with Queue(dsn) as client:
        yield client
