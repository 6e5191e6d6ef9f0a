"""Rows logged equal requests served, however a request ends: the counters agree with the table."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from disconnecting import disconnecting_post
from held_engine import Held
from locked_store import locked
from running_gateway import MakeConfig, Run, Running, eventually, scorer, settled

from bond_core.config import BondConfig

ARMS = ("reference", "bon", "distilled")
STATUSES = ("ok", "failed", "cancelled")


def counted(running: Running, name: str) -> dict[tuple[str, str], float]:
    values = {
        (arm, status): running.metric(name, arm=arm, status=status)
        for arm in ARMS
        for status in STATUSES
    }
    return {key: value for key, value in values.items() if value}


def in_table(config: BondConfig) -> dict[tuple[str, str], float]:
    connection = sqlite3.connect(config.data_dir / "bond.db")
    try:
        found = connection.execute(
            "SELECT arm, status, count(*) FROM completions GROUP BY arm, status"
        ).fetchall()
    finally:
        connection.close()
    return {(arm, status): float(count) for arm, status, count in found}


async def answered(running: Running) -> None:
    await running.post("/v1/best-of-n")
    await running.post("/v1/distilled")
    await running.post("/v1/compare", arms=["reference", "bon"])


async def refused_as_wrong(running: Running) -> None:
    assert (await running.post("/v1/best-of-n", best_of=0)).status_code == 400
    assert (await running.post("/v1/best-of-n", model="nobody")).status_code == 404
    long = [{"role": "user", "content": "x" * 5000}]
    assert (await running.post("/v1/best-of-n", messages=long)).status_code == 400


async def refused_as_too_much(running: Running) -> None:
    engine = Held(running.gateway.engine)
    asking = [asyncio.create_task(running.post("/v1/best-of-n")) for _ in range(6)]

    async def four_are_refused() -> bool:
        return sum(task.done() for task in asking) == 4

    await eventually(four_are_refused)
    engine.let_go()
    assert {response.status_code for response in await asyncio.gather(*asking)} == {200, 429}


async def failed(running: Running) -> None:
    await running.gateway.engine.close()
    assert (await running.post("/v1/best-of-n")).status_code == 503


async def cancelled(running: Running) -> None:
    Held(running.gateway.engine)

    async def under_way() -> bool:
        return running.metric("bond_in_flight_requests") == 1

    sent = await disconnecting_post(running, "/v1/best-of-n", eventually(under_way))
    assert sent[0]["status"] == 499
    await running.gateway.background.drain(60)


@pytest.mark.parametrize(
    ("happens", "sections", "expected"),
    [
        (
            answered,
            {},
            {("bon", "ok"): 2, ("distilled", "ok"): 1, ("reference", "ok"): 1},
        ),
        (refused_as_wrong, {}, {}),
        (
            refused_as_too_much,
            {"admission": {"max_rows": 4, "max_waiting_rows": 1}},
            {("bon", "ok"): 2},
        ),
        (failed, {}, {("bon", "failed"): 1}),
        (cancelled, {}, {("bon", "cancelled"): 1}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_every_request_that_began_is_one_row(
    run: Run,
    make_config: MakeConfig,
    happens: Callable[[Running], Awaitable[None]],
    sections: dict[str, Any],
    expected: dict[tuple[str, str], float],
) -> None:
    config = make_config(**sections)
    async with run(config) as running:
        await happens(running)
        assert counted(running, "bond_requests_total") == expected
        assert counted(running, "bond_log_rows_total") == expected
        assert in_table(config) == expected


async def test_degraded_answers_are_rows_like_any_other(
    run: Run, make_config: MakeConfig, rewards_file: Path
) -> None:
    config = make_config(scorer=scorer(rewards_file, "raises"))
    async with run(config) as running:
        await running.post("/v1/best-of-n")
        await settled(running)
        assert counted(running, "bond_requests_total") == {("bon", "ok"): 1}
        assert counted(running, "bond_log_rows_total") == in_table(config) == {("bon", "ok"): 1}


async def test_what_could_not_be_committed_is_the_difference(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(server={"policy_poll_s": 60})
    async with run(config) as running:
        with locked(running.gateway.store, commit_timeout_s=0.3):
            assert (await running.post("/v1/best-of-n")).status_code == 503
        assert (await running.post("/v1/best-of-n")).status_code == 200
        assert counted(running, "bond_requests_total") == {("bon", "ok"): 1, ("bon", "failed"): 1}
        assert counted(running, "bond_log_rows_total") == {("bon", "ok"): 1}
        # the row that was given up may have been on its way into the database already
        assert in_table(config) in ({("bon", "ok"): 1}, {("bon", "ok"): 2})


async def test_what_a_request_was_like_is_counted_in_vllms_buckets(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        body = (await running.post("/v1/best-of-n", best_of=6, max_tokens=7)).json()
        prompt, generated = (body["usage"][f"{kind}_tokens"] for kind in ("prompt", "completion"))

        def bucket(name: str, bound: float) -> float:
            return running.metric(f"{name}_bucket", arm="bon", le=str(float(bound)))

        assert running.metric("bond_request_prompt_tokens_sum", arm="bon") == prompt
        assert running.metric("bond_request_generation_tokens_sum", arm="bon") == generated
        assert (bucket("bond_request_params_n", 5), bucket("bond_request_params_n", 10)) == (0, 1)
        longest = "bond_request_params_max_tokens"
        assert (bucket(longest, 5), bucket(longest, 10)) == (0, 1)
        assert bucket("bond_request_queue_time_seconds", 0.3) == 1
        assert running.metric("bond_model_info", model_name="tiny:1b") == 1


async def test_streams_are_rows_and_their_tokens_are_timed(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(engine={"type": "fake", "delay_s": 0.3})
    async with run(config) as running:
        answer = await running.post("/v1/distilled", stream=True, max_tokens=6)
        assert answer.status_code == 200
        await running.post("/v1/best-of-n", stream=True)
        expected = {("bon", "ok"): 1, ("distilled", "ok"): 1}
        assert counted(running, "bond_requests_total") == expected
        assert counted(running, "bond_log_rows_total") == in_table(config) == expected
        first = "bond_time_to_first_token_seconds"
        assert running.metric(f"{first}_count", arm="distilled") == 1
        assert 0.3 / 6 - 0.01 < running.metric(f"{first}_sum", arm="distilled") < 10
        pieces = running.metric("bond_inter_token_latency_seconds_count", arm="distilled")
        assert 1 <= pieces <= 6  # the last one carries the answer's numbers
        assert running.metric(f"{first}_count", arm="bon") == 0


async def test_a_stream_that_finds_the_queue_full_is_a_429_and_not_an_event(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(
        engine={"type": "fake", "delay_s": 0.5},
        admission={"max_rows": 1, "max_waiting_rows": 1, "max_wait_s": 0.05},
    )
    async with run(config) as running:
        streaming = asyncio.create_task(running.post("/v1/distilled", stream=True))

        async def under_way() -> bool:
            return running.gateway.admission.running_rows == 1

        await eventually(under_way)
        late = await running.post("/v1/distilled", stream=True)
        answer = await streaming
    assert late.status_code == 429
    assert late.json()["error"]["code"] == "queue_timeout"
    assert late.headers["content-type"] == "application/json"
    assert answer.status_code == 200
    assert answer.text.endswith("data: [DONE]\n\n")
