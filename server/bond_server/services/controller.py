"""Promotion, by one gateway at a time: load a challenger, probe it, make it active.

The lease in the store decides which gateway acts; every gateway follows the alias.
"""

import asyncio
import logging
import time

from bond_core.errors import (
    AdapterError,
    BondError,
    InvalidRequestError,
    ModelLoadError,
    StoreUnavailableError,
)
from bond_core.store import Store
from bond_core.types import REFERENCE_VERSION, PolicyState
from bond_server.ids import uuid7
from bond_server.metrics import Metrics
from bond_server.services.after_answer import AfterAnswer
from bond_server.services.policies import PolicyRegistry, version_number

logger = logging.getLogger(__name__)

LEASE = "controller"
LEASE_TTL_S = 10.0
SWEEP_EVERY_S = 30.0

REFUSALS = (AdapterError, ModelLoadError, InvalidRequestError)
"""What is wrong with the version itself; anything else passes, and is tried again."""


class Controller:
    """Polls the store for challengers and for a changed alias."""

    def __init__(
        self,
        store: Store,
        registry: PolicyRegistry,
        after_answer: AfterAnswer,
        metrics: Metrics,
        poll_s: float,
    ) -> None:
        self._store = store
        self._registry = registry
        self._after_answer = after_answer
        self._metrics = metrics
        self._poll_s = poll_s
        self._holder = uuid7()
        self._lease_until = 0.0
        self._swept_at = -SWEEP_EVERY_S
        self._complaint = ""

    @property
    def holds_lease(self) -> bool:
        """Whether this gateway is the one that promotes."""
        return time.monotonic() < self._lease_until

    async def restore(self) -> None:
        """At start: serve what was active, or the newest version that is sound.

        A version that cannot be served is rolled back in the store by the gateway that holds the
        lease, and only then; the others serve the fallback until the alias moves. An engine that
        takes no versions says nothing of this one: the store is left as it is.
        """
        await self._renew_lease()
        wanted = await self._store.policies.active()
        if wanted != REFERENCE_VERSION and (because := self._registry.why_none_can_be_loaded):
            logger.error("the active version %s is not served: %s", wanted, because)
            return
        reason = await self._try(wanted)
        if reason is None:
            self._registry.switch(wanted)
            return
        logger.error("the active version %s cannot be served: %s", wanted, reason)
        fallback = await self._newest_sound(before=wanted)
        self._registry.switch(fallback)
        logger.error("serving %s as distilled instead of %s", fallback, wanted)
        if self.holds_lease:
            await self._store.policies.activate(
                fallback,
                f"{wanted} could not be served: {reason}",
                previous_becomes=PolicyState.ROLLED_BACK,
                expected=wanted,
            )
            self._metrics.policies.transitions.labels("rolled_back").inc()

    async def run(self) -> None:
        """Tick for ever; what fails is logged and tried again."""
        while True:
            try:
                await self.tick()
                self._complaint = ""
            except BondError as error:
                self._complain(f"policy update postponed: {error.loggable}")
            except Exception:
                logger.exception("the controller failed; it goes on")
            await asyncio.sleep(self._poll_s)

    async def tick(self) -> None:
        """One round: promote challengers if the lease is ours, follow the alias in any case."""
        await self._renew_lease()
        try:
            if self.holds_lease:
                await self._promote_challengers()
        except Exception:  # but no cancellation, whose place an error of `follow` would take
            await self._registry.follow()
            raise
        await self._registry.follow()

    async def sweep_forever(self) -> None:
        """Let the lease's holder measure, now and then, the answers that were missed."""
        while True:
            try:
                if self.holds_lease and time.monotonic() - self._swept_at >= SWEEP_EVERY_S:
                    self._swept_at = time.monotonic()
                    if tried := await self._after_answer.sweep():
                        logger.info("measured %d answers that had been missed", tried)
            except StoreUnavailableError as error:
                logger.warning("sweep postponed: %s", error.loggable)
            except Exception:
                logger.exception("the sweep failed; it goes on")
            await asyncio.sleep(1.0)

    async def close(self) -> None:
        """Give the lease back, so that another gateway takes over at once; where the store does
        not answer, it runs out."""
        if self.holds_lease:
            self._lease_until = 0.0
            try:
                await self._store.leases.release(LEASE, self._holder)
            except StoreUnavailableError as error:
                logger.warning("the controller's lease is left to run out: %s", error.loggable)

    async def _renew_lease(self) -> None:
        now = time.monotonic()
        if self._lease_until - now > LEASE_TTL_S / 2:
            return
        held = await self._store.leases.acquire(LEASE, self._holder, LEASE_TTL_S)
        # counted from before the call, so that we stop before the store lets another begin
        self._lease_until = now + LEASE_TTL_S if held else 0.0
        self._metrics.policies.controller.set(int(held))

    async def _promote_challengers(self) -> None:
        challengers = await self._store.policies.in_state(PolicyState.CHALLENGER)
        for record in sorted(challengers, key=lambda r: version_number(r.version)):
            version = record.version
            try:
                await self._registry.load(version)
            except REFUSALS as error:
                logger.error("refused %s: %s", version, error.loggable)
                await self._store.policies.move(
                    version, PolicyState.CHALLENGER, PolicyState.REJECTED, error.message
                )
                self._metrics.policies.transitions.labels("rejected").inc()
                continue
            except BondError:
                raise  # the engine or the store is away: the version may be sound
            except Exception as error:
                logger.exception("%s cannot be loaded", version)
                await self._store.policies.move(
                    version,
                    PolicyState.CHALLENGER,
                    PolicyState.REJECTED,
                    f"loading failed: {type(error).__name__}: {error}",
                )
                self._metrics.policies.transitions.labels("rejected").inc()
                continue
            await self._renew_lease()  # loading may have taken longer than the lease
            if not self.holds_lease:
                return
            await self._store.policies.activate(version, "loaded and probed")
            self._registry.switch(version)
            self._metrics.policies.transitions.labels("activated").inc()

    async def _try(self, version: str) -> str | None:
        """Load a version; the reason if that is refused."""
        try:
            await self._registry.load(version)
        except REFUSALS as error:
            return error.message
        except BondError:
            raise
        except Exception as error:
            logger.exception("%s cannot be loaded", version)
            return f"{type(error).__name__}: {error}"
        return None

    async def _newest_sound(self, before: str) -> str:
        retired = await self._store.policies.in_state(PolicyState.RETIRED)
        for record in sorted(retired, key=lambda r: version_number(r.version), reverse=True):
            if record.version in (before, REFERENCE_VERSION):
                continue
            reason = await self._try(record.version)
            if reason is None:
                return record.version
            logger.error("%s cannot be served either: %s", record.version, reason)
        return REFERENCE_VERSION

    def _complain(self, complaint: str) -> None:
        """Log what is new; the same trouble at every tick is said once."""
        if complaint != self._complaint:
            logger.error(complaint)
        self._complaint = complaint
