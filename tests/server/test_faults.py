"""Faults of what the gateway stands on, seen through the whole app: each ends in a clear answer in
bounded time, is a row, and is over when the fault is."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from faulty_pooling_server import running_server
from faulty_vllm_server import (
    MODEL,
    Fault,
    FaultyVllmServer,
    breaks_off,
    hangs,
    running_vllm,
    says,
)
from running_gateway import MakeConfig, Run, Running, eventually, settled

from bond_core.store import TrainingRecord


def over(server: FaultyVllmServer, **engine: Any) -> dict[str, Any]:
    """Sections of a gateway over one vLLM server, which is looked at often."""
    watched = {"health_every_s": 0.05, "health_timeout_s": 20.0, "timeout_s": 60.0, **engine}
    return {"engine": {"type": "vllm", "urls": [server.url], **watched}, "model": {"name": MODEL}}


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def until_answered(running: Running) -> None:
    async def answers() -> bool:
        return (await running.post("/v1/best-of-n")).status_code == 200

    await eventually(answers, timeout_s=60.0)


def up(running: Running, server: FaultyVllmServer) -> float:
    return running.metric("bond_server_up", role="engine", server=server.url)


async def test_an_engine_that_goes_down_is_a_503_and_serving_resumes_when_it_is_back(
    run: Run, make_config: MakeConfig
) -> None:
    async with running_vllm() as server, run(make_config(**over(server))) as running:
        best = await running.post("/v1/best-of-n")
        assert best.json()["choices"][0]["message"]["content"] == "aaaa"  # the longest of four
        assert up(running, server) == 1
        await server.stop()
        started = time.monotonic()
        assert code_of(await running.post("/v1/best-of-n")) == (503, "engine_unavailable")
        assert time.monotonic() - started < 30

        async def not_ready() -> bool:
            return (await running.client.get("/readyz")).status_code == 503

        await eventually(not_ready)
        assert up(running, server) == 0
        assert (await running.client.get("/healthz")).status_code == 200
        assert (await running.client.get("/v1/models")).status_code == 200
        await server.start()
        await until_answered(running)
        assert up(running, server) == 1
        assert (await running.client.get("/readyz")).status_code == 200
        assert running.metric("bond_requests_total", arm="bon", status="failed") >= 1
        assert running.gateway.admission.running_rows == 0


async def test_an_engine_that_is_too_slow_is_a_503_and_frees_its_place(
    run: Run, make_config: MakeConfig
) -> None:
    async with running_vllm() as server:
        config = make_config(**over(server, timeout_s=1.5))
        async with run(config) as running:
            server.fault = hangs
            before = server.asked
            response = await running.post("/v1/best-of-n")  # which hangs for a minute
            assert code_of(response) == (503, "engine_unavailable")
            assert server.asked == before + 1  # not asked again: it is slow enough
            assert running.gateway.admission.running_rows == 0
            server.fault = None
            await until_answered(running)


async def test_an_engine_beyond_the_requests_deadline_is_a_504(
    run: Run, make_config: MakeConfig
) -> None:
    async with running_vllm() as server, run(make_config(**over(server))) as running:
        server.fault = hangs
        started = time.monotonic()
        response = await running.post("/v1/best-of-n", bond={"deadline_ms": 200})
        assert time.monotonic() - started < 30
        assert code_of(response) == (504, "deadline_exceeded")
        assert running.metric("bond_requests_total", arm="bon", status="failed") == 1
        assert running.gateway.admission.running_rows == 0


@pytest.mark.parametrize(
    "fault",
    [
        says("<html>502 Bad Gateway</html>", content_type="text/html"),
        says("{"),
        says("[]"),
        says('{"choices": []}'),
        says('{"choices": [{"index": 0, "message": {"content": 7}}]}'),
        says('{"choices": [null], "prompt_token_ids": null}'),
        says("\x00\xff", content_type="application/octet-stream"),
        says('{"error": {"message": "CUDA out of memory"}}', status=500),
        says("overloaded", status=503),
        breaks_off,
    ],
    ids=["html", "half", "list", "none", "odd", "null", "binary", "500", "503", "broken"],
)
async def test_an_engine_that_sends_garbage_is_a_503_and_a_failed_row(
    run: Run, make_config: MakeConfig, fault: Fault
) -> None:
    async with running_vllm() as server, run(make_config(**over(server))) as running:
        server.fault = fault
        responses = [await running.post("/v1/best-of-n"), await running.post("/v1/best-of-n")]
        assert {code_of(response) for response in responses} == {(503, "engine_unavailable")}
        streamed = await running.post("/v1/chat/completions", model=f"{MODEL}:bon", stream=True)
        assert streamed.status_code == 503
        assert running.metric("bond_requests_total", arm="bon", status="failed") == 3
        assert running.metric("bond_log_rows_total", arm="bon", status="failed") == 3
        server.fault = None
        await until_answered(running)


async def test_a_scorer_that_is_down_costs_the_ranking_and_nothing_else(
    run: Run, make_config: MakeConfig
) -> None:
    async with running_server() as rewards:
        section = {"type": "pooling", "url": rewards.url, "self_test": None}
        async with run(make_config(scorer=section)) as running:
            await rewards.stop()
            answers = await asyncio.gather(*(running.post("/v1/best-of-n") for _ in range(5)))
            single = await running.post("/v1/distilled")
            await settled(running)
            assert {answer.status_code for answer in (*answers, single)} == {200}
            assert {a.headers["x-bond-degraded"] for a in answers} == {"scoring_failed"}
            assert "x-bond-degraded" not in single.headers
            assert running.metric("bond_degraded_total", reason="scoring_failed") == 5
            assert running.metric("bond_server_up", role="scorer", server=rewards.url) == 0
            await rewards.start()
            again = await running.post("/v1/best-of-n")
            assert "x-bond-degraded" not in again.headers
            assert again.json()["bond"]["score"] is not None


async def test_a_trainer_that_died_is_told_as_stale_and_serving_goes_on(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        now = time.time()
        for age_s, stale in ((1.0, False), (3600.0, True)):
            await running.gateway.store.training.report(
                TrainingRecord(
                    run_id="run-1",
                    state="training",
                    step=7,
                    started_at=now - 7200,
                    heartbeat_at=now - age_s,
                )
            )
            told = (await running.client.get("/v1/training")).json()["run"]
            assert (told["state"], told["stale"]) == ("training", stale)
        for path in ("/v1/best-of-n", "/v1/distilled"):
            assert (await running.post(path)).status_code == 200
        assert (await running.client.get("/readyz")).status_code == 200


REFUSED = {"message": "token 999 is not in the vocabulary", "type": "BadRequestError"}


def tells(*events: object) -> Fault:
    """A stream of these, as vLLM ends one that failed: with its error and `[DONE]`."""
    said = [*(json.dumps(event) for event in events), "[DONE]"]
    return says("".join(f"data: {data}\n\n" for data in said), content_type="text/event-stream")


@pytest.mark.parametrize("fields", [{"stream": True}, {"best_of": 3, "bond": {"deadline_ms": 9e4}}])
async def test_a_request_that_vllm_refuses_within_its_stream_is_a_400_and_no_row(
    run: Run, make_config: MakeConfig, fields: dict[str, Any]
) -> None:
    error = {**REFUSED, "param": "allowed_token_ids", "code": 400}
    async with running_vllm() as server, run(make_config(**over(server))) as running:
        server.fault = tells({"error": error})
        asked = server.asked
        refused = await running.post("/v1/chat/completions", model=f"{MODEL}:reference", **fields)
        assert server.asked == asked + 1
        assert running.metric("bond_requests_total", arm="reference", status="failed") == 0
        assert await running.gateway.store.completions.count() == 0
    assert code_of(refused) == (400, "invalid_value")
    assert refused.json()["error"]["param"] == "allowed_token_ids"
    assert "token 999 is not in the vocabulary" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "events",
    [
        [{"error": {**REFUSED, "code": 500}}],
        [{"error": "out of memory"}],
        [
            {"prompt_token_ids": [1], "choices": [{"index": 0, "delta": {}}]},
            {"error": {**REFUSED, "code": 400}},
        ],
    ],
    ids=["failure", "no-code", "begun"],
)
async def test_what_else_ends_a_stream_is_a_failure(
    run: Run, make_config: MakeConfig, events: list[object]
) -> None:
    async with running_vllm() as server, run(make_config(**over(server))) as running:
        server.fault = tells(*events)
        failed = await running.post("/v1/chat/completions", model=f"{MODEL}:reference", stream=True)
        assert running.metric("bond_requests_total", arm="reference", status="failed") == 1
    assert code_of(failed) == (503, "engine_unavailable")
