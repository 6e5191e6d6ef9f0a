"""Lifetimes: what is over is deleted in the background, a few rows at a time."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from bond_core.config import RetentionConfig
from bond_core.errors import StoreUnavailableError
from bond_core.store import Store
from bond_server.ids import uuid7
from bond_server.metrics import Metrics

logger = logging.getLogger(__name__)

LEASE = "retention"
LEASE_S = 60.0
DAY_S = 86_400.0
REST = 3.0
"""Pause after each chunk, as a multiple of the time that it took: answers come first."""


class Retention:
    """Deletes what is over, on one gateway at a time."""

    def __init__(self, store: Store, config: RetentionConfig, metrics: Metrics) -> None:
        self._store = store
        self._config = config
        self._metrics = metrics
        self._holder = uuid7()

    async def run(self) -> None:
        """Look for what is over now and then; what fails is logged and tried again."""
        while True:
            await asyncio.sleep(self._config.check_every_s)
            try:
                await self.purge(time.time())
            except StoreUnavailableError as error:
                logger.warning("retention postponed: %s", error)
            except Exception:
                logger.exception("retention failed; it goes on")

    async def purge(self, now: float) -> dict[str, int]:
        """Delete all that is over at a time; returns how many of each kind.

        Nothing is done while another gateway holds the lease.
        """
        deletions, config = self._store.deletions, self._config
        done = {"content": 0, "rows": 0, "answers": 0}
        if config.content_days is not None:
            before = now - config.content_days * DAY_S
            done["content"] = await self._repeat(
                "content", lambda limit: deletions.expire_contents(before, limit)
            )
        if config.rows_days is not None:
            oldest = now - config.rows_days * DAY_S
            done["rows"] = await self._repeat(
                "rows", lambda limit: deletions.expire_rows(oldest, limit)
            )
        done["answers"] = await self._repeat("answers", deletions.expire_answers)
        await self._store.leases.release(LEASE, self._holder)
        return done

    async def _repeat(self, kind: str, expire: Callable[[int], Awaitable[int]]) -> int:
        """Chunk after chunk until one is not full, resting in between."""
        total = 0
        while await self._store.leases.acquire(LEASE, self._holder, LEASE_S):
            began = time.perf_counter()
            count = await expire(self._config.chunk_rows)
            total += count
            self._metrics.keeping.expired.labels(kind).inc(count)
            if count < self._config.chunk_rows:
                break
            await asyncio.sleep(REST * (time.perf_counter() - began))
        return total
