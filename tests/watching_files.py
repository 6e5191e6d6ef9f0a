"""What docker/prometheus and docker/grafana ask of Prometheus: every expression, and its parts."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROMETHEUS = ROOT / "docker" / "prometheus"
GRAFANA = ROOT / "docker" / "grafana"
DASHBOARD: dict[str, Any] = json.loads(
    (GRAFANA / "dashboards" / "bondserve.json").read_text("utf-8")
)
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {str(rule["record"]) for rule in RULES if "record" in rule}
LABEL_VALUES = re.compile(r"label_values\((\w+), (\w+)\)")


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of PromQL and where it stands."""

    where: str
    expr: str
    legend: str = ""
    instant: bool = True


def rule_queries() -> list[Query]:
    return [Query(str(r.get("alert", r.get("record"))), str(r["expr"])) for r in RULES]


def panels() -> list[dict[str, Any]]:
    """The panels that show something, in their order."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def panel_queries(rate_interval: str = "1m") -> list[Query]:
    """Every query of the dashboard, as Grafana sends it with the variables as they are at first."""
    values = {"__rate_interval": rate_interval}
    for variable in DASHBOARD["templating"]["list"]:
        current = variable["current"]["value"]
        values[variable["name"]] = (
            variable["allValue"] if current == ["$__all"] else str(variable["current"]["value"])
        )
    return [
        Query(
            f"{panel['title']} {target['refId']}",
            re.sub(r"\$(\w+)", lambda found: values[found[1]], target["expr"]),
            target["legendFormat"],
            target.get("instant", False),
        )
        for panel in panels()
        for target in panel["targets"]
    ]


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric that an expression reads, and the labels that it is chosen by."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    """Label, operator (`=`, `!=`, `=~`, `!~`) and value."""


def _operator(op: promql_parser.MatchOp) -> str:
    """As it is written; the parser's own values can be compared and not hashed."""
    kinds = promql_parser.MatchOp
    return (
        "="
        if op == kinds.Equal
        else "!="
        if op == kinds.NotEqual
        else ("=~" if op == kinds.Re else "!~")
    )


def _nodes(expr: promql_parser.Expr) -> Iterator[promql_parser.Expr]:
    found: list[promql_parser.Expr] = []
    promql_parser.walk(expr, lambda node: found.append(node))
    return iter(found)


def selectors(expr: promql_parser.Expr) -> list[Selector]:
    """Every metric that is read. Raises `ValueError` for what is no PromQL."""
    return [
        Selector(
            node.name or "",
            tuple((m.name, _operator(m.op), m.value) for m in node.matchers.matchers),
        )
        for node in _nodes(expr)
        if isinstance(node, promql_parser.VectorSelector)
    ]


def grouped_labels(expr: promql_parser.Expr) -> list[tuple[set[str], list[Selector]]]:
    """The labels that each aggregation keeps, and the metrics that it is over."""
    return [
        (set(node.modifier.labels), selectors(node.expr))
        for node in _nodes(expr)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None
    ]
