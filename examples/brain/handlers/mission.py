"""Tasks of missions."""

from __future__ import annotations

from typing import Any

from brain.payloads import RunMission


async def run_mission(payload: RunMission) -> dict[str, Any]:
    return {"mission_id": payload.mission_id, "done": [f"{step}: done" for step in payload.steps]}
