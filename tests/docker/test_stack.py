"""The stack on PostgreSQL with vLLM's CPU build: gateway and database are killed under load.

Grafana is left out, and checked without being run in test_compose_files.py.
"""

import asyncio
import json
from typing import Any

import httpx
import pytest
from docker_engine import Project, docker, inspect, until
from running_stack import client_of, kept, users
from stack_traffic import WORKERS

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

TARGETS = {
    "gateway-a:9464", "gateway-b:9464", "policy:8000", "reward:8000", "localhost:9090",
}  # fmt: skip
FAILED_WITH_IT = 3 * WORKERS
"""Requests that may fail when a gateway dies: those that it was answering, and the two for each
worker of the proxy after which that one leaves it out."""


async def killed(project: Project, service: str) -> str:
    """Kill a service's container as a crash would, and return its id."""
    container = project.container(service)
    await asyncio.to_thread(docker, "kill", container)
    assert not inspect(container)["State"]["Running"]
    return container


async def started(project: Project, service: str) -> None:
    await asyncio.to_thread(docker, "start", project.container(service))
    await asyncio.to_thread(project.until_healthy, service)


def test_one_port_is_published_and_needs_a_key(stack: Project) -> None:
    published = {
        service
        for service in ("proxy", "gateway-a", "policy", "reward", "postgres", "prometheus")
        if inspect(stack.container(service))["HostConfig"]["PortBindings"]
    }
    assert published == {"proxy"}
    with client_of(stack) as client:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        assert client.post("/v1/distilled", json=body).status_code == 200
        assert client.get("/metrics").status_code == 404
        assert client.get("/proxy-health", headers={"authorization": ""}).text == "ok\n"
        for path, code in (("/readyz", 200), ("/v1/models", 401), ("/v1/training", 401)):
            assert client.get(path, headers={"authorization": ""}).status_code == code, path
        large = client.post("/v1/distilled", content=b"x" * (5 * 2**20))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")


def test_streams_come_through_the_proxy_in_pieces(stack: Project) -> None:
    body: dict[str, Any] = {
        "model": "demo:distilled",
        "stream": True,
        "messages": [{"role": "user", "content": "Where is my parcel?"}],
    }
    with (
        client_of(stack) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        assert response.status_code == 200
        pieces = [piece for piece in response.iter_raw() if piece]
    assert len(pieces) > 4  # held back, it would be one
    assert b"[DONE]" in pieces[-1]


async def test_nothing_acknowledged_is_lost(stack: Project) -> None:
    async with users(stack) as traffic:
        account = traffic.account
        assert await traffic.more(60, 120), account.failures[:5]
        assert account.failures == []

        await killed(stack, "gateway-a")
        assert await traffic.more(40, 90), account.failures[-5:]
        assert len(account.failures) <= FAILED_WITH_IT, account.failures
        await started(stack, "gateway-a")
        before = len(account.failures)
        assert await traffic.more(40, 90), account.failures[-5:]
        assert account.failures[before:] == []

        await killed(stack, "postgres")
        told = len(account.ids)
        await asyncio.sleep(5)
        # what waits for its commit may be told yet, and nothing that was not committed
        assert len(account.ids) - told <= WORKERS
        await started(stack, "postgres")
        assert await traffic.more(40, 120), account.failures[-5:]

        await killed(stack, "gateway-b")
        assert await traffic.more(40, 90), account.failures[-5:]
        await started(stack, "gateway-b")
        assert await traffic.more(40, 90), account.failures[-5:]
    assert all(account.of(kind) > 20 for kind in ("single", "best_of_n", "stream"))
    lost = {id.removeprefix("chatcmpl-") for id in account.ids} - await asyncio.to_thread(
        kept, stack
    )
    assert lost == set()
    with client_of(stack) as client:
        one = next(id for id, kind in account.ids.items() if kind == "best_of_n")
        found = client.get(f"/v1/chat/completions/{one}")
        assert found.status_code == 200
        assert found.json()["id"] == one
    report = f"{len(account.ids)} answers acknowledged, {len(account.failures)} requests failed"
    print(f"\n{report} while gateways and database were killed; none is lost")  # noqa: T201


async def test_prometheus_sees_every_target(stack: Project) -> None:
    script = (
        "import sys, urllib.request as u; url = 'http://prometheus:9090/api/v1/' + sys.argv[1]; "
        "sys.stdout.write(u.urlopen(url).read().decode())"
    )

    def asked(path: str) -> dict[str, Any]:
        gateway = stack.container("gateway-a")
        ran = docker("exec", gateway, "python", "-c", script, path)
        return json.loads(ran.stdout)["data"]

    async with asyncio.timeout(90):
        while True:
            targets = asked("targets")["activeTargets"]
            health = {target["labels"]["instance"]: target["health"] for target in targets}
            if set(health.values()) == {"up"}:
                break
            await asyncio.sleep(2)
    assert set(health) == TARGETS
    [rows] = asked("query?query=sum(bond_log_rows_total)")["result"]
    assert float(rows["value"][1]) > 0
    broken = [r for g in asked("rules")["groups"] for r in g["rules"] if r["health"] == "err"]
    assert broken == []


def test_the_trainer_learns_from_the_traffic(stack: Project) -> None:
    def run(client: httpx.Client) -> dict[str, Any]:
        return client.get("/v1/training").raise_for_status().json()["run"]

    with client_of(stack) as client:
        until("the trainer takes steps", lambda: run(client)["step"] > 0, 300)
        assert run(client)["state"] not in ("failed", "stopped")
        assert not run(client)["stale"]
        assert run(client)["counts"]["used"] > 0
