"""What the engine has of the learner: how old it is, and when it is brought anew."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from bond_core.errors import ScorerUnavailableError
from bond_trainer.causes import first_cause
from bond_trainer.patience import AWAY, Patience, StoppedWaitingError
from bond_trainer.progress import Progress
from bond_trainer.publishing import Publisher

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class Publication:
    """The engine's policy and anchor, and the calls that need the engine."""

    publisher: Publisher
    progress: Progress
    stop: asyncio.Event
    patience: Patience
    poll_s: float
    at: int | None = None
    """Step that was published; None before the first, and for weights that changed without a
    step."""
    seconds: float = 0.0
    """Spent on it since they were last taken."""

    def staleness(self, step: int) -> int:
        """Updates since what the engine has was published."""
        return 0 if self.at is None else step - self.at

    def take_seconds(self) -> float:
        """Seconds spent since the last call."""
        spent, self.seconds = self.seconds, 0.0
        return spent

    async def renew(self, step: int, max_staleness: int = 0) -> None:
        """Let the engine sample from what was learned, unless what it has is recent enough. A copy
        in this process is always exact. Raises as `answered` does."""
        allowed = max_staleness if self.publisher.served else 0
        if self.at is not None and self.staleness(step) <= allowed:
            return
        started = time.perf_counter()
        await self.answered(self.publisher.publish)
        self.at = step
        self.seconds += time.perf_counter() - started

    async def answered(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call that needs engine or scorer gives. While servers are away the run waits, and
        says so; then it makes the same call again.

        Raises `StoppedWaitingError` if the run is stopped meanwhile, and the engine's error at the
        end of the run's patience, or at once if the engine is of this process.
        """
        state, standing = self.progress.state, self.progress.error
        while True:
            try:
                found = await call()
            except (*AWAY, ExceptionGroup) as error:
                of_servers = isinstance(first_cause(error), ScorerUnavailableError)
                if not (self.publisher.served or of_servers):
                    raise
                await self._pause(error)
                continue
            if self.patience.restore():
                logger.info("servers answer again, at step %d", self.progress.step)
                self.progress.error = standing
                await self.progress.enter(state)
            return found

    async def _pause(self, error: Exception) -> None:
        first = self.patience.failing_since is None
        reason = self.patience.spend(error)
        if first:
            logger.warning("waiting for servers, at step %d: %s", self.progress.step, reason)
        self.progress.error = f"waiting for servers: {reason}"
        await self.progress.wait(self.stop, self.poll_s)
        if self.stop.is_set():
            raise StoppedWaitingError
