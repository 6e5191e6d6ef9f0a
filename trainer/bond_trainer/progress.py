"""What the trainer says of itself: a row in the store, renewed every few seconds."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from bond_core.errors import StoreUnavailableError
from bond_core.store import Store, TrainingRecord

logger = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
TrainerState = Literal["starting", "waiting", "training", "evaluating", "stopped", "failed"]


@dataclass(slots=True)
class Progress:
    """The run's state and latest metrics. Metric names are paths, such as `train/loss`."""

    store: Store
    run_id: str
    on_progress: Callable[[TrainingRecord], None] | None = None
    state: TrainerState = "starting"
    step: int = 0
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    error: str | None = None
    started_at: float = field(default_factory=time.time)

    def record_metrics(self, prefix: str, values: Mapping[str, Any]) -> None:
        """Replace the metrics under a prefix by their latest values."""
        self.metrics.update({f"{prefix}/{name}": value for name, value in values.items()})

    def of(self, *prefixes: str) -> dict[str, Any]:
        """The latest values under some prefixes."""
        wanted = tuple(f"{prefix}/" for prefix in prefixes)
        return {name: value for name, value in self.metrics.items() if name.startswith(wanted)}

    async def enter(self, state: TrainerState) -> None:
        """Change the state, and report the change at once."""
        if state != self.state:
            logger.info("%s, at step %d", state, self.step)
            self.state = state
            await self.report()

    async def wait(self, stop: asyncio.Event, seconds: float) -> None:
        """State `waiting` for so long, or until `stop` is set."""
        await self.enter("waiting")
        try:
            await asyncio.wait_for(stop.wait(), seconds)
        except TimeoutError:
            return

    async def report(self) -> None:
        """Write the row and tell the listener."""
        record = TrainingRecord(
            run_id=self.run_id,
            state=self.state,
            step=self.step,
            started_at=self.started_at,
            heartbeat_at=time.time(),
            metrics=dict(self.metrics),
            counts=dict(self.counts),
            error=self.error,
        )
        await self.store.training.report(record)
        if self.on_progress is not None:
            self.on_progress(record)

    @asynccontextmanager
    async def heartbeat(self, lease: str, ttl_s: float) -> AsyncIterator[None]:
        """Report and renew the trainer's lease in the background.

        Raises `StoreUnavailableError`, out of whatever is being awaited inside, when another
        holder has the lease: two trainers must not propose to one store.
        """
        owner = asyncio.current_task()
        assert owner is not None, "a coroutine runs in a task"
        lost = False

        async def beat() -> None:
            nonlocal lost
            while True:
                try:
                    await self.report()
                    lost = not await self.store.leases.acquire(lease, self.run_id, ttl_s)
                except StoreUnavailableError as error:
                    logger.warning("heartbeat not stored, will try again: %s", error)
                if lost:
                    owner.cancel()
                    return
                await asyncio.sleep(HEARTBEAT_S)

        task = asyncio.create_task(beat())
        try:
            yield
        except asyncio.CancelledError:
            if not lost:
                raise
            owner.uncancel()
            raise StoreUnavailableError(
                f"the lease '{lease}' was taken by another trainer while this one could not renew "
                "it: stop one of the two, then start this one again; it continues at its last "
                "checkpoint"
            ) from None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
