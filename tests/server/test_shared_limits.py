"""Limits of a key that several gateways count together, in PostgreSQL."""

import asyncio
import random
from typing import Any

import httpx
import pytest
from api_keys import bearer, make_key
from databases import OpenStoreAt
from rate_limits import HI
from running_gateway import MakeConfig, Running

from bond_core.errors import StoreUnavailableError
from bond_core.store import KeyLimits
from bond_core.store.allowance import Usage
from bond_server.access.limiter import SharedLimiter
from bond_server.app import create_app


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

    monkeypatch.setattr(type(store.key_usage), "end", lambda self, *a, **_: away(*a))
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
        for gateway in gateways:
            gateway.store.key_usage._clock = lambda: 1000.0  # nothing is refilled
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
    assert left == 100_000 - spent
