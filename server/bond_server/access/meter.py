"""One request against the limits of its key: admitted, reserved, spent, settled.

What an answer may cost at most is reserved before anything is drawn: the prompt, estimated at four
bytes per token, and N times `max_tokens` for Best-of-N. What it did cost, the prompt once and every
candidate, is settled when the answer is there; what a deadline cut off counts as far as it was
drawn, and the prompt by its estimate if nothing was told of it. An answer that otherwise fails or
is refused costs nothing; one that the client breaks off costs what was reserved for it, or drawing
would be free for whoever hangs up in time. Of several answers to one request, each costs what it
would alone.
"""

import logging
import math
from collections.abc import Sequence

from bond_core.errors import InvalidRequestError, StoreUnavailableError
from bond_core.store import KeyLimits
from bond_core.store.access_records import NO_LIMITS
from bond_core.store.allowance import Refusal, Usage, standing
from bond_core.types import Message
from bond_server.access.failures import LimitExceededError
from bond_server.access.limiter import Limiter
from bond_server.access.ratelimit_headers import ratelimit_headers, retry_headers

logger = logging.getLogger(__name__)

BYTES_PER_TOKEN = 4


class Meter:
    """Made by the middleware, carried by the request's context to whoever draws tokens."""

    def __init__(self, limiter: Limiter | None, key_id: str, limits: KeyLimits) -> None:
        self._limiter = limiter
        self._key_id = key_id
        self._limits = limits
        self._usage: Usage | None = None
        self._reserved = 0
        self._open = 0
        self._unspent = 0
        self._spent: int | None = None
        self._ended = False

    async def begin(self) -> None:
        """Take one request and a place. Raises `LimitExceededError`."""
        if self._limiter is not None:
            self._usage, refusal = await self._limiter.admit(self._key_id, self._limits)
            self._refuse(refusal)

    async def reserve(
        self, prompts: Sequence[Sequence[Message]], max_tokens: int, candidates: Sequence[int]
    ) -> list[int]:
        """Take the most that the answers of a request can cost, all at once; gives what was taken
        for each. Each has its prompt and its number of candidates.

        Raises `LimitExceededError` if the key has not so much left now, `InvalidRequestError` if it
        never has.
        """
        limit = self._limits.tokens_per_minute
        if self._limiter is None:
            return [0] * len(prompts)
        if limit is None:
            self._open += len(prompts)
            return [0] * len(prompts)
        most = [estimate(p, max_tokens, n) for p, n in zip(prompts, candidates, strict=True)]
        tokens = sum(most)
        if tokens > limit:
            several = len(prompts) > 1
            read = f"the prompts of {len(prompts)} answers" if several else "the prompt"
            raise InvalidRequestError(
                f"this request may take {tokens} tokens ({sum(candidates)} candidates of up to "
                f"{max_tokens}, and {read}), and its key has {limit} per minute: lower max_tokens "
                f"or best_of{', or ask for fewer answers at once' if several else ''}",
                param="max_tokens",
                code="token_limit_too_low",
            )
        self._usage, refusal = await self._limiter.reserve(self._key_id, self._limits, tokens)
        if refusal is not None:
            await self.end(broken_off=False, counts=False)
        self._refuse(refusal)
        self._reserved += tokens
        self._open += len(prompts)
        self._unspent += tokens
        return most

    def spend(self, tokens: int, reserved: int) -> None:
        """Tell what an answer did cost, and what was reserved for it; several answers of one
        request add up."""
        self._spent = (self._spent or 0) + tokens
        self._open -= 1
        self._unspent -= reserved

    @property
    def knows_cost(self) -> bool:
        """Whether every answer of the request has told what it cost."""
        return self._spent is not None and self._open <= 0

    async def end(self, *, broken_off: bool, counts: bool = True) -> None:
        """Give up the place and settle what was reserved by what was spent; the first end is the
        one that does. A request that was refused as too much does not count as one.

        A store that does not answer is logged: the answer is there, and the reservation stands.
        """
        if self._limiter is None or self._ended:
            return
        self._ended = True
        spent = (self._spent or 0) + (self._unspent if broken_off else 0)
        back = self._reserved - spent
        try:
            self._usage = await self._limiter.end(self._key_id, self._limits, back, counts=counts)
        except StoreUnavailableError as error:
            logger.warning("the cost of an answer was not settled: %s", error.message)

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit-…` headers of what is left now."""
        if self._usage is None:
            return {}
        return ratelimit_headers(self._limits, standing(self._usage, self._limits))

    def _refuse(self, refusal: Refusal | None) -> None:
        if refusal is not None:
            raise LimitExceededError(
                _describe(refusal, self._limits), self.headers() | retry_headers(refusal)
            )


UNMETERED = Meter(None, "", NO_LIMITS)
"""Of a key without limits."""


def estimate(messages: Sequence[Message], max_tokens: int, n: int) -> int:
    """The most that an answer is taken to cost before the prompt has been tokenised."""
    num_bytes = sum(
        len(text.encode(errors="replace"))
        for message in messages
        for text in (
            message.content,
            message.reasoning,
            *(call.arguments for call in message.tool_calls),
        )
    )
    return math.ceil(num_bytes / BYTES_PER_TOKEN) + n * max_tokens


def _describe(refusal: Refusal, limits: KeyLimits) -> str:
    if refusal.limit == "concurrency":
        return (
            f"this key has {limits.concurrency} requests running, and no more may run at once; "
            "wait until one ends"
        )
    limit = limits.requests_per_minute if refusal.limit == "requests" else limits.tokens_per_minute
    return (
        f"this key has used its {limit} {refusal.limit} per minute; try again in "
        f"{refusal.wait_us / 1e6:.3f} s"
    )
