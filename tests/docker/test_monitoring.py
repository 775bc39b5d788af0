"""Prometheus's rules and Grafana's dashboard: what they ask is PromQL, of metrics that the code has."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import promql_parser
import pytest
import yaml

from etl.settings import ROOT, Settings

PROMETHEUS, GRAFANA = ROOT / "docker" / "prometheus", ROOT / "docker" / "grafana"
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}

rules: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"][0]["rules"]
dashboard: dict[str, Any] = json.loads((GRAFANA / "realtime.json").read_text())
QUERIES = [rule["expr"] for rule in rules] + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def told_by_code() -> set[str]:
    """Names of the series that the code tells Prometheus; `up` is Prometheus's own."""
    found = {"up"}
    for path in (ROOT / "api").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=kind), args=[ast.Constant(value=str(name)), *_]) if kind in SUFFIXES:
                    found |= {name.removesuffix("_total") + suffix for suffix in SUFFIXES[kind]}
    return found


def asked(node: Any) -> set[str]:
    """Names of the series in a parsed query."""
    names = {node.name} if isinstance(node, promql_parser.VectorSelector) else set()
    parts = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
    parts += getattr(node, "args", None) or []
    return names.union(*(asked(part) for part in parts if part is not None))


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_series_that_the_code_has(query: str) -> None:
    names = asked(promql_parser.parse(query))
    assert names
    assert names <= told_by_code()


def test_what_is_no_promql_is_refused() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum(rate(up[5m])")


@pytest.mark.parametrize("rule", rules, ids=lambda rule: rule["alert"])
def test_an_alert_waits_says_how_urgent_it_is_and_stands_in_operations(rule: dict[str, Any]) -> None:
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch("[0-9]+m", rule["for"])
    assert rule["labels"]["severity"] in ("page", "warn")
    assert rule["annotations"]["summary"]
    assert f"`{rule['alert']}`" in (ROOT / "docs" / "operations.md").read_text()


def test_panels_lie_side_by_side_and_read_the_declared_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "datasource.yaml").read_text())["datasources"]
    taken = set()
    for panel in dashboard["panels"]:
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_prometheus_asks_the_ports_of_the_settings() -> None:
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    ports = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    fields = Settings.model_fields
    assert ports == {"api": [f"api:{fields['api_port'].default}"], "stream": [f"stream:{fields['stream_metrics_port'].default}"]}
