"""Where the usage of keys is counted: in memory by a gateway alone, else in the store.

The ready-made limiters (the package `limits`, say) count in memory, Redis, memcached or MongoDB,
not in the store that several gateways share here, and cannot give back what was reserved.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from bond_core.errors import StoreUnavailableError
from bond_core.store import KeyLimits, KeyUsage, Store, allowance
from bond_core.store.allowance import Refusal, Usage
from bond_core.store.key_usage import RUNNING_TTL_S, Outcome
from bond_server.ids import uuid7

logger = logging.getLogger(__name__)


class Limiter(Protocol):
    """Counts; every method returns the usage as it then stands."""

    async def admit(self, key_id: str, limits: KeyLimits) -> Outcome:
        """Take one request and a place among the running ones."""
        ...

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int) -> Outcome:
        """Take tokens that are about to be drawn."""
        ...

    async def end(self, key_id: str, limits: KeyLimits, back: int, *, counts: bool = True) -> Usage:
        """Give up a request's place, and give back the tokens that it did not draw; one that does
        not count is given back too."""
        ...

    async def run(self) -> None:
        """Whatever has to be done again and again, for ever."""
        ...

    async def close(self) -> None:
        """Give up all places."""
        ...


class LocalLimiter:
    """One gateway alone (SQLite takes no second one): memory is exact; a restart fills the
    buckets."""

    def __init__(self, clock_us: Callable[[], int] = lambda: time.monotonic_ns() // 1000) -> None:
        self._clock_us = clock_us
        self._usage: dict[str, Usage] = {}

    async def admit(self, key_id: str, limits: KeyLimits) -> Outcome:
        """Take one request and a place among the running ones."""
        usage = self._now(key_id, limits)
        return self._keep(key_id, usage, allowance.admit(usage, limits))

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int) -> Outcome:
        """Take tokens that are about to be drawn."""
        usage = self._now(key_id, limits)
        return self._keep(key_id, usage, allowance.reserve(usage, limits, tokens))

    async def end(self, key_id: str, limits: KeyLimits, back: int, *, counts: bool = True) -> Usage:
        """Give up a request's place, and give back the tokens that it did not draw; one that does
        not count is given back too."""
        settled = allowance.settle(self._now(key_id, limits), limits, back, counts=counts)
        usage = allowance.ended(settled)
        self._usage[key_id] = usage
        return usage

    async def run(self) -> None:
        """Nothing has to be renewed."""

    async def close(self) -> None:
        """Nothing outlives the process."""

    def _now(self, key_id: str, limits: KeyLimits) -> Usage:
        now_us = self._clock_us()
        usage = self._usage.get(key_id)
        if usage is None:
            return allowance.full(limits, now_us)
        return allowance.refilled(usage, limits, now_us)

    def _keep(self, key_id: str, before: Usage, taken: Usage | Refusal) -> Outcome:
        if isinstance(taken, Refusal):
            return before, taken
        self._usage[key_id] = taken
        return taken, None


class SharedLimiter:
    """Several gateways over one database: one short transaction for each step."""

    def __init__(self, usage: KeyUsage) -> None:
        self._usage = usage
        self._holder = uuid7()
        self._running: Counter[str] = Counter()
        """Requests that were admitted here and have not ended."""
        self._under_way: Counter[str] = Counter()
        """Steps that are on their way to the store, so that nobody knows what it counts."""

    async def admit(self, key_id: str, limits: KeyLimits) -> Outcome:
        """Take one request and a place among the running ones."""
        with self._step(key_id):
            usage, refusal = await self._usage.admit(key_id, limits, self._holder)
            self._running[key_id] += refusal is None
        return usage, refusal

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int) -> Outcome:
        """Take tokens that are about to be drawn."""
        return await self._usage.reserve(key_id, limits, tokens)

    async def end(self, key_id: str, limits: KeyLimits, back: int, *, counts: bool = True) -> Usage:
        """Give up a request's place, and give back the tokens that it did not draw; one that does
        not count is given back too."""
        with self._step(key_id):
            self._running[key_id] -= 1
            return await self._usage.end(key_id, limits, back, self._holder, counts=counts)

    async def run(self) -> None:
        """Renew this gateway's places for ever, so that others count them."""
        while True:
            await asyncio.sleep(RUNNING_TTL_S / 3)
            try:
                await self.renew()
            except StoreUnavailableError as error:
                logger.warning("the limits of keys could not be renewed: %s", error.message)
            except Exception:
                logger.exception("renewing the limits of keys failed; it goes on")

    async def renew(self) -> None:
        """Renew the places once, and correct what a step that failed half way has left."""
        await self._usage.renew(
            self._holder, lambda key: None if self._under_way[key] else self._running[key]
        )
        self._running += Counter()  # drops the keys that have come to zero

    async def close(self) -> None:
        """Give up all places."""
        await self._usage.leave(self._holder)

    @contextmanager
    def _step(self, key_id: str) -> Generator[None]:
        self._under_way[key_id] += 1
        try:
            yield
        finally:
            self._under_way[key_id] -= 1
            if not self._under_way[key_id]:
                del self._under_way[key_id]


def limiter_of(store: Store) -> Limiter:
    """The limiter that counts exactly over this store."""
    return SharedLimiter(store.key_usage) if store.takes_several_gateways else LocalLimiter()
