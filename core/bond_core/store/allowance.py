"""How much of its limits a key has left: two token buckets, in whole numbers.

A limit of L per minute is a bucket that holds L at most, is full at first, and refills evenly at
L / 60 per second:

    level(t) = min(L, level(t0) + (t - t0) * L / 60 s)

What costs c is admitted if level >= c, and takes c. Over any span of s seconds so at most
L * (1 + s / 60) are admitted. Levels are counted in 1 / 60,000,000 of a unit and times in
microseconds, so that one microsecond refills exactly L and nothing is ever rounded.

Tokens are reserved before they are drawn and settled by what was drawn: a level may fall below
zero, and what comes later waits until the debt is refilled.
"""

from dataclasses import dataclass, replace
from typing import Literal

from bond_core.store.access_records import KeyLimits

UNIT = 60_000_000
"""Levels per request or token; the microseconds of a minute."""

LimitName = Literal["requests", "tokens", "concurrency"]


@dataclass(frozen=True, slots=True)
class Usage:
    """The levels of one key's two buckets at a time, and how many of its requests run."""

    requests: int
    """In 1 / `UNIT` of a request."""
    tokens: int
    """In 1 / `UNIT` of a token; negative is a debt."""
    at_us: int
    """Microseconds on the clock of whoever counts."""
    running: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit is in the way, and for how long."""

    limit: LimitName
    wait_us: int
    """Microseconds until the same request would be admitted if nothing else happened; 0 if only
    the end of another request helps."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a key has left; None where it is without limit."""

    remaining_requests: int | None = None
    reset_requests_us: int = 0
    """Until the bucket is full."""
    remaining_tokens: int | None = None
    reset_tokens_us: int = 0


def full(limits: KeyLimits, now_us: int) -> Usage:
    """The usage of a key that was never used."""
    return Usage(
        (limits.requests_per_minute or 0) * UNIT, (limits.tokens_per_minute or 0) * UNIT, now_us
    )


def refilled(usage: Usage, limits: KeyLimits, now_us: int) -> Usage:
    """The usage at a later time. A clock that lags behind (another gateway's) changes nothing."""
    elapsed_us = max(0, now_us - usage.at_us)
    return replace(
        usage,
        requests=_level(usage.requests, limits.requests_per_minute, elapsed_us),
        tokens=_level(usage.tokens, limits.tokens_per_minute, elapsed_us),
        at_us=max(now_us, usage.at_us),
    )


def admit(usage: Usage, limits: KeyLimits) -> Usage | Refusal:
    """Take one request and one place among the running ones, or say what is in the way."""
    if limits.concurrency is not None and usage.running >= limits.concurrency:
        return Refusal("concurrency", 0)
    left = usage.requests
    if limits.requests_per_minute is not None:
        wait_us = _wait_us(left, limits.requests_per_minute, 1)
        if wait_us:
            return Refusal("requests", wait_us)
        left -= UNIT
    return replace(usage, requests=left, running=usage.running + 1)


def reserve(usage: Usage, limits: KeyLimits, tokens: int) -> Usage | Refusal:
    """Take tokens that are about to be drawn, or say how long to wait for them.

    More than a minute's allowance is never there at once; refuse it before asking.
    """
    if limits.tokens_per_minute is None:
        return usage
    wait_us = _wait_us(usage.tokens, limits.tokens_per_minute, tokens)
    if wait_us:
        return Refusal("tokens", wait_us)
    return replace(usage, tokens=usage.tokens - tokens * UNIT)


def settle(usage: Usage, limits: KeyLimits, back: int, *, counts: bool = True) -> Usage:
    """Give back reserved tokens that were not drawn; a negative number takes those drawn beyond.
    A request that does not count is given back as well."""
    requests, tokens = usage.requests, usage.tokens
    if limits.tokens_per_minute is not None:
        tokens = min(limits.tokens_per_minute * UNIT, tokens + back * UNIT)
    if limits.requests_per_minute is not None and not counts:
        requests = min(limits.requests_per_minute * UNIT, requests + UNIT)
    return replace(usage, requests=requests, tokens=tokens)


def ended(usage: Usage) -> Usage:
    """Give up the place of a request that has ended."""
    return replace(usage, running=max(0, usage.running - 1))


def standing(usage: Usage, limits: KeyLimits) -> Standing:
    """What the usage leaves."""
    requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
    return Standing(
        None if requests is None else max(0, usage.requests // UNIT),
        0 if requests is None else _wait_us(usage.requests, requests, requests),
        None if tokens is None else max(0, usage.tokens // UNIT),
        0 if tokens is None else _wait_us(usage.tokens, tokens, tokens),
    )


def _level(level: int, limit: int | None, elapsed_us: int) -> int:
    return 0 if limit is None else min(limit * UNIT, level + elapsed_us * limit)


def _wait_us(level: int, limit: int, cost: int) -> int:
    """Microseconds until the level reaches the cost, rounded up."""
    missing = cost * UNIT - level
    return 0 if missing <= 0 else -(-missing // limit)
