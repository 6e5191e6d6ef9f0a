"""Limits of a key where one request has several answers: all are set aside, and what they cost is
paid."""

import asyncio
from typing import Any

import pytest
from api_keys import bearer, make_key
from disconnecting import disconnecting_post
from held_engine import Held
from rate_limits import ask, refused, remaining, stopped
from running_gateway import MODEL, MakeConfig, Run, Running, eventually
from stored import all_rows

from bond_core.errors import EngineUnavailableError
from bond_core.store import KeyLimits
from bond_server.access.limiter import LocalLimiter

PROMPTS = [f"prompt number {index}" for index in range(10)]


def prompts_of(running: Running, secret: str, **body: Any) -> Any:
    asked = {"model": f"{MODEL}:reference", "prompt": PROMPTS, "max_tokens": 50, **body}
    return running.client.post("/v1/completions", json=asked, headers=bearer(secret))


async def test_a_comparison_costs_all_its_arms(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        stopped(running)
        limits = KeyLimits(requests_per_minute=10, tokens_per_minute=10_000)
        _, secret = await make_key(running, ["infer"], limits=limits)
        response = await ask(running, secret, "/v1/compare", max_tokens=9)
        arms = response.json()["arms"]
        rows = await running.gateway.store.completions.get_many(
            [arm["id"].removeprefix("chatcmpl-") for arm in arms]
        )
        spent = sum(row.total_tokens for row in rows)
        assert spent > sum(arm["tokens"] for arm in arms)  # each arm read the prompt
        assert int(response.headers["x-ratelimit-remaining-tokens"]) == 10_000 - spent
        assert response.headers["x-ratelimit-remaining-requests"] == "9"


async def test_several_prompts_are_one_request_and_all_their_tokens(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        stopped(running)
        limits = KeyLimits(requests_per_minute=10, tokens_per_minute=100_000)
        _, secret = await make_key(running, ["infer"], limits=limits)
        body = {"model": f"{MODEL}:bon", "prompt": ["one", "two", "three"]}
        response = await running.client.post("/v1/completions", json=body, headers=bearer(secret))
        left = 100_000 - response.json()["usage"]["total_tokens"]
        assert response.headers["x-ratelimit-remaining-tokens"] == str(left)
        assert response.headers["x-ratelimit-remaining-requests"] == "9"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_several_prompts_cost_all_of_them_also_in_a_stream(
    run: Run, make_config: MakeConfig, stream: bool
) -> None:
    config = make_config(admission={"max_rows": 1, "max_waiting_rows": 64})
    async with run(config) as running:
        stopped(running)
        engine = Held(running.gateway.engine, let_go=5)
        limits = KeyLimits(tokens_per_minute=10_000, concurrency=1)
        key, secret = await make_key(running, ["infer"], limits=limits)
        asking = asyncio.create_task(prompts_of(running, secret, stream=stream))

        async def half() -> bool:
            done = running.metric("bond_log_rows_total", arm="reference", status="ok")
            return done >= 5

        await eventually(half)
        assert remaining(running, key.id, limits).running == 1
        refused(await ask(running, secret))
        engine.let_go()
        assert (await asking).status_code == 200
        spent = sum(row.total_tokens for row in await all_rows(running.gateway.store))
        usage = remaining(running, key.id, limits)
        assert (usage.tokens, usage.running) == ((10_000 - spent) * 60_000_000, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_of_several_prompts_those_that_were_answered_before_one_failed_are_paid(
    run: Run, make_config: MakeConfig, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: dict[str, Any] = {"type": "fake", "delay_s": 0.01, "capacity": 1}
    config = make_config(engine=slow, admission={"max_rows": 1, "max_waiting_rows": 64})
    async with run(config) as running:
        stopped(running)
        limits = KeyLimits(tokens_per_minute=10_000)
        key, secret = await make_key(running, ["infer"], limits=limits)
        engine: Any = running.gateway.engine
        generate = engine.generate

        async def failing(version: str, prompt: Any, *rest: Any) -> Any:
            if prompt[0].content == PROMPTS[-1]:
                raise EngineUnavailableError("this one fails")
            return await generate(version, prompt, *rest)

        monkeypatch.setattr(engine, "generate", failing)
        assert "this one fails" in (await prompts_of(running, secret, stream=stream)).text
        rows = await all_rows(running.gateway.store)
        answered = [row.total_tokens for row in rows if row.status == "ok"]
        assert len(answered) == 9
        usage = remaining(running, key.id, limits)
        assert usage.tokens == (10_000 - sum(answered)) * 60_000_000


async def test_of_several_prompts_that_are_broken_off_the_open_ones_cost_what_was_reserved(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(admission={"max_rows": 1, "max_waiting_rows": 64})
    async with run(config) as running:
        stopped(running)
        Held(running.gateway.engine, let_go=3)
        limits = KeyLimits(tokens_per_minute=10_000)
        key, secret = await make_key(running, ["infer"], limits=limits)

        async def third() -> bool:
            return running.metric("bond_log_rows_total", arm="reference", status="ok") == 3

        body = {"model": f"{MODEL}:reference", "prompt": PROMPTS, "max_tokens": 50, "stream": True}
        authorization = (b"authorization", f"Bearer {secret}".encode())
        sent = await disconnecting_post(
            running, "/v1/completions", eventually(third), authorization, body
        )
        assert all(message.get("more_body", True) for message in sent)  # not told to the end
        await running.gateway.background.drain(60.0)
        rows = await all_rows(running.gateway.store)
        answered = [row.total_tokens for row in rows if row.status == "ok"]
        each = 4 + 50  # "prompt number 3" is 15 bytes
        spent = sum(answered) + each * (10 - len(answered))
        assert len(answered) == 3
        assert remaining(running, key.id, limits).tokens == (10_000 - spent) * 60_000_000


async def test_prompts_and_arms_are_set_aside_together_or_not_at_all(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(make_config()) as running:
        stopped(running)
        limits = KeyLimits(tokens_per_minute=100)
        _, secret = await make_key(running, ["infer"], limits=limits)
        reserve, taken = LocalLimiter.reserve, list[int]()

        async def counted(*args: Any) -> Any:
            taken.append(args[-1])
            return await reserve(*args)

        monkeypatch.setattr(LocalLimiter, "reserve", counted)
        never = await prompts_of(running, secret, prompt=["a", "b", "c"], max_tokens=40)
        error = never.json()["error"]
        assert (never.status_code, error["code"]) == (400, "token_limit_too_low")
        assert error["message"].startswith(
            "this request may take 123 tokens (3 candidates of up to 40, and the prompts of 3 "
            "answers), and its key has 100 per minute"
        )
        arms = {"arms": ["reference", "bon"], "best_of": 2}
        compared = await ask(running, secret, "/v1/compare", **arms, max_tokens=48)
        assert (compared.status_code, compared.json()["error"]["code"]) == (
            400, "token_limit_too_low",
        )  # fmt: skip
        assert (
            "may take 146 tokens (3 candidates of up to 48" in compared.json()["error"]["message"]
        )
        assert taken == []
        paid = await prompts_of(running, secret, prompt=["a", "b", "c"], max_tokens=20)
        used = paid.json()["usage"]["total_tokens"]
        assert taken == [63]
        assert int(paid.headers["x-ratelimit-remaining-tokens"]) == 100 - used
        left = await ask(running, secret, "/v1/compare", **arms, max_tokens=32)
        assert "100 tokens per minute" in refused(left)["message"]
        assert taken == [63, 98]
        assert await running.gateway.store.completions.count() == 3  # nothing was drawn in vain


async def test_a_client_that_leaves_while_its_tokens_are_reserved_has_nothing_drawn(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run(make_config()) as running:
        limits = KeyLimits(tokens_per_minute=10_000)
        _, secret = await make_key(running, ["infer"], limits=limits)
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def slow(*_: Any) -> Any:
            begun.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        monkeypatch.setattr(LocalLimiter, "reserve", slow)
        body = {"model": f"{MODEL}:reference", "prompt": PROMPTS}
        authorization = (b"authorization", f"Bearer {secret}".encode())
        path = "/v1/completions"
        sent = await disconnecting_post(running, path, begun.wait(), authorization, body)
        assert sent[0]["status"] == 499
        assert cancelled.is_set()
        assert await running.gateway.store.completions.count() == 0
