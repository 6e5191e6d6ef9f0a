"""Limits of a key over real gateways: what is admitted, what is said, what is settled."""

import asyncio
import json
from typing import Any

import pytest
from api_keys import bearer, make_key
from disconnecting import disconnecting_post
from held_engine import Held
from rate_limits import HI, ask, refused, remaining, stopped
from running_gateway import MakeConfig, Run, eventually
from stored import all_rows

from bond_core.store import KeyLimits
from bond_server.access.ratelimit_headers import duration


async def test_requests_are_counted_and_refill(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        move = stopped(running)
        limits = KeyLimits(requests_per_minute=3)
        _, secret = await make_key(running, ["infer", "read"], limits=limits)
        for left, reset in ((2, "20s"), (1, "40s"), (0, "1m0s")):
            headers = (await ask(running, secret)).headers
            assert headers["x-ratelimit-limit-requests"] == "3"
            assert headers["x-ratelimit-remaining-requests"] == str(left)
            assert headers["x-ratelimit-reset-requests"] == reset
            assert "x-ratelimit-limit-tokens" not in headers
        move(7.25)
        response = await ask(running, secret)
        assert refused(response)["message"] == (
            "this key has used its 3 requests per minute; try again in 12.750 s"
        )
        assert response.headers["retry-after"] == "13"
        assert response.headers["retry-after-ms"] == "12750"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert response.headers["x-ratelimit-reset-requests"] == "52.75s"
        # what asks for no answer is not counted
        assert (await running.client.get("/v1/models", headers=bearer(secret))).is_success
        move(12.749999)
        refused(await ask(running, secret))
        move(0.000001)
        assert (await ask(running, secret)).status_code == 200
        refused(await ask(running, secret))
        assert await running.gateway.store.completions.count() == 4
        labels = {"route": "/v1/distilled", "method": "POST", "code": "429"}
        assert running.metric("bond_http_requests_total", **labels) == 3


async def test_keys_do_not_share_and_unlimited_ones_are_told_nothing(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        stopped(running)
        one = KeyLimits(requests_per_minute=1)
        secrets = [(await make_key(running, ["infer"], limits=one))[1] for _ in range(2)]
        for secret in secrets:
            assert (await ask(running, secret)).status_code == 200
            refused(await ask(running, secret))
        _, free = await make_key(running, ["infer"])
        for _ in range(5):
            response = await ask(running, free)
            assert response.status_code == 200
            assert not [name for name in response.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(("path", "drawn"), [("/v1/distilled", 1), ("/v1/best-of-n", 4)])
async def test_tokens_of_all_candidates_are_settled(
    run: Run, make_config: MakeConfig, path: str, drawn: int
) -> None:
    async with run(make_config()) as running:
        stopped(running)
        limits = KeyLimits(tokens_per_minute=10_000)
        _, secret = await make_key(running, ["infer"], limits=limits)
        response = await ask(running, secret, path, max_tokens=7)
        usage = response.json()["usage"]
        assert usage["bond"]["n"] == drawn
        remaining = int(response.headers["x-ratelimit-remaining-tokens"])
        assert remaining == 10_000 - usage["total_tokens"]
        assert response.headers["x-ratelimit-limit-tokens"] == "10000"
        expected = duration(6000 * usage["total_tokens"])  # 10,000 in a minute: 6 ms each
        assert response.headers["x-ratelimit-reset-tokens"] == expected


async def test_the_most_that_an_answer_can_cost_must_be_there(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        move = stopped(running)
        limits = KeyLimits(tokens_per_minute=100)
        _, secret = await make_key(running, ["infer"], limits=limits)
        # 4 candidates of 25, and the prompt: never
        never = await ask(running, secret, "/v1/best-of-n", max_tokens=25)
        error = never.json()["error"]
        assert (never.status_code, error["code"], error["param"]) == (
            400, "token_limit_too_low", "max_tokens",
        )  # fmt: skip
        assert "may take 101 tokens (4 candidates of up to 25" in error["message"]
        assert "100 per minute" in error["message"]
        assert never.headers["x-ratelimit-remaining-tokens"] == "100"
        first = await ask(running, secret, "/v1/best-of-n", max_tokens=24)
        used = first.json()["usage"]["total_tokens"]
        left = 100 - used
        needed = 1 + 4 * 20
        assert left < needed
        response = await ask(running, secret, "/v1/best-of-n", max_tokens=20)
        refused(response)
        wait_ms = (needed - left) * 600
        assert response.headers["retry-after-ms"] == str(wait_ms)
        assert response.headers["x-ratelimit-remaining-tokens"] == str(left)
        move(wait_ms / 1000)
        assert (await ask(running, secret, "/v1/best-of-n", max_tokens=20)).status_code == 200
        assert await running.gateway.store.completions.count() == 2


async def test_what_fails_or_is_wrong_costs_no_tokens(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        stopped(running)
        limits = KeyLimits(requests_per_minute=10, tokens_per_minute=1000, concurrency=1)
        _, secret = await make_key(running, ["infer"], limits=limits)
        wrong = await ask(running, secret, max_tokens=-1)
        assert wrong.status_code == 400
        assert wrong.headers["x-ratelimit-remaining-requests"] == "9"
        await running.gateway.engine.close()
        broken = await ask(running, secret, max_tokens=50)
        assert broken.status_code == 503
        assert broken.headers["x-ratelimit-remaining-tokens"] == "1000"
        assert (await ask(running, secret)).status_code == 503  # its place was given up


@pytest.mark.parametrize(("path", "n"), [("/v1/distilled", 1), ("/v1/best-of-n", 4)])
async def test_a_stream_is_settled_when_it_has_ended(
    run: Run, make_config: MakeConfig, path: str, n: int
) -> None:
    async with run(make_config()) as running:
        stopped(running)
        limits = KeyLimits(tokens_per_minute=10_000, concurrency=1)
        _, secret = await make_key(running, ["infer"], limits=limits)
        options = {"stream_options": {"include_usage": True}}
        streamed = await ask(running, secret, path, stream=True, max_tokens=50, **options)
        assert streamed.status_code == 200
        begun = int(streamed.headers["x-ratelimit-remaining-tokens"])
        lines = [line.removeprefix("data: ") for line in streamed.text.splitlines()]
        pieces = [json.loads(line) for line in lines if line.startswith("{")]
        [usage] = [piece["usage"] for piece in pieces if piece.get("usage")]
        # what was set aside; of a selection that was ready before its headers, what it did cost
        assert begun == 10_000 - (usage["total_tokens"] if n > 1 else 1 + n * 50)
        plain = await ask(running, secret, path)  # the stream's place was given up
        spent = usage["total_tokens"] + plain.json()["usage"]["total_tokens"]
        assert int(plain.headers["x-ratelimit-remaining-tokens"]) == 10_000 - spent


async def test_concurrency_is_exact_and_places_come_back(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    async with run(make_config(store={"url": database_url})) as running:
        engine = Held(running.gateway.engine)
        _, secret = await make_key(running, ["infer"], limits=KeyLimits(concurrency=3))
        for _ in range(2):
            asking = [asyncio.create_task(ask(running, secret)) for _ in range(8)]

            async def five_are_answered(asking: list[asyncio.Task[Any]] = asking) -> bool:
                return sum(task.done() for task in asking) >= 5

            await eventually(five_are_answered)
            for response in (task.result() for task in asking if task.done()):
                assert "3 requests running" in refused(response)["message"]
                assert response.headers["retry-after"] == "1"
                assert response.headers["retry-after-ms"] == "1000"
            engine.let_go(3)
            codes = [response.status_code for response in await asyncio.gather(*asking)]
            assert sorted(codes) == [200] * 3 + [429] * 5
        engine.let_go()
        for _ in range(5):  # one after the other never meets itself
            assert (await ask(running, secret)).status_code == 200


async def test_a_client_that_leaves_gives_its_place_up_and_pays_what_was_reserved(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        stopped(running)
        Held(running.gateway.engine)
        limits = KeyLimits(tokens_per_minute=1000, concurrency=1)
        key, secret = await make_key(running, ["infer"], limits=limits)

        async def runs() -> bool:
            usage = remaining(running, key.id, limits)
            return usage.running == 1 and usage.tokens < 1000 * 60_000_000

        async def another_was_refused() -> None:
            await eventually(runs)
            refused(await ask(running, secret))

        authorization = (b"authorization", f"Bearer {secret}".encode())
        asked = {**HI, "max_tokens": 100}
        sent = await disconnecting_post(
            running, "/v1/distilled", another_was_refused(), authorization, asked
        )
        assert sent[0]["status"] == 499
        usage = remaining(running, key.id, limits)
        assert usage.running == 0
        assert usage.tokens == (1000 - 101) * 60_000_000


def test_durations_are_written_as_openai_does() -> None:
    for microseconds, text in (
        (0, "0s"), (1, "1ms"), (999_000, "999ms"), (999_001, "1s"), (1_500_000, "1.5s"),
        (59_999_999, "1m0s"), (360_000_000, "6m0s"), (3_661_234_000, "61m1.234s"),
    ):  # fmt: skip
        assert duration(microseconds) == text


async def test_candidates_that_a_deadline_cut_off_are_paid_for(
    run: Run, make_config: MakeConfig
) -> None:
    # work on a candidate begins to count as tokens at once, and all of them after its delay
    config = make_config(engine={"type": "fake", "delay_s": 0.2, "capacity": 2})
    async with run(config) as running:
        stopped(running)
        Held(running.gateway.engine, let_go=2)  # of six; two more have begun, and two have not
        limits = KeyLimits(requests_per_minute=10, tokens_per_minute=10_000)
        _, secret = await make_key(running, ["infer"], limits=limits)
        body = {"best_of": 6, "max_tokens": 50, "bond": {"deadline_ms": 1500}}
        some = await ask(running, secret, "/v1/best-of-n", **body)
        assert some.json()["bond"]["degraded"] == "deadline"
        usage = some.json()["usage"]
        assert usage["bond"]["cut_completion_tokens"] > 0
        left = 10_000 - usage["total_tokens"]
        assert some.headers["x-ratelimit-remaining-tokens"] == str(left)
        none = await ask(running, secret, "/v1/best-of-n", **body | {"bond": {"deadline_ms": 500}})
        assert none.status_code == 504
        [failed] = [r for r in await all_rows(running.gateway.store) if r.status == "failed"]
        assert failed.cut_tokens > 0
        spent = usage["prompt_tokens"] + failed.cut_tokens
        assert none.headers["x-ratelimit-remaining-tokens"] == str(left - spent)


async def test_what_is_refused_as_too_much_is_not_counted_as_a_request(
    run: Run, make_config: MakeConfig, database_url: str
) -> None:
    admission = {"max_rows": 1, "max_waiting_rows": 8, "max_wait_s": 0.05}
    config = make_config(admission=admission, store={"url": database_url})
    limits = KeyLimits(requests_per_minute=2, tokens_per_minute=120)
    async with run(config) as running:
        held = Held(running.gateway.engine)
        _, secret = await make_key(running, ["infer"], limits=limits)
        first = asyncio.create_task(ask(running, secret, max_tokens=100))

        async def runs() -> bool:
            return running.metric("bond_running_rows") == 1

        await eventually(runs)
        # the tokens of the one that runs are set aside
        for _ in range(3):
            response = await ask(running, secret, max_tokens=100)
            assert "tokens per minute" in refused(response)["message"]
            assert response.headers["x-ratelimit-remaining-requests"] == "1"
        for _ in range(3):
            response = await ask(running, secret, max_tokens=1)
            assert response.json()["error"]["code"] == "queue_timeout"
            assert response.headers["x-ratelimit-remaining-requests"] == "1"
        held.let_go()
        assert (await first).status_code == 200
        assert (await ask(running, secret, max_tokens=1)).status_code == 200
        assert "requests per minute" in refused(await ask(running, secret, max_tokens=1))["message"]
