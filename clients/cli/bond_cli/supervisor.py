"""Gateway and trainer as two child processes: the gateway's end is the end of both.

The trainer may die (out of memory, a defect, a store that is away) without the service being
touched: it is started again after a delay that doubles, up to a minute, and goes on from its
checkpoint. What it cannot recover from is a wrong configuration; that ends both.
"""

import asyncio
from collections.abc import Mapping

from bond_cli.child import Child, OnLine
from bond_cli.failure import CONFIG_EXIT
from bond_cli.kept import Backoff, Ended, KeptChild

GATEWAY = "gateway"
TRAINER = "trainer"

STOP_MARGIN_S = 20.0
"""Beyond the time that running requests get: to measure the last answers, and to end a step."""


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
        self._gateway = Child(GATEWAY, gateway, on_line, environ)
        self._trainer = (
            KeptChild(
                Child(TRAINER, trainer, on_line, environ),
                on_line,
                grace_s=grace_s,
                backoff=backoff,
                finished=(0,),
                fatal=(CONFIG_EXIT,),
            )
            if trainer
            else None
        )
        self._grace_s = grace_s
        self._tasks: list[asyncio.Task[Ended | None]] = []

    @property
    def restarts(self) -> int:
        """How often the trainer was started again."""
        return self._trainer.restarts if self._trainer else 0

    @property
    def gateway_pid(self) -> int | None:
        """The gateway's process id while it runs."""
        return self._gateway.pid

    @property
    def trainer_pid(self) -> int | None:
        """The trainer's process id while it runs."""
        return self._trainer.child.pid if self._trainer else None

    async def start(self) -> None:
        """Start the gateway, then the trainer."""
        await self._gateway.start()
        self._tasks.append(asyncio.create_task(self._watch_gateway(), name=GATEWAY))
        if self._trainer is not None:
            await self._trainer.child.start()
            self._tasks.append(asyncio.create_task(self._trainer.keep(), name=TRAINER))

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
        if self._trainer is not None:
            await self._trainer.stop()

    async def stop(self) -> None:
        """Stop both, side by side; running requests and the current step may end first."""
        await asyncio.gather(self.stop_trainer(), self._gateway.stop(self._grace_s))
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _watch_gateway(self) -> Ended:
        code = await self._gateway.wait()
        return Ended(code, f"the gateway ended: {self._gateway.reason}")
