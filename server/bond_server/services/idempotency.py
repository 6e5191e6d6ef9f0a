"""`Idempotency-Key`: a request sent twice is answered once, by whichever gateway.

A key is claimed before any work, by a row with a lease; the claim ends in the transaction of the
completion's row, which also keeps the answer. So a key has an answer exactly if its completion is
in the log, and a gateway that dies leaves a lease that runs out. Answers are kept as the bytes
that were sent: a row does not know everything an answer says, and another version of this package
may say it differently.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bond_core.errors import StoreUnavailableError
from bond_core.store.idempotency import IdempotencyKeys, KeyState
from bond_core.store.settlement import KeptAnswer, Settlement
from bond_server.ids import uuid7

logger = logging.getLogger(__name__)

LEASE_S = 15.0
RENEW_EVERY_S = LEASE_S / 3
LOOK_EVERY_S = 0.1
"""How often a waiting request looks for the end of one that another gateway runs."""


class Claim:
    """This request's hold on a key."""

    def __init__(self, scope: str, holder: str, keep_s: float) -> None:
        self.scope = scope
        self.holder = holder
        self.ended = asyncio.Event()
        self.render: Callable[[Any], Awaitable[KeptAnswer]] | None = None
        """Makes of the answer what is sent; set by the route that will send it."""
        self.answer: Any = None
        """The answer that was kept, once it is on its way into the store."""
        self.kept: KeptAnswer | None = None
        """What is sent of it."""
        self.committing = False
        self.committed = False
        self._keep_s = keep_s

    async def settle(self, answer: Any) -> Settlement:
        """What the transaction of the answer's row has to keep."""
        assert self.render is not None
        self.answer, self.kept = answer, await self.render(answer)
        return Settlement(self.scope, self.holder, time.time() + self._keep_s, self.kept)


@asynccontextmanager
async def settling(claim: Claim, answer: Any) -> AsyncGenerator[Settlement]:
    """Around the commit of an answer's row: what ends the claim with it."""
    claim.committing = True
    try:
        yield await claim.settle(answer)
        claim.committed = True
    finally:
        claim.committing = False


@dataclass(frozen=True, slots=True)
class Replay:
    """The key has been answered."""

    completion_id: str
    answer: KeptAnswer | None
    """None if content is not kept."""


@dataclass(frozen=True, slots=True)
class Reused:
    """The key belongs to a request that was another one."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """The first request with the key still runs, and was waited for long enough."""


class Idempotency:
    """Claims keys, waits for those that others hold, renews the leases of this gateway."""

    def __init__(self, keys: IdempotencyKeys, keep_s: float, wait_s: float) -> None:
        self._keys = keys
        self._keep_s = keep_s
        self._wait_s = wait_s
        self._held: dict[str, Claim] = {}
        """By scope: this gateway's claims that run."""

    async def begin(self, scope: str, fingerprint: str) -> Claim | Replay | Reused | InFlight:
        """Claim the key, or say why not; waits a bounded time for a request that holds it."""
        deadline = time.monotonic() + self._wait_s
        holder = uuid7()
        state = await self._claim(scope, fingerprint, holder)
        while state.holder != holder:
            if state.fingerprint != fingerprint:
                return Reused()
            if state.completion_id is not None:
                return Replay(state.completion_id, state.answer)
            left = deadline - time.monotonic()
            if left <= 0:
                return InFlight()
            await self._until_changed(scope, min(left, LOOK_EVERY_S))
            seen = await self._keys.look(scope)
            state = seen or await self._claim(scope, fingerprint, holder)
        self._held[scope] = claim = Claim(scope, holder, self._keep_s)
        return claim

    async def _claim(self, scope: str, fingerprint: str, holder: str) -> KeyState:
        """Ask the store for the key. A caller that goes away meanwhile leaves nothing claimed."""
        claiming = asyncio.create_task(self._keys.claim(scope, fingerprint, holder, LEASE_S))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await asyncio.wait({claiming})  # it may have been committed, or be about to
            try:
                if claiming.result().holder == holder:
                    await self._keys.release(scope, holder)
            except StoreUnavailableError as error:
                logger.warning("an idempotency key stays claimed until its lease ends: %s", error)
            raise

    async def end(self, claim: Claim) -> None:
        """Stop renewing the claim; a key whose request failed may be tried again at once.

        Left to the end of the lease: a store that is away, and an answer whose client has gone
        while its row was committed.
        """
        held = self._held.get(claim.scope)
        still_ours = held is not None and held.holder == claim.holder
        if still_ours:
            del self._held[claim.scope]
        try:
            if not claim.committed and not claim.committing:
                await self._keys.release(claim.scope, claim.holder)
        except StoreUnavailableError as error:
            logger.warning("an idempotency key stays claimed until its lease ends: %s", error)
        finally:
            claim.ended.set()

    async def run(self) -> None:
        """Renew leases for ever; a store that is away is tried again before they end."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            if not self._held:
                continue
            try:
                await self._keys.renew([c.holder for c in self._held.values()], LEASE_S)
            except StoreUnavailableError as error:
                logger.warning("leases of idempotency keys were not renewed: %s", error)
            except Exception:
                logger.exception("renewing idempotency keys failed; it goes on")

    async def _until_changed(self, scope: str, timeout_s: float) -> None:
        """Until this gateway's own claim on the key ends, else for a while."""
        held = self._held.get(scope)
        if held is None:
            await asyncio.sleep(timeout_s)
            return
        try:
            await asyncio.wait_for(held.ended.wait(), timeout_s)
        except TimeoutError:
            return


def scope_of(caller: str, key: str) -> str:
    """What a key is known by: the caller's own, and not to be read back from the store."""
    return _digest(b"key", caller.encode(), key.encode())


def fingerprint_of_request(path: str, body: bytes) -> str:
    """What makes a request the same one: its route and its body, byte for byte."""
    return _digest(b"request", path.encode(), body)


def attempt_digest(caller: str, path: str, unit: str, body: bytes) -> str:
    """What the attempts at one request have in common."""
    return _digest(b"attempt", caller.encode(), path.encode(), unit.encode(), body)[:32]


def _digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big"))
        whole.update(part)
    return whole.hexdigest()
