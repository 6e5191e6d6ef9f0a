"""Gateways whose keys have limits: a clock that stands still, and what requests are told."""

from collections.abc import Callable
from typing import Any

import httpx
from api_keys import bearer
from running_gateway import Running

from bond_core.store import KeyLimits
from bond_core.store.allowance import Usage
from bond_server.access.limiter import LocalLimiter

HI = {"messages": [{"role": "user", "content": "hi"}]}


def stopped(running: Running) -> Callable[[float], None]:
    """Give the gateway's limits a clock that stands still, and return what moves it by seconds."""
    limiter = running.gateway.gatekeeper.limiter
    assert isinstance(limiter, LocalLimiter)
    now = [1_000_000]
    limiter._clock_us = lambda: now[0]

    def move(seconds: float) -> None:
        now[0] += round(seconds * 1e6)

    return move


def remaining(running: Running, key_id: str, limits: KeyLimits) -> Usage:
    """What a key has left, and how many of its requests run."""
    limiter = running.gateway.gatekeeper.limiter
    assert isinstance(limiter, LocalLimiter)
    return limiter._now(key_id, limits)


async def ask(running: Running, secret: str, path: str = "/v1/distilled", **body: Any) -> Any:
    """Ask with a key."""
    return await running.client.post(path, json={**HI, **body}, headers=bearer(secret))


def refused(response: httpx.Response) -> dict[str, Any]:
    """The error of a request over a limit."""
    assert response.status_code == 429, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    return error
