"""Limits of a key over real gateways: what is admitted, what is said, what is settled."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from api_keys import bearer, make_key
from databases import OpenStoreAt
from disconnecting import disconnecting_post
from running_gateway import MODEL, MakeConfig, Run, Running, eventually
from stored import all_rows

from bond_core.errors import EngineUnavailableError, StoreUnavailableError
from bond_core.store import KeyLimits
from bond_core.store.allowance import Usage
from bond_server.access.limiter import LocalLimiter, SharedLimiter
from bond_server.access.ratelimit_headers import duration
from bond_server.app import create_app

HI = {"messages": [{"role": "user", "content": "hi"}]}
PROMPT_BYTES = 2


def stopped(running: Running) -> Callable[[float], None]:
    """Give the gateway's limits a clock that stands still, and return what moves it by seconds."""
    limiter = running.gateway.gatekeeper.limiter
    assert isinstance(limiter, LocalLimiter)
    now = [1_000_000]
    limiter._clock_us = lambda: now[0]

    def move(seconds: float) -> None:
        now[0] += round(seconds * 1e6)

    return move


async def ask(running: Running, secret: str, path: str = "/v1/distilled", **body: Any) -> Any:
    return await running.client.post(path, json={**HI, **body}, headers=bearer(secret))


def refused(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 429, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    return error


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
    config = make_config(engine={"type": "fake", "delay_s": 0.3}, store={"url": database_url})
    async with run(config) as running:
        _, secret = await make_key(running, ["infer"], limits=KeyLimits(concurrency=3))
        for _ in range(2):
            responses = await asyncio.gather(*(ask(running, secret) for _ in range(8)))
            answered = [r for r in responses if r.status_code == 200]
            assert len(answered) == 3
            for response in responses:
                if response not in answered:
                    assert "3 requests running" in refused(response)["message"]
                    assert response.headers["retry-after"] == "1"
                    assert response.headers["retry-after-ms"] == "1000"
        for _ in range(5):  # one after the other never meets itself
            assert (await ask(running, secret)).status_code == 200


async def test_a_client_that_leaves_gives_its_place_up_and_pays_what_was_reserved(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(engine={"type": "fake", "delay_s": 30.0})) as running:
        stopped(running)
        limits = KeyLimits(tokens_per_minute=1000, concurrency=1)
        key, secret = await make_key(running, ["infer"], limits=limits)
        limiter = running.gateway.gatekeeper.limiter
        assert isinstance(limiter, LocalLimiter)

        def usage() -> Usage:
            return limiter._now(key.id, limits)

        asking = asyncio.create_task(ask(running, secret, max_tokens=100))

        async def runs() -> bool:
            return usage().running == 1 and usage().tokens < 1000 * 60_000_000

        await eventually(runs)
        refused(await ask(running, secret))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert usage().running == 0
        assert usage().tokens == (1000 - 101) * 60_000_000


async def test_two_gateways_share_the_limits_of_a_key(
    postgres: Any, open_store_at: OpenStoreAt
) -> None:
    url, now = postgres.migrated(), [1000.0]
    stores = [await open_store_at(url, clock=lambda: now[0]) for _ in range(2)]
    limiters = [SharedLimiter(store.key_usage) for store in stores]
    limits = KeyLimits(requests_per_minute=25, tokens_per_minute=2000, concurrency=9)
    draw = random.Random(3)

    async def request(limiter: SharedLimiter) -> str:
        _, refusal = await limiter.admit("k", limits)
        if refusal is not None:
            return refusal.limit
        _, refusal = await limiter.reserve("k", limits, 100)
        await asyncio.sleep(0)
        await limiter.end("k", limits, 0 if refusal is not None else 40)
        return "ok" if refusal is None else refusal.limit

    async def burst(size: int) -> list[str]:
        return await asyncio.gather(*(request(draw.choice(limiters)) for _ in range(size)))

    outcomes = [await burst(1) for _ in range(40)]
    flat = [outcome for [outcome] in outcomes]
    assert flat == ["ok"] * 25 + ["requests"] * 15
    now[0] += 60
    together = await burst(60)
    admitted = [o for o in together if o in ("ok", "tokens")]
    assert len(admitted) <= 25
    usage, _ = await limiters[0].admit("k", limits)
    spent = together.count("ok") * 60
    assert usage.tokens == (2000 - spent) * 60_000_000
    assert usage.requests == (25 - len(admitted) - (len(admitted) < 25)) * 60_000_000
    assert usage.running == (len(admitted) < 25)


async def test_nine_run_at_once_on_two_gateways_and_no_more(
    postgres: Any, open_store_at: OpenStoreAt
) -> None:
    url = postgres.migrated()
    limiters = [SharedLimiter((await open_store_at(url)).key_usage) for _ in range(2)]
    limits = KeyLimits(concurrency=9)
    taken = await asyncio.gather(*(limiters[index % 2].admit("k", limits) for index in range(30)))
    assert sum(refusal is None for _, refusal in taken) == 9
    assert max(usage.running for usage, _ in taken) == 9
    # one gateway ends without a word to its requests: the other's stay
    mine = sum(refusal is None for _, refusal in taken[::2])
    await limiters[0].close()
    again = [await limiters[1].admit("k", limits) for _ in range(mine + 1)]
    assert [refusal is None for _, refusal in again] == [True] * mine + [False]


async def test_a_step_that_failed_half_way_is_put_right(
    postgres: Any, open_store_at: OpenStoreAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store_at(postgres.migrated())
    limiter = SharedLimiter(store.key_usage)
    limits = KeyLimits(concurrency=2)
    for _ in range(2):
        await limiter.admit("k", limits)
    end = store.key_usage.end

    async def away(*_: Any) -> Usage:
        raise StoreUnavailableError("the store is away")

    monkeypatch.setattr(type(store.key_usage), "end", lambda self, *a: away(*a))
    with pytest.raises(StoreUnavailableError):
        await limiter.end("k", limits, 0)
    monkeypatch.setattr(type(store.key_usage), "end", lambda self, *a: end(*a))
    assert (await limiter.admit("k", limits))[1] is not None  # its place is still counted
    await limiter.renew()
    usage, refusal = await limiter.admit("k", limits)
    assert (refusal, usage.running) == (None, 2)


async def test_gateways_over_postgres_answer_within_shared_limits(
    make_config: MakeConfig, postgres: Any, tmp_path: Any
) -> None:
    url = postgres.migrated()
    apps = [
        create_app(make_config(store={"url": url}, data_dir=str(tmp_path / f"data-{i}")))
        for i in range(2)
    ]
    async with (
        apps[0].router.lifespan_context(apps[0]),
        apps[1].router.lifespan_context(apps[1]),
    ):
        gateways = [app.state.gateway for app in apps]
        clients = [
            httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")
            for app in apps
        ]
        first = Running(apps[0], gateways[0], clients[0])
        limits = KeyLimits(requests_per_minute=6, tokens_per_minute=100_000)
        _, secret = await make_key(first, ["infer"], limits=limits)
        await gateways[1].gatekeeper.keyring.refresh()
        responses = [
            await clients[index % 2].post("/v1/best-of-n", json=HI, headers=bearer(secret))
            for index in range(8)
        ]
        for client in clients:
            await client.aclose()
    assert [r.status_code for r in responses] == [200] * 6 + [429] * 2
    assert [int(r.headers["x-ratelimit-remaining-requests"]) for r in responses[:6]] == [
        5, 4, 3, 2, 1, 0,
    ]  # fmt: skip
    spent = sum(r.json()["usage"]["total_tokens"] for r in responses[:6])
    left = int(responses[5].headers["x-ratelimit-remaining-tokens"])
    assert 100_000 - spent <= left <= 100_000 - spent + 2 * 1667  # two seconds' refill at most


def test_durations_are_written_as_openai_does() -> None:
    for microseconds, text in (
        (0, "0s"), (1, "1ms"), (999_000, "999ms"), (999_001, "1s"), (1_500_000, "1.5s"),
        (59_999_999, "1m0s"), (360_000_000, "6m0s"), (3_661_234_000, "61m1.234s"),
    ):  # fmt: skip
        assert duration(microseconds) == text


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


async def test_candidates_that_a_deadline_cut_off_are_paid_for(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(engine={"type": "fake", "delay_s": 0.4, "capacity": 2})
    async with run(config) as running:
        stopped(running)
        limits = KeyLimits(requests_per_minute=10, tokens_per_minute=10_000)
        _, secret = await make_key(running, ["infer"], limits=limits)
        body = {"best_of": 6, "max_tokens": 50, "bond": {"deadline_ms": 700}}
        some = await ask(running, secret, "/v1/best-of-n", **body)
        assert some.json()["bond"]["degraded"] == "deadline"
        usage = some.json()["usage"]
        assert usage["bond"]["cut_completion_tokens"] > 0
        left = 10_000 - usage["total_tokens"]
        assert some.headers["x-ratelimit-remaining-tokens"] == str(left)
        none = await ask(running, secret, "/v1/best-of-n", **body | {"bond": {"deadline_ms": 200}})
        assert none.status_code == 504
        [failed] = [r for r in await all_rows(running.gateway.store) if r.status == "failed"]
        assert failed.cut_tokens > 0
        spent = usage["prompt_tokens"] + failed.cut_tokens
        assert none.headers["x-ratelimit-remaining-tokens"] == str(left - spent)


PROMPTS = [f"prompt number {index}" for index in range(10)]


def prompts_of(running: Running, secret: str, **body: Any) -> Any:
    asked = {"model": f"{MODEL}:reference", "prompt": PROMPTS, "max_tokens": 50, **body}
    return running.client.post("/v1/completions", json=asked, headers=bearer(secret))


def remaining(running: Running, key_id: str, limits: KeyLimits) -> Usage:
    limiter = running.gateway.gatekeeper.limiter
    assert isinstance(limiter, LocalLimiter)
    return limiter._now(key_id, limits)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_several_prompts_cost_all_of_them_also_in_a_stream(
    run: Run, make_config: MakeConfig, stream: bool
) -> None:
    slow: dict[str, Any] = {"type": "fake", "delay_s": 0.02, "capacity": 1}
    config = make_config(engine=slow, admission={"max_rows": 1, "max_waiting_rows": 64})
    async with run(config) as running:
        stopped(running)
        limits = KeyLimits(tokens_per_minute=10_000, concurrency=1)
        key, secret = await make_key(running, ["infer"], limits=limits)
        asking = asyncio.create_task(prompts_of(running, secret, stream=stream))

        async def half() -> bool:
            done = running.metric("bond_log_rows_total", arm="reference", status="ok")
            return done >= 5

        await eventually(half)
        assert remaining(running, key.id, limits).running == 1
        refused(await ask(running, secret))
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
    slow: dict[str, Any] = {"type": "fake", "delay_s": 0.1, "capacity": 1}
    config = make_config(engine=slow, admission={"max_rows": 1, "max_waiting_rows": 64})
    async with run(config) as running:
        stopped(running)
        limits = KeyLimits(tokens_per_minute=10_000)
        key, secret = await make_key(running, ["infer"], limits=limits)

        async def first() -> bool:
            return running.metric("bond_log_rows_total", arm="reference", status="ok") >= 1

        body = {"model": f"{MODEL}:reference", "prompt": PROMPTS, "max_tokens": 50, "stream": True}
        authorization = (b"authorization", f"Bearer {secret}".encode())
        sent = await disconnecting_post(
            running, "/v1/completions", eventually(first), authorization, body
        )
        assert all(message.get("more_body", True) for message in sent)  # not told to the end
        await running.gateway.background.drain(5.0)
        rows = await all_rows(running.gateway.store)
        answered = [row.total_tokens for row in rows if row.status == "ok"]
        each = 4 + 50  # "prompt number 3" is 15 bytes
        spent = sum(answered) + each * (10 - len(answered))
        assert 1 <= len(answered) < 10
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
        cancelled = asyncio.Event()

        async def slow(*_: Any) -> Any:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        monkeypatch.setattr(LocalLimiter, "reserve", slow)
        body = {"model": f"{MODEL}:reference", "prompt": PROMPTS}
        authorization = (b"authorization", f"Bearer {secret}".encode())
        path = "/v1/completions"
        sent = await disconnecting_post(running, path, 0.05, authorization, body)
        assert sent[0]["status"] == 499
        assert cancelled.is_set()
        assert await running.gateway.store.completions.count() == 0
