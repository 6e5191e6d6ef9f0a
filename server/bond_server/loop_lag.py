"""How late the event loop is: the one sign of too much work that does not depend on its kind."""

import asyncio
import time

EVERY_S = 0.02


class LoopLag:
    """A heartbeat, and how far it is behind its time."""

    def __init__(self) -> None:
        self._due = float("inf")
        self._last_s = 0.0

    @property
    def seconds(self) -> float:
        """How late the last beat was, or the next one is by now if that is more."""
        return max(self._last_s, time.monotonic() - self._due)

    async def run(self) -> None:
        """Beat for ever."""
        try:
            while True:
                self._due = time.monotonic() + EVERY_S
                await asyncio.sleep(EVERY_S)
                self._last_s = max(0.0, time.monotonic() - self._due)
        finally:
            self._due, self._last_s = float("inf"), 0.0
