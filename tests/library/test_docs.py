"""What the guides show runs: SQL as it stands, Python at least compiles and names only what exists."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

import queue_pg
from queue_pg import Queue, logs
from queue_pg.tasks import Tasks
from queue_pg.testing import drain

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / guide).read_text(), re.DOTALL | re.MULTILINE)


async def test_the_sql_of_the_guide_to_events_runs(conn: psycopg.AsyncConnection) -> None:
    shown = blocks("events.md", "sql")
    assert shown
    for block in shown:
        await conn.execute(block)
    found = await (
        await conn.execute(
            "select e.type from queue_pg.all_jobs j cross join lateral queue_pg.events(j.id) e where j.queue = 'said'"
        )
    ).fetchall()
    assert [name for (name,) in found] == ["submitted", "started", "log", "progress"]
    [block] = [block for block in shown if "queue_pg.attempts(" in block]
    told = await (await conn.execute(block.rpartition(";\n\n")[2])).fetchall()
    assert [(row[:3], row[5:]) for row in told] == [
        ((1, "my-worker", "failed"), ("upstream", None, None)),
        ((2, "your-worker", "completed"), (None, "small", {"total_tokens": 7})),
    ]


async def test_the_python_of_the_guide_to_events_lists_attempts(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = [block for block in blocks("events.md", "python") if "queue.attempts(" in block]
    async with Queue(dsn, notify=False) as queue:
        job = await queue.submit("k")
        [claimed] = await queue.claim("w", ["default"])
        await queue.complete(claimed.id, claimed.lease_token)
        code = compile(block, "events.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        await eval(code, {"queue": queue, "job": job})  # noqa: S307
    assert re.fullmatch(r"1 w \d{4}-.* completed None\n", capsys.readouterr().out)


async def test_the_sql_of_the_guide_to_limits_runs(conn: psycopg.AsyncConnection) -> None:
    [setup, shares, why] = blocks("limits.md", "sql")
    await conn.execute(setup)
    await conn.execute(shares)
    await conn.execute("select queue_pg.pause_limit('key', 'openai')")
    found = await (await conn.execute(why)).fetchall()
    assert [row[0] for row in found] == ["limit_paused"]


async def test_the_handler_of_the_guide_to_events_runs(dsn: str) -> None:
    names: dict[str, Any] = {}
    exec(blocks("events.md", "python")[0], names)  # noqa: S102
    tasks = Tasks()
    tasks.add(names["translate"])
    async with Queue(dsn, notify=False) as queue:
        await queue.submit("translate", {"texts": ["a b", "c"]})
        [job] = await drain(queue, tasks)
        assert job.result == ["A B", "C"]
        said = [event.type for event in (await queue.events_page(job.id)).events]
    assert said == ["submitted", "started", *["log", "chunk", "progress"] * 2, "glossary", "completed"]


async def test_the_python_of_the_guide_to_limits_runs(dsn: str) -> None:
    code = compile(blocks("limits.md", "python")[0], "limits.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    tasks = Tasks()
    async with Queue(dsn, notify=False) as queue:
        names: dict[str, Any] = {"queue": queue, "task": tasks.task}
        await eval(code, names)  # noqa: S307
        [limit] = await queue.limits()
        assert (limit.name, limit.status, limit.rate) == ("openai", "paused", 60)
        [job] = (await queue.list()).jobs
        assert (job.limit_key, job.cost) == ("openai", 3)
        job = await names["summarise"].using(queue=queue).submit(7, "x")
        assert (job.limit_key, job.cost) == ("user:7", 2)


async def test_what_makes_jobs_in_the_guide_to_limits_has_keys(dsn: str) -> None:
    code = compile(blocks("limits.md", "python")[1], "limits.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    async with Queue(dsn, notify=False) as queue:
        await eval(code, {"queue": queue})  # noqa: S307
        assert (await queue.get_schedule("digest")).limit_key == "openai"
        made = await queue.submit_template("ask", {"user": "ann"})
        assert (await queue.get(made.id)).limit_key == "user:ann"
        assert (await queue.get_limit("queue", "default")).ageing_seconds == 600


async def test_the_handler_of_the_guide_to_artifacts_runs(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text("ran")
    names: dict[str, Any] = {"make_rows": lambda rows: (f"{n}\n".encode() for n in range(rows))}
    exec(blocks("artifacts.md", "python")[0].replace("/tmp/run.txt", str(tmp_path / "run.txt")), names)  # noqa: S102, S108
    tasks = Tasks()
    tasks.add(names["report"])
    async with Queue(dsn, notify=False) as queue:
        await queue.submit("report", {"rows": 3})
        [job] = await drain(queue, tasks)
        kept = {artifact.name: artifact.size for artifact in await queue.artifacts(job.id)}
        assert kept == {"report.csv": 6, "logs/run.txt": 3}
        reader = await queue.open_artifact(job.id, "report.csv")
        assert (await reader.read(), reader.artifact.sha256) == (b"0\n1\n2\n", job.result)


async def test_the_sql_of_the_guide_to_operations_runs(conn: psycopg.AsyncConnection) -> None:
    [horizon, leader] = blocks("operations.md", "sql")
    for shown, wanted in ((horizon, {"kind", "pid", "dead_rows"}), (leader, {"leader", "leader_until"})):
        found = await conn.execute(shown)
        assert wanted <= {column.name for column in found.description or []}


async def test_the_sql_guide_runs(dsn: str, conn: psycopg.AsyncConnection) -> None:
    shown = blocks("sql.md", "sql")
    assert len(shown) > 5
    for block in shown:
        await conn.execute(block)
    async with Queue(dsn, notify=False) as queue:
        states = sorted(job.state for job in (await queue.list()).jobs)
    assert {"completed", "scheduled", "cancelled"} <= set(states)


async def test_the_handler_of_the_guide_to_metrics_logs_as_shown(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    names: dict[str, Any] = {"__name__": "app"}
    exec(blocks("metrics.md", "python")[0], names)  # noqa: S102
    tasks = Tasks()
    tasks.add(names["shout"])
    caplog.handler.setFormatter(logs.formatter("json"))
    caplog.set_level("INFO", "app")
    async with Queue(dsn, notify=False) as queue:
        job = await queue.submit("shout", {"text": "hello"}, metadata={"request_id": "order-17"})
        await drain(queue, tasks)
    [line] = [json.loads(line) for line in caplog.text.splitlines()]
    shown = json.loads(blocks("metrics.md", "json")[0])
    assert {**shown, "time": line["time"], "job_id": str(job.id)} == line


async def test_the_sql_of_dependencies_runs(dsn: str, conn: psycopg.AsyncConnection) -> None:
    [block] = blocks("dependencies.md", "sql")
    await conn.execute(block)
    async with Queue(dsn, notify=False) as queue:
        states = sorted(job.state for job in (await queue.list()).jobs)
    assert states == ["queued", "queued", "waiting", "waiting", "waiting"]


async def test_the_page_about_steps_runs(conn: psycopg.AsyncConnection) -> None:
    shown = blocks("steps.md", "sql")
    assert len(shown) == 3
    for block in shown:
        await conn.execute(block)
    cursor = await conn.execute("select name, type, finished_at is not null from queue_pg.job_steps order by begun_at")
    assert await cursor.fetchall() == [("draft", "step", True), ("answer", "event", False)]
    cursor = await conn.execute("select payload from queue_pg.jobs where rerun_of is not null")
    assert await cursor.fetchall() == [({"prompt": "Say hello", "model": "large", "temperature": 0.2},)]


async def test_the_guide_to_scaling_runs(dsn: str, conn: psycopg.AsyncConnection) -> None:
    await conn.execute("insert into queue_pg.jobs (kind, queue) select 'k', 'mail' from generate_series(1, 3)")
    await conn.execute("insert into queue_pg.jobs (kind) select 'k' from generate_series(1, 30)")
    states, scale = blocks("scaling.md", "sql")
    drain, look, resume = (part for part in states.split(";") if part.strip())
    await conn.execute(drain)
    assert await (await conn.execute(look)).fetchall() == [("mail", "draining", 0, 0, 3, 0)]
    await conn.execute(resume)
    wanted, told = (part for part in scale.split(";") if part.strip())
    assert await (await conn.execute(wanted)).fetchone() == (3,)
    assert await (await conn.execute(told)).fetchone() == (1, "active", 30, 0, 30)
    async with Queue(dsn, notify=False) as queue:
        code = compile(blocks("scaling.md", "python")[0], "scaling.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        names: dict[str, Any] = {"queue": queue}
        await eval(code, names)  # noqa: S307
        assert names["found"].desired_workers == 3


async def test_the_guide_to_replaying_runs(dsn: str, conn: psycopg.AsyncConnection) -> None:
    async with Queue(dsn, notify=False) as queue:
        for _ in range(2):
            await queue.submit("send", queue="mail")
            for claimed in await queue.claim("w", ["mail"]):
                await queue.fail(claimed.id, claimed.lease_token, {"code": "timeout"}, retry=False)
        code = compile(blocks("replay.md", "python")[0], "replay.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        names: dict[str, Any] = {"queue": queue, "JobFilter": queue_pg.JobFilter}
        await eval(code, names)  # noqa: S307
        assert names["result"].changed == 2
        for claimed in await queue.claim("w", ["mail"], max_jobs=2):
            await queue.fail(claimed.id, claimed.lease_token, {"code": "timeout"}, retry=False)
    [block] = blocks("replay.md", "sql")
    look, act, _ = block.split(";")
    assert await (await conn.execute(look)).fetchall() == [("timeout", 2)]
    assert (await (await conn.execute(act)).fetchone() or ())[:2] == (2, 2)


async def test_the_sql_of_the_guide_to_batches_runs(conn: psycopg.AsyncConnection) -> None:
    for block in blocks("batches.md", "sql"):
        await conn.execute(block)
    found = await (await conn.execute("select state, total, completed from queue_pg.batch_progress")).fetchall()
    assert found == [("closed", 3, 0)]


async def test_the_sql_of_the_guide_to_webhooks_runs(conn: psycopg.AsyncConnection) -> None:
    [block] = blocks("webhooks.md", "sql")
    await conn.execute(block)
    found = await (await conn.execute("select kind, payload -> 'body' from queue_pg.jobs")).fetchall()
    assert found == [("webhook", {"hello": "world"})]


async def test_the_sql_of_the_guide_to_templates_runs(conn: psycopg.AsyncConnection) -> None:
    for block in blocks("templates.md", "sql"):
        await conn.execute(block)
    found = await (await conn.execute("select payload ->> 'prompt' from queue_pg.jobs order by id")).fetchall()
    assert found == [("Greet the world",), ("Greet Ada",), ("short",)]


async def test_templates_share_results_as_the_guide_says(dsn: str) -> None:
    [block] = [block for block in blocks("templates.md", "python") if "cache_for" in block]
    put, *submit = re.split(r"^(?=made = )", block, flags=re.MULTILINE)
    async with Queue(dsn, notify=False) as queue:
        names: dict[str, Any] = {"queue": queue}

        async def run(line: str) -> Any:
            code = compile(line, "templates.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            await eval(code, names)  # noqa: S307
            return names.get("made")

        await run(put)
        states = [(await queue.get((await run(line)).id)).state for line in [submit[0], *submit]]
        assert states == ["queued", "waiting", "queued"]


async def test_the_planner_of_the_guide_to_tasks_plans(dsn: str) -> None:
    tasks = Tasks()
    names: dict[str, Any] = {}
    [block] = [block for block in blocks("tasks.md", "python") if "by_lines" in block]
    exec(block, names)  # noqa: S102
    tasks.add(names["by_lines"])
    async with Queue(dsn, notify=False) as queue:
        given = {"planner": "llm", "model": "m", "max_attempts": 2, "timeout": 9.0, "subtask_queue": "mine"}
        for more in ({"planner": "llm"}, given):
            task = await queue.submit_task(queue_pg.NewTask(description="one\ntwo", **more))
            await drain(queue, tasks)
            assert (await queue.get_task(task.id)).subtasks == ["one", "two"]
        job = (await queue.get_task(f"{task.id}-0")).job
        assert (job.queue, job.max_attempts, job.timeout.total_seconds()) == ("mine", 2, 9)


async def test_the_sql_of_the_guide_to_tasks_runs(conn: psycopg.AsyncConnection) -> None:
    for block in blocks("tasks.md", "sql"):
        await conn.execute(block)
    found = await (
        await conn.execute(
            "select queue::text, count(*) from queue_pg.jobs where kind = 'subtask' group by 1 order by 1"
        )
    ).fetchall()
    assert found == [("mail", 2), ("work_queue", 4)]


async def test_the_sql_of_the_guide_to_shared_results_runs(conn: psycopg.AsyncConnection) -> None:
    for block in blocks("caching.md", "sql"):
        await conn.execute(block)
    found = await (await conn.execute("select state::text, priority from queue_pg.jobs order by id")).fetchall()
    assert found == [("waiting", 0), ("queued", 5), ("waiting", 0), ("queued", 0)]


PYTHON = [
    block
    for guide in (
        "artifacts",
        "console",
        "http",
        "limits",
        "workers",
        "python",
        "templates",
        "batches",
        "dependencies",
        "events",
        "steps",
        "webhooks",
        "tasks",
        "caching",
        "schedules",
        "commands",
    )
    for block in blocks(f"{guide}.md", "python")
]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.strip().splitlines()[0][:40])
def test_the_python_guide_compiles(block: str) -> None:
    compile(block, "python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for name in re.findall(r"\bqueue\.(\w+)\(", block):
        assert hasattr(Queue, name)
    for names in re.findall(r"from queue_pg import ([\w, ]+)", block):
        assert set(names.split(", ")) <= set(queue_pg.__all__)
