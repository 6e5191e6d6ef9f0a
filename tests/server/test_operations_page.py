"""docs/operations.md is whole: every metric, every header of an answer, and every setting of the
running gateway are in it, and no metric that does not exist."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
from api_keys import bearer, make_key
from header_names import headers_in_the_code
from held_engine import Held
from pydantic import BaseModel
from running_gateway import MakeConfig, Run, Running

from bond_core.config import BondConfig, PricesConfig
from bond_core.store import KeyLimits
from bond_server.metrics import Metrics
from bond_server.metrics.upstreams import Upstreams
from bond_server.services.pricing import pricing_of
from bond_server.store_metrics import StoreMetrics

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
NAMED = set(re.findall(r"`([^`\n]+)`", DOCUMENT))
OF_THE_GATEWAY = ("server", "access", "admission", "store", "tracing")
"""Sections of the configuration that an operator sets; all others are in configuration.md."""
OF_THE_TRANSPORT = {"content-type", "content-length"}


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    priced = Metrics()
    pricing_of(PricesConfig(prompt_tokens=1), priced)
    collectors = (priced.registry, StoreMetrics(kl_budget_nats=4.0))
    metrics = {family.name for collector in collectors for family in collector.collect()}
    documented = set(re.findall(r"^\| `(bond_\w+)` \|", DOCUMENT, re.MULTILINE))
    assert metrics == documented


def test_labels_are_those_of_the_code() -> None:
    documented = dict(re.findall(r"^\| `(bond_\w+)` \| ([\w, ]*?) ?\|", DOCUMENT, re.MULTILINE))
    instruments: Any = Metrics().registry._collector_to_names
    for instrument in instruments:
        if not isinstance(instrument, Upstreams):
            labels = ", ".join(instrument._labelnames)
            assert documented[instrument._name] == labels, instrument._name
    for family in StoreMetrics(kl_budget_nats=4.0).collect():
        labels: Any = getattr(family, "_labelnames", ())
        assert documented[family.name] == ", ".join(labels), family.name


def test_every_setting_of_the_gateway_is_documented_and_none_that_does_not_exist() -> None:
    for section in OF_THE_GATEWAY:
        model = BondConfig.model_fields[section].annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        ours = {f"{section}.{name}" for name in model.model_fields}
        named = {name for name in NAMED if re.fullmatch(rf"{section}\.\w+", name)}
        assert ours == named


async def test_every_header_of_an_answer_is_documented(run: Run, make_config: MakeConfig) -> None:
    config = make_config(admission={"max_rows": 1, "max_waiting_rows": 0})
    async with run(config) as running:
        engine = Held(running.gateway.engine)
        asking = asyncio.create_task(running.post("/v1/distilled"))
        while running.gateway.admission.running_rows == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        refused = await running.post("/v1/distilled")
        engine.let_go()
        responses = [
            refused,
            await asking,
            await running.post("/v1/best-of-n"),
            await running.post("/v1/distilled", stream=True),
            await running.post("/v1/best-of-n", best_of=0),
            await running.client.get("/v1/models"),
            await running.client.get("/v1/session"),
            *await with_a_key(running),
            await running.client.get("/v1/best-of-n"),
        ]
    assert refused.status_code == 429
    sent = {name for response in responses for name in response.headers}
    assert (sent | headers_in_the_code()) - OF_THE_TRANSPORT - NAMED == set()


async def with_a_key(running: Running) -> list[httpx.Response]:
    """What a gateway with keys says that one without does not."""
    limits = KeyLimits(requests_per_minute=1, tokens_per_minute=10_000)
    _, secret = await make_key(running, ["infer"], limits=limits)
    body = {"messages": [{"role": "user", "content": "hi"}]}
    return [
        *[
            await running.client.post("/v1/distilled", json=body, headers=bearer(secret))
            for _ in range(2)
        ],
        await running.client.post("/v1/session", headers=bearer(secret)),
        await running.post("/v1/distilled"),
        await running.client.get("/v1/policies", headers=bearer(secret)),
    ]
