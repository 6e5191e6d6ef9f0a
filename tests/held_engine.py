"""A fake engine whose work ends when a test says so, and not after a time."""

import asyncio
import math
from typing import Any

TURN_S = 0.002


class Held:
    """Holds candidates back; with a delay of its own above 0 the engine has to work for each.

    What runs is seen and refused meanwhile however long the machine is busy with other things.
    """

    def __init__(self, engine: Any, let_go: int = 0) -> None:
        if not engine._delay_s:
            engine._delay_s = 60.0
        self._work = engine._work
        self._left: float = let_go
        engine._work = self._until_let_go

    def let_go(self, count: float = math.inf) -> None:
        """Let so many more candidates end, those first that have waited longest; all of them
        where no number is given."""
        self._left += count

    async def _until_let_go(self, seconds: float) -> None:
        while self._left < 1:
            await self._work(TURN_S)  # raises when the engine is closed
        self._left -= 1
        await asyncio.sleep(0)
