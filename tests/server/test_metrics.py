"""Metrics: what is counted, and that it agrees with the log."""

import time

from running_gateway import MakeConfig, Run, settled

from bond_server.metrics.buckets import LATENCY_BUCKETS_S

VLLM_E2E_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip


async def test_counts_of_answers(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        bodies = [(await running.post("/v1/best-of-n")).json() for _ in range(3)]
        bodies.append((await running.post("/v1/distilled")).json())
        await running.post("/v1/best-of-n", best_of=0)
        await settled(running)
        metric = running.metric
        assert metric("bond_assignments_total", arm="bon", experiment="") == 3
        assert metric("bond_requests_total", arm="bon", status="ok") == 3
        assert metric("bond_log_rows_total", arm="bon", status="ok") == 3
        assert metric("bond_request_latency_seconds_count", arm="bon") == 3
        assert metric("bond_gateway_overhead_seconds_count") == 4
        assert metric("bond_score_latency_seconds_count") == 3
        drawn = sum(
            metric("bond_candidates_total", arm="bon", finish_reason=reason)
            for reason in ("stop", "length")
        )
        assert drawn == 12
        tokens = sum(b["usage"]["completion_tokens"] for b in bodies[:3])
        assert metric("bond_generation_tokens_total", arm="bon") == tokens
        prompt = sum(b["usage"]["prompt_tokens"] for b in bodies[:3])
        assert metric("bond_prompt_tokens_total", arm="bon") == prompt
        assert metric("bond_reward_count", arm="bon") == 3
        assert metric("bond_reward_count", arm="distilled") == 1
        assert metric("bond_in_flight_requests") == 0
        assert metric("bond_follow_up_queue_rows") == 0
        route = {"route": "/v1/best-of-n", "method": "POST"}
        assert metric("bond_http_requests_total", **route, code="200") == 3
        assert metric("bond_http_requests_total", **route, code="400") == 1
        text = (await running.client.get("/metrics")).text
        rows = await running.gateway.store.completions.count()
        assert rows == 4
    assert 'bond_requests_total{arm="bon",status="ok"} 3.0' in text


async def test_latency_has_vllms_buckets(run: Run, make_config: MakeConfig) -> None:
    assert LATENCY_BUCKETS_S == VLLM_E2E_BUCKETS
    async with run(make_config(engine={"type": "fake", "delay_s": 0.35})) as running:
        began = time.perf_counter()
        await running.post("/v1/distilled")
        elapsed_s = time.perf_counter() - began

        def bucket(bound: str) -> float:
            return running.metric("bond_request_latency_seconds_bucket", arm="distilled", le=bound)

        assert bucket("0.3") == 0
        assert bucket("7680.0") == 1
        latency_s = running.metric("bond_request_latency_seconds_sum", arm="distilled")
        assert 0.35 <= latency_s <= elapsed_s


async def test_paths_and_methods_do_not_multiply_series(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        for number in range(5):
            await running.client.request(f"ODD{number}", f"/nothing/{number}")
        assert (
            running.metric(
                "bond_http_requests_total", route="unmatched", method="other", code="404"
            )
            == 5
        )
