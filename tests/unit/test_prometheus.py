"""Tests of what is given to Prometheus and Grafana: alerts, and a dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmconsume.engine.states import Snapshot, Stats
from fmconsume.identity import Identity
from fmconsume.service import metrics
from fmconsume.service.history import History

from .prometheus import promtool
from .test_history import make_outcome

HOUSE = Path(__file__).parents[2]
RULES = HOUSE / "etc" / "fmconsume.rules.yml"
DASHBOARD = HOUSE / "etc" / "grafana-dashboard.json"


@pytest.fixture(scope="module")
def given() -> set[str]:
    """The names of all series that a consumer gives."""
    history = History(Stats, queues=["fruit"], identity=Identity("sample", "far", 4711))
    for received in (0, 1):
        history.on_tick(Snapshot(history.state, Stats(received=received), broker="far"))
    history.on_depths({"fruit": 1})
    history.on_outcome(make_outcome())
    text = metrics.write(history, "")[1].decode()
    return set(re.findall(r"^(fmconsume_\w+)", text, re.MULTILINE))


def list_names(expression: str) -> set[str]:
    """List the metrics of ours that an expression asks for."""
    return set(re.findall(r"\bfmconsume_\w+", expression))


# -- the alerts


def test_rules_check() -> None:
    """Prometheus reads the rules."""
    assert "3 rules found" in promtool("check", "rules", RULES)


def test_rules_come_and_go() -> None:
    """Each alert comes when it should, and only then."""
    assert "SUCCESS" in promtool("test", "rules", HOUSE / "tests" / "fmconsume.rules-test.yml")


def test_rules_metrics(given: set[str]) -> None:
    """A consumer gives every metric that an alert is about."""
    names = list_names(RULES.read_text(encoding="utf-8"))
    assert len(names) >= 6
    assert names <= given


# -- the dashboard


def find_values(node: Any, key: str) -> Iterator[Any]:
    """Find the values of a key, at any depth."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == key)
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from find_values(child, key)


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    read: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return read


def test_dashboard_metrics(dashboard: dict[str, Any], given: set[str]) -> None:
    """A consumer gives every metric that the dashboard shows or chooses by."""
    for expression in [*find_values(dashboard, "expr"), *find_values(dashboard, "definition")]:
        assert list_names(expression), expression
        assert list_names(expression) <= given, expression


def test_dashboard_shows_everything(dashboard: dict[str, Any], given: set[str]) -> None:
    """Hardly a metric is left out."""
    shown = set().union(*map(list_names, find_values(dashboard, "expr")))
    rest = {re.sub("_(bucket|count|sum)$", "", name) for name in given - shown}
    assert rest - {re.sub("_bucket$", "", name) for name in shown} == {
        "fmconsume_received_total",
        "fmconsume_uptime_seconds",
        "fmconsume_tick_age_seconds",
    }


def test_dashboard_expressions(dashboard: dict[str, Any], tmp_path: Path) -> None:
    """Prometheus understands every expression, once Grafana has put in its variables."""
    expressions = list(find_values(dashboard, "expr"))
    rules = [
        {"record": f"shown:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions)
    ]
    path = tmp_path / "shown.yml"
    path.write_text(json.dumps({"groups": [{"name": "shown", "rules": rules}]}))
    assert f"{len(expressions)} rules found" in promtool("check", "rules", path)


def test_dashboard_panels(dashboard: dict[str, Any]) -> None:
    """Every panel has a number and a place of its own, and is about the chosen consumers."""
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (panel["gridPos"]["y"] + row, panel["gridPos"]["x"] + column)
        for panel in panels
        for row in range(panel["gridPos"]["h"])
        for column in range(panel["gridPos"]["w"])
    ]
    assert len(set(places)) == len(places)
    assert max(column for _, column in places) < 24
    for expression in find_values(dashboard, "expr"):
        assert expression.count("fmconsume_") == expression.count('{instance=~"$instance"')
