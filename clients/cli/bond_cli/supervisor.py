"""Gateway and trainer as two child processes: the gateway's end is the end of both.

The trainer may die (out of memory, a defect, a store that is away) without the service being
touched: it is started again after a delay that doubles, up to a minute, and goes on from its
checkpoint. What it cannot recover from is a wrong configuration; that ends both.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bond_cli.child import Child, OnLine
from bond_cli.failure import CONFIG_EXIT

GATEWAY = "gateway"
TRAINER = "trainer"

STOP_MARGIN_S = 20.0
"""Beyond the time that running requests get: to measure the last answers, and to end a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays before the trainer is started again."""

    first_s: float = 1.0
    longest_s: float = 60.0
    healthy_s: float = 60.0
    """A trainer that ran so long begins again with the first delay."""

    def after(self, delay_s: float, ran_s: float) -> float:
        """The delay that follows `delay_s` (0 before the first) when it ran `ran_s`."""
        if delay_s == 0 or ran_s >= self.healthy_s:
            return self.first_s
        return min(2 * delay_s, self.longest_s)


@dataclass(frozen=True, slots=True)
class Ended:
    """Why supervision came to its end."""

    exit_code: int
    reason: str


class Supervisor:
    """Starts, watches and stops the two children."""

    def __init__(
        self,
        gateway: tuple[str, ...],
        trainer: tuple[str, ...] | None,
        on_line: OnLine,
        *,
        environ: Mapping[str, str] | None = None,
        grace_s: float = 15.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._on_line = on_line
        self._gateway = Child(GATEWAY, gateway, on_line, environ)
        self._trainer = Child(TRAINER, trainer, on_line, environ) if trainer else None
        self._grace_s = grace_s
        self._backoff = backoff or Backoff()
        self._tasks: list[asyncio.Task[Ended | None]] = []
        self._trainer_stopping = asyncio.Event()
        self.restarts = 0
        """How often the trainer was started again."""

    @property
    def gateway_pid(self) -> int | None:
        """The gateway's process id while it runs."""
        return self._gateway.pid

    @property
    def trainer_pid(self) -> int | None:
        """The trainer's process id while it runs."""
        return self._trainer.pid if self._trainer else None

    async def start(self) -> None:
        """Start the gateway, then the trainer."""
        await self._gateway.start()
        self._tasks.append(asyncio.create_task(self._watch_gateway(), name=GATEWAY))
        if self._trainer is not None:
            await self._trainer.start()
            self._tasks.append(asyncio.create_task(self._keep_training(self._trainer)))

    async def wait(self) -> Ended:
        """Return when the service cannot go on: the gateway ended, or the trainer's
        configuration is wrong. The other child may still run then; call `stop`."""
        watched = set(self._tasks)
        while watched:
            done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                ended = task.result()
                if ended is not None:
                    return ended
        raise RuntimeError("nothing was started")

    async def stop_trainer(self) -> None:
        """Stop the trainer for good and leave the gateway running."""
        self._trainer_stopping.set()
        if self._trainer is not None:
            await self._trainer.stop(self._grace_s)

    async def stop(self) -> None:
        """Stop both, side by side; running requests and the current step may end first."""
        await asyncio.gather(self.stop_trainer(), self._gateway.stop(self._grace_s))
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _watch_gateway(self) -> Ended:
        code = await self._gateway.wait()
        return Ended(code, f"the gateway ended: {self._gateway.reason}")

    async def _keep_training(self, trainer: Child) -> Ended | None:
        delay_s = 0.0
        while True:
            began = time.monotonic()
            code = await trainer.wait()
            if self._trainer_stopping.is_set():
                return None
            if code == 0:
                self._on_line(TRAINER, "finished")
                return None
            if code == CONFIG_EXIT:
                return Ended(code, f"the trainer ended: {trainer.reason}")
            delay_s = self._backoff.after(delay_s, time.monotonic() - began)
            self._on_line(TRAINER, f"ended with exit code {code}; starting again in {delay_s:g} s")
            if await self._stopped_within(delay_s):
                return None
            self.restarts += 1
            await trainer.start()
            if self._trainer_stopping.is_set():  # stopped while it was starting
                await trainer.stop(self._grace_s)
                return None

    async def _stopped_within(self, delay_s: float) -> bool:
        try:
            async with asyncio.timeout(delay_s):
                await self._trainer_stopping.wait()
        except TimeoutError:
            return False
        return True
