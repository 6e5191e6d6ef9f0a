"""A child that is started again when it dies, after a delay that doubles up to a minute."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass

from bond_cli.child import Child, OnLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays before a child is started again."""

    first_s: float = 1.0
    longest_s: float = 60.0
    healthy_s: float = 60.0
    """A child that ran so long begins again with the first delay."""

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


class KeptChild:
    """Keeps one child running until it is stopped, or ends with a code that is final."""

    def __init__(
        self,
        child: Child,
        on_line: OnLine,
        *,
        grace_s: float,
        backoff: Backoff | None = None,
        finished: Collection[int] = (),
        fatal: Collection[int] = (),
    ) -> None:
        self.child = child
        self._on_line = on_line
        self._grace_s = grace_s
        self._backoff = backoff or Backoff()
        self._finished = finished
        self._fatal = fatal
        self._stopping = asyncio.Event()
        self.restarts = 0
        """How often it was started again."""

    async def keep(self) -> Ended | None:
        """Watch the started child: None once it was stopped or has finished, else why not."""
        child, delay_s = self.child, 0.0
        while True:
            began = time.monotonic()
            code = await child.wait()
            if self._stopping.is_set():
                return None
            if code in self._finished:
                self._on_line(child.name, "finished")
                return None
            if code in self._fatal:
                return Ended(code, f"the {child.name} ended: {child.reason}")
            delay_s = self._backoff.after(delay_s, time.monotonic() - began)
            self._on_line(
                child.name, f"ended with exit code {code}; starting again in {delay_s:g} s"
            )
            if await self._stopped_within(delay_s):
                return None
            self.restarts += 1
            await child.start()
            if self._stopping.is_set():  # stopped while it was starting
                await child.stop(self._grace_s)
                return None

    async def stop(self) -> None:
        """Stop it for good."""
        self._stopping.set()
        await self.child.stop(self._grace_s)

    async def _stopped_within(self, delay_s: float) -> bool:
        try:
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True
