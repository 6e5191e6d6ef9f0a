"""One request against the limits of its key: admitted, reserved, spent, settled.

What an answer may cost at most is reserved before anything is drawn: the prompt, estimated at four
bytes per token, and N times `max_tokens` for Best-of-N. What it did cost, the prompt once and every
candidate, is settled when the answer is there; what a deadline cut off counts as far as it was
drawn, and the prompt by its estimate if nothing was told of it. A request that otherwise fails or
is refused costs nothing; one that the client breaks off costs what was reserved, or drawing would
be free for whoever hangs up in time.
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
        self._spent: int | None = None
        self._ended = False

    async def begin(self) -> None:
        """Take one request and a place. Raises `LimitExceededError`."""
        if self._limiter is not None:
            self._usage, refusal = await self._limiter.admit(self._key_id, self._limits)
            self._refuse(refusal)

    async def reserve(self, messages: Sequence[Message], max_tokens: int, n: int) -> None:
        """Take the most that n candidates can cost.

        Raises `LimitExceededError` if the key has not so much left now, `InvalidRequestError` if it
        never has.
        """
        limit = self._limits.tokens_per_minute
        if self._limiter is None or limit is None:
            return
        tokens = estimate(messages, max_tokens, n)
        if tokens > limit:
            raise InvalidRequestError(
                f"this request may take {tokens} tokens ({n} candidates of up to {max_tokens}, and "
                f"the prompt), and its key has {limit} per minute: lower max_tokens or best_of",
                param="max_tokens",
                code="token_limit_too_low",
            )
        self._usage, refusal = await self._limiter.reserve(self._key_id, self._limits, tokens)
        self._refuse(refusal)
        self._reserved += tokens

    def spend(self, tokens: int) -> None:
        """Tell what an answer did cost; several answers of one request add up."""
        self._spent = (self._spent or 0) + tokens

    @property
    def knows_cost(self) -> bool:
        """Whether an answer has told what it cost."""
        return self._spent is not None

    async def end(self, *, broken_off: bool) -> None:
        """Give up the place and settle what was reserved by what was spent; the first end counts.

        A store that does not answer is logged: the answer is there, and the reservation stands.
        """
        if self._limiter is None or self._ended:
            return
        self._ended = True
        unless_told = self._reserved if broken_off else 0
        spent = unless_told if self._spent is None else self._spent
        back = self._reserved - spent
        try:
            self._usage = await self._limiter.end(self._key_id, self._limits, back)
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
        for text in (message.content, *(call.arguments for call in message.tool_calls))
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
