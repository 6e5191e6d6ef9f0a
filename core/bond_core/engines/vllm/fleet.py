"""The replicas of one model: which of them gets a request, and which of them are well."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from bond_core.engines.vllm.connection import AwayError, RefusedError
from bond_core.engines.vllm.replica import Replica
from bond_core.errors import BondError, EngineUnavailableError
from bond_core.types import Conversation

logger = logging.getLogger(__name__)

T = TypeVar("T")
AFFINITY_ROWS = 4
AFFINITY_FACTOR = 1.25
"""A request goes where its prefix is cached unless that replica has more than 1.25 times the mean
load and 4 rows: consistent hashing with bounded loads (arXiv 1608.01350)."""
LONGEST_PAUSE_S = 30.0
"""Between trials to make a server ready again; they begin a look apart, and the pause doubles."""
LOOKS_MISSED = 2
"""Looks in a row that a replica may miss before it counts as away."""


class Fleet:
    """Chooses, retries and watches."""

    def __init__(self, replicas: Sequence[Replica], every_s: float, timeout_s: float) -> None:
        self.replicas = tuple(replicas)
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._watching: list[asyncio.Task[None]] = []

    def choose(self, affinity: str, tried: Sequence[Replica] = ()) -> Replica:
        """The replica for a prompt with this prefix. Raises `EngineUnavailableError` if none."""
        ready = [r for r in self.replicas if r.ready and r not in tried]
        if not ready:
            reasons = "; ".join(
                f"{r.url}: {r.why_not_ready or 'just failed'}" for r in self.replicas
            )
            raise EngineUnavailableError(f"no vLLM server takes requests now ({reasons})")
        preferred = max(ready, key=lambda replica: _weight(affinity, replica.url))
        mean = sum(replica.rows for replica in ready) / len(ready)
        if preferred.rows <= AFFINITY_FACTOR * mean + AFFINITY_ROWS:
            return preferred
        return min(ready, key=lambda replica: replica.rows)

    async def call(self, affinity: str, rows: int, work: Callable[[Replica], Awaitable[T]]) -> T:
        """The result of `work` on a replica.

        It is tried again elsewhere while no server had begun it, and once more, on the same server
        if there is no other, when one broke off: nothing is stored there, so that doing it twice
        is safe. Not after a time-out, which would double the work of a fleet that is too slow, and
        not after an answer that says why.
        """
        tried: list[Replica] = []
        broken_off = False
        while True:
            replica = self._next(affinity, tried, broken_off)
            try:
                with replica.busy(rows):
                    return await replica.running(work(replica))
            except AwayError as error:
                if error.timed_out or error.status is not None or (error.reached and broken_off):
                    raise EngineUnavailableError(error.message, error.loggable) from error
                logger.debug("asking again: %s", error.loggable)
                broken_off = broken_off or error.reached
                tried.append(replica)

    def _next(self, affinity: str, tried: Sequence[Replica], broken_off: bool) -> Replica:
        try:
            return self.choose(affinity, tried)
        except EngineUnavailableError:
            # the connection may have been an old one that the server had closed
            again = [r for r in self.replicas if r.ready]
            if broken_off and len(tried) == 1 and again:
                return again[0]
            raise

    @asynccontextmanager
    async def held(self, affinity: str, rows: int) -> AsyncGenerator[Replica]:
        """A replica for a stream, which is never begun twice."""
        replica = self.choose(affinity)
        with replica.busy(rows):
            try:
                yield replica
            except AwayError as error:
                replica.failed(error.loggable)
                raise EngineUnavailableError(error.message, error.loggable) from error
            replica.answered()

    def watch(self, restore: Callable[[Replica], Awaitable[None]]) -> None:
        """Look at every replica from now on; `restore` makes one that came back fit for use."""
        self._watching = [
            asyncio.create_task(self._watch(replica, restore), name=f"watch {replica.url}")
            for replica in self.replicas
        ]

    async def close(self) -> None:
        """Stop looking and close the connections."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.gather(*(replica.connection.close() for replica in self.replicas))

    async def _watch(self, replica: Replica, restore: Callable[[Replica], Awaitable[None]]) -> None:
        missed = 0
        pause_s = self._every_s
        while True:
            await asyncio.sleep(pause_s)
            try:
                await replica.is_healthy(self._timeout_s)
                known = set(replica.adapters)  # what is loaded meanwhile, the look may not show
                held = await replica.names(self._timeout_s)
            except (AwayError, RefusedError, EngineUnavailableError) as error:
                missed += 1
                unreachable = isinstance(error, AwayError) and not error.reached
                if missed >= LOOKS_MISSED or unreachable:
                    replica.exclude(error.loggable)
                continue
            missed = 0
            missing = (known & replica.adapters) - held
            if replica.ready and not missing:
                continue
            if missing and missing == known:
                replica.exclude(f"it came back without {', '.join(sorted(missing))}")
            elif missing:  # what runs there can go on
                logger.warning("%s lost %s", replica.url, ", ".join(sorted(missing)))
            # each trial loads and probes everything, and holds up promotions meanwhile
            pause_s = min(2 * pause_s, max(LONGEST_PAUSE_S, self._every_s))
            try:
                await restore(replica)
            except BondError as error:
                replica.exclude(f"it cannot be made ready: {error.loggable}")
            except Exception:
                logger.exception("restoring %s failed", replica.url)
                replica.exclude("making it ready failed; see the log")
            else:
                replica.admit()
                pause_s = self._every_s


def affinity_of(prompt: Conversation) -> str:
    """What the turns of a conversation share, and so the cache: system message and first turn."""
    turns = 2 if prompt and prompt[0].role == "system" else 1
    return "\x1f".join(message.content for message in prompt[:turns])


def _weight(affinity: str, url: str) -> bytes:
    """Rendezvous hashing: each prefix has its own order of the replicas."""
    return hashlib.blake2b(f"{affinity}\x1f{url}".encode(), digest_size=8).digest()
