"""A gateway whose reward model is on a pooling server, through an outage of it."""

from typing import Any

import httpx
from faulty_pooling_server import FaultyPoolingServer, formula, running_server
from running_gateway import MakeConfig, Run, settled

QUESTION = "where is my parcel?"


def expected(server: FaultyPoolingServer, answer: str) -> float:
    return formula(server.tokens(("user", QUESTION), ("assistant", answer)))


def bond_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200
    return response.json()["bond"]


async def test_the_best_candidate_is_the_servers_and_an_outage_only_degrades(
    run: Run, make_config: MakeConfig
) -> None:
    async with running_server() as server:
        section = {"type": "pooling", "url": server.url, "self_test": None}
        async with run(make_config(scorer=section)) as running:
            asked = {"bond": {"return_candidates": True}}
            healthy = await running.post("/v1/best-of-n", **asked)
            scores = {c["text"]: c["score"] for c in bond_of(healthy)["candidates"]}
            assert scores == {text: expected(server, text) for text in scores}
            assert bond_of(healthy)["score"] == max(scores.values())
            await settled(running)
            await server.stop()
            away = await running.post("/v1/best-of-n", **asked)
            assert bond_of(away)["degraded"] == "scoring_failed"
            first = bond_of(away)["candidates"][0]["text"]
            assert away.json()["choices"][0]["message"]["content"] == first
            await server.start()
            assert bond_of(await running.post("/v1/best-of-n", **asked))["degraded"] is None


async def test_whether_the_server_is_up_is_a_metric(run: Run, make_config: MakeConfig) -> None:
    async with running_server() as server:
        section = {"type": "pooling", "url": server.url, "self_test": None}
        async with run(make_config(scorer=section)) as running:

            def up() -> float | None:
                return running.gateway.metrics.registry.get_sample_value(
                    "bond_server_up", {"role": "scorer", "server": server.url}
                )

            assert up() == 1
            await server.stop()
            await running.post("/v1/best-of-n")
            await settled(running)
            assert up() == 0
            await server.start()
            await running.post("/v1/best-of-n")
            assert up() == 1
