"""deploy/grafana and deploy/prometheus: what they ask for is what API and worker tell."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser as promql
import psycopg
import pytest
import yaml
from in_process import finished, running
from prometheus_client.parser import text_string_to_metric_families

from queue_pg import Queue
from queue_pg.tasks import Tasks

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "queue-pg.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
# The values of each label of each metric.
Told = dict[str, dict[str, set[str]]]
# Labels that Prometheus adds to what it scrapes.
OF_TARGETS = {"instance", "job"}


def tell(text: str, told: Told) -> None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values = told[sample.name]
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)


@pytest.fixture
async def told(dsn: str, api: httpx.AsyncClient, queue: Queue, conn: psycopg.AsyncConnection) -> Told:
    """Everything that is told after some work."""
    found: Told = defaultdict(dict)
    tasks = Tasks()

    @tasks.task(max_attempts=1)
    async def broken() -> None:
        raise ValueError

    await conn.execute("select queue_pg.set_limit('queue', 'default', 100)")
    async with running(dsn, tasks, metrics_port=0, maintenance=False) as worker:
        for kind in ("chat", "broken"):
            await finished(queue, (await queue.submit(kind, {"prompt": "x"} if kind == "chat" else {})).id)
        worker.signals.emit("database_error", "claiming")
        tell((await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{worker.metrics_port}/metrics")).text, found)
    await api.get("/livez")
    tell((await api.get("/metrics")).text, found)
    return found


def parts(expression: promql.Expr) -> Iterator[Any]:
    found: list[Any] = []
    promql.walk(expression, found.append)
    return iter(found)


def wrong(text: str, told: Told) -> list[str]:
    """Return what is wrong with an expression: metrics that nobody tells, labels and values that they do not have."""
    expression = promql.parse(re.sub(r"\$__\w+", "5m", text))
    found: list[str] = []
    for selector in (part for part in parts(expression) if isinstance(part, promql.VectorSelector)):
        if selector.name not in told:
            found.append(f"{selector.name} is not told")
            continue
        labels = told[selector.name]
        for matcher in selector.matchers.matchers:
            values = labels.get(matcher.name)
            if values is None:
                found.append(f"{selector.name} has no label {matcher.name}")
            elif matcher.op == promql.MatchOp.Equal and matcher.value not in values:
                found.append(f"{selector.name} has no {matcher.name} {matcher.value}")
    names = {selector.name for selector in parts(expression) if isinstance(selector, promql.VectorSelector)}
    known = OF_TARGETS | {label for name in names for label in told.get(name, {})}
    for part in parts(expression):
        if isinstance(part, promql.AggregateExpr) and part.modifier is not None:
            found += [f"no label {label} to group by" for label in part.modifier.labels if label not in known]
    return found


def test_a_name_that_is_wrong_is_found() -> None:
    told: Told = {"a_total": {"state": {"failed"}, "queue": {"q"}}}
    assert wrong('sum by (queue) (rate(a_total{state="failed"}[5m]))', told) == []
    assert wrong("rate(b_total[5m])", told) == ["b_total is not told"]
    assert wrong('a_total{stat="failed"}', told) == ["a_total has no label stat"]
    assert wrong('a_total{queue="x"}', told) == ["a_total has no queue x"]
    assert wrong("sum by (kind) (a_total)", told) == ["no label kind to group by"]
    with pytest.raises(ValueError, match=r"unexpected|unclosed|eof|parenthesis"):
        wrong("sum(a_total", told)


async def test_every_panel_shows_what_is_told(told: Told) -> None:
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"]]
    assert len(expressions) > 30
    assert {text: found for text in expressions if (found := wrong(text, told))} == {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["query"]["query"])
            assert asked is not None
            assert asked[2] in told[asked[1]]


async def test_every_alert_asks_for_what_is_told(told: Told) -> None:
    assert len(RULES) > 10
    assert {rule["alert"]: found for rule in RULES if (found := wrong(rule["expr"], told))} == {}


def test_the_dashboard_holds_together() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS)))
    assert used - {"__rate_interval"} == variables
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)
    assert all("description" in panel and panel["title"] for panel in PANELS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do_with_labels_that_it_has(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"QueuePg[A-Z]\w+", rule["alert"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}
    grouped = re.findall(r"by \(([\w, ]+)\)", rule["expr"])
    labels = {label for group in grouped for label in group.split(", ")}
    said = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", said)) <= labels
    assert rule["alert"] in (DEPLOY.parent / "docs" / "metrics.md").read_text("utf-8")


def test_totals_are_not_added_up_over_the_processes_of_the_api() -> None:
    # They are the same in each: a sum over instances would count them once for each process.
    totals = r"queue_pg_(?:jobs_finished|attempts_retried|lease_losses|webhooks_failed)_total|queue_pg_queue_jobs"
    for text in [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]:
        for found in re.finditer(totals, text):
            assert re.search(r"max by \(org, queue(?:, state)?\) \((?:\w+\()?$", text[: found.start()]), text
