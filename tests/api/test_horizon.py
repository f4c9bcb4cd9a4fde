"""/stats on who keeps dead rows from being removed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from queue_pg_api import answers

from queue_pg import store
from queue_pg.models import Horizon


async def test_stats_name_who_holds_the_horizon(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers.StatsAnswer.model_validate((await client.get("/stats")).json()).horizon is None
    holder = Horizon(
        kind="session",
        pid=4711,
        name="report",
        username="app",
        database="shop",
        state=None,
        visible=False,
        age_seconds=None,
        age_transactions=5_000,
        query=None,
        dead_rows=12_345,
        jobs_bytes=2**20,
    )

    async def held(_: Any) -> Horizon:
        return holder

    monkeypatch.setattr(store, "horizon", held)
    found = answers.StatsAnswer.model_validate((await client.get("/stats")).json()).horizon
    assert found is not None
    assert (found.pid, found.dead_rows, found.visible) == (4711, 12_345, False)
