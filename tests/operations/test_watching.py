"""Rules, dashboard and scrape configuration ask for nothing that a gateway does not tell."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from running_gateway import MakeConfig, Run
from watching_files import (
    ALERTS,
    DASHBOARD,
    GRAFANA,
    LABEL_VALUES,
    PROMETHEUS,
    RECORDED,
    ROOT,
    RULES,
    Query,
    grouped_labels,
    panel_queries,
    panels,
    rule_queries,
    selectors,
)

from bond_core.types import Arm, PolicyState
from bond_server.shedding import ANSWERING

QUERIES = [*rule_queries(), *panel_queries()]
OF_THE_SCRAPE = {"instance", "job", "role"}
"""Labels that Prometheus adds to every sample (`role` to those of vLLM)."""
OF_PROMETHEUS = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity"}}
VALUES = {
    "arm": {arm.value for arm in Arm},
    "status": {"ok", "failed", "cancelled"},
    "reason": {"queue_full", "queue_timeout", "too_many_requests", "left"},
    "verdict": {"passed", "refused"},
    "alertstate": {"pending", "firing"},
    "method": {"POST"},
    "job": {"gateway", "vllm", "prometheus"},
}
"""What labels with few values can be. `state` and `role` mean more than one thing, see below."""
STATES = {
    "bond_training_state": {
        "starting", "waiting", "training", "evaluating", "stopped", "failed",
    },
    "bond:training_state:max": {
        "starting", "waiting", "training", "evaluating", "stopped", "failed",
    },
    "bond_policy_versions": {state.value for state in PolicyState},
}  # fmt: skip

Known = Mapping[str, set[str]]


@pytest.fixture
async def known(run: Run, make_config: MakeConfig) -> Known:
    """Every name under which a gateway exposes samples, with its labels."""
    found: dict[str, set[str]] = {}
    async with run(make_config()) as running:
        registry = running.gateway.metrics.registry
        for collector in list(registry._collector_to_names):
            for family in collector.collect():
                labels: Any = getattr(collector, "_labelnames", None)
                if labels is None:
                    labels = getattr(family, "_labelnames", ())
                suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count"]}.get(
                    family.type, [""]
                )
                for suffix in suffixes:
                    extra = {"le"} if suffix == "_bucket" else set[str]()
                    found[family.name + suffix] = {*labels, *extra}
        exposed = (await running.client.get("/metrics")).text
    for name in re.findall(r"^(bond_\w+)[ {]", exposed, re.MULTILINE):
        if not name.endswith(("_created", "_sum")):
            assert name in found
        elif name.endswith("_sum"):
            found[name] = found[name.removesuffix("_sum") + "_count"]
    return found


def test_the_registry_is_read_right(known: Known) -> None:
    assert known["bond_requests_total"] == {"arm", "status"}
    assert known["bond_request_latency_seconds_bucket"] == {"arm", "le"}
    assert known["bond_server_up"] == {"role", "server"}
    assert known["bond_training_state"] == {"state"}
    assert known["bond_gate_verdicts_total"] == {"verdict"}


def problems(query: Query, known: Known) -> list[str]:
    """What an expression asks for and nobody tells."""
    expr = promql_parser.parse(query.expr)
    wrong: list[str] = []
    for selector in selectors(expr):
        metric = selector.metric
        if metric in RECORDED:
            continue
        if metric not in known and metric not in OF_PROMETHEUS:
            wrong.append(f"there is no metric {metric!r}")
            continue
        labels = {**known, **OF_PROMETHEUS}[metric] | OF_THE_SCRAPE
        wrong += [f"{metric} has no label {n}" for n, _, _ in selector.matchers if n not in labels]
    for kept, over in grouped_labels(expr):
        for selector in over:
            if selector.metric in known:
                missing = kept - known[selector.metric] - OF_THE_SCRAPE
                wrong += [f"{selector.metric} has no label {name}" for name in sorted(missing)]
    for selector in selectors(expr):
        for name, operator, value in selector.matchers:
            options = STATES[selector.metric] if name == "state" else VALUES.get(name)
            if options is None or (value == ".*"):
                continue
            if operator in ("=", "!="):
                wrong += [] if value in options else [f"{name} is never {value}"]
            else:
                parts = re.fullmatch(r"[\w|]+", value) and value.split("|")
                wrong += [f"{name} is never {p}" for p in parts or () if p not in options]
    return wrong


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("sum(rate(bond_request_total[5m]))", "there is no metric 'bond_request_total'"),
        ("bond_requests", "there is no metric 'bond_requests'"),
        ('bond_requests_total{policy="x"}', "bond_requests_total has no label policy"),
        ("sum by (route) (bond_requests_total)", "bond_requests_total has no label route"),
        ('bond_requests_total{status=~"ok|done"}', "status is never done"),
        ('bond_training_state{state="asleep"}', "state is never asleep"),
        ("rate(bond_reward_sum[5m])", "there is no metric 'bond_reward_sum'"),
    ],
)
def test_what_does_not_exist_is_found(known: Known, expr: str, problem: str) -> None:
    assert problems(Query("here", expr), known) == [problem]


def test_every_query_asks_for_what_a_gateway_tells(known: Known) -> None:
    assert len(QUERIES) > 60
    found = {query.where: problems(query, known) for query in QUERIES}
    assert {where: wrong for where, wrong in found.items() if wrong} == {}


def test_variables_of_the_dashboard_ask_for_what_a_gateway_tells(known: Known) -> None:
    [definition] = [
        v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"
    ]
    found = LABEL_VALUES.fullmatch(definition)
    assert found is not None
    assert found[1] in known
    assert found[2] in known[found[1]] | OF_THE_SCRAPE


def test_availability_is_that_of_the_routes_that_answer() -> None:
    chosen = {
        value
        for query in rule_queries()
        for selector in selectors(promql_parser.parse(query.expr))
        for name, _, value in selector.matchers
        if name == "route"
    }
    [pattern] = chosen
    assert {route for route in ANSWERING if re.fullmatch(pattern, route)} == set(ANSWERING)
    assert not re.fullmatch(pattern, "/v1/chat/completions/{completion_id}")


def test_what_all_gateways_tell_alike_is_never_summed() -> None:
    from_the_store = re.compile(r"bond_(store_|training_|gate_|served_|policy_versions|kl_budget)")
    for query in QUERIES:
        expr = promql_parser.parse(query.expr)
        if any(from_the_store.match(s.metric) for s in selectors(expr)):
            assert not re.search(r"\b(sum|count|avg)\b", query.expr), query.where


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"].endswith(".")
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == rule["alert"].lower()
    assert anchor in anchors(ROOT / file)


def test_every_alert_is_tested_firing_and_quiet() -> None:
    document = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text("utf-8"))
    cases = [case for test in document["tests"] for case in test.get("alert_rule_test", ())]
    for rule in ALERTS:
        expected = [bool(c["exp_alerts"]) for c in cases if c["alertname"] == rule["alert"]]
        assert {True, False} <= set(expected), rule["alert"]
    groups = [g["name"] for g in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]]
    assert document["group_eval_order"] == groups


def test_names_of_rules_are_given_once() -> None:
    names = [rule.get("alert", rule.get("record")) for rule in RULES]
    assert len(names) == len(set(names))


def test_grafana_finds_the_data_source_and_the_dashboard() -> None:
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/bondserve.yaml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    wanted = {"type": "prometheus", "uid": source["uid"]}
    scrape = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    for panel in panels():
        assert panel["datasource"] == wanted
        assert all(target["datasource"] == wanted for target in panel["targets"])
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identifiers) == len(set(identifiers))


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
