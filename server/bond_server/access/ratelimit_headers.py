"""The headers by which clients learn what is left and when to come back, as OpenAI names them."""

from bond_core.store import KeyLimits
from bond_core.store.allowance import Refusal, Standing

BUSY_RETRY_US = 1_000_000
"""When to try again where nobody knows when another request will end."""


def ratelimit_headers(limits: KeyLimits, standing: Standing) -> dict[str, str]:
    """Limit, remaining and time to full of requests and tokens, where they are limited."""
    headers: dict[str, str] = {}
    for name, limit, remaining, reset_us in (
        ("requests", limits.requests_per_minute, standing.remaining_requests,
         standing.reset_requests_us),
        ("tokens", limits.tokens_per_minute, standing.remaining_tokens, standing.reset_tokens_us),
    ):  # fmt: skip
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(remaining)
            headers[f"x-ratelimit-reset-{name}"] = duration(reset_us)
    return headers


def retry_headers(refusal: Refusal) -> dict[str, str]:
    """When to try again: whole seconds for everyone, milliseconds for clients that know them."""
    wait_us = refusal.wait_us or BUSY_RETRY_US
    return {
        "retry-after": str(-(-wait_us // 1_000_000)),
        "retry-after-ms": str(-(-wait_us // 1000)),
    }


def duration(microseconds: int) -> str:
    """A time as OpenAI writes it, rounded up to milliseconds: `0s`, `12ms`, `1.5s`, `6m0s`."""
    ms = -(-microseconds // 1000)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    seconds = f"{ms / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
