"""A real Prometheus on two real gateways: rules load, alerts are tested, panels show figures."""

import asyncio
import subprocess
from pathlib import Path

import pytest
from databases import PostgresServer
from prometheus_server import empty_panel_queries, prometheus_over
from published_adapters import challenger, publish
from running_gateway import MODEL, MakeConfig
from served_gateway import Serve, Served
from store_contents import a_run, refused, verdict
from watching_files import PROMETHEUS

pytestmark = pytest.mark.prometheus

HAS_NOT_HAPPENED = {
    "Refused at admission A",  # nothing was refused
    "Degraded A",  # nothing was degraded
    "Measuring after the answer B",  # nothing failed
    "Servers that take requests A",  # the fake engine has none
}
"""Queries of the dashboard without an answer here."""


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


def test_every_alert_fires_when_it_should_and_is_quiet_when_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


async def traffic(gateways: list[Served], rounds: int) -> None:
    """Requests to all gateways on both arms, streamed ones and refused ones among them."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "where is my parcel?"}]}
    for number in range(rounds):
        for served in gateways:
            for path in ("/v1/best-of-n", "/v1/distilled", "/v1/chat/completions"):
                answer = await served.client.post(path, json=body)
                assert answer.status_code == 200, answer.text
            await served.client.post("/v1/distilled", json={**body, "stream": True})
            if number % 5 == 0:
                await served.client.post("/v1/distilled", json={**body, "messages": []})
        await asyncio.sleep(0.1)


async def test_every_panel_shows_figures_of_two_gateways(
    serve: Serve,
    make_config: MakeConfig,
    postgres: PostgresServer,
    tmp_path: Path,
    unused_tcp_port: int,
) -> None:
    config = make_config(store={"url": postgres.migrated()})
    async with serve(config) as one, serve(config) as other:
        path = await publish(config, "v0001")
        store = one.gateway.store
        await store.policies.insert(challenger("v0001", path, **verdict()))
        await store.policies.insert(refused("v0002", "kl"))
        await store.training.report(a_run("training", step=40))
        addresses = [f"{served.host}:{served.port}" for served in (one, other)]
        async with prometheus_over(tmp_path, addresses, unused_tcp_port) as prometheus:
            await traffic([one, other], rounds=120)
            assert await prometheus.targets() == dict.fromkeys(addresses, "up")
            rules = await prometheus.rules()
            assert {rule["health"] for rule in rules if "answer_errors" not in rule["name"]} <= {
                "ok",
                "unknown",
            }
            assert [r["lastError"] for r in rules if r.get("lastError")] == []
            assert await empty_panel_queries(prometheus) == HAS_NOT_HAPPENED
