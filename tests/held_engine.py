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
        self._held: list[object] = []
        engine._work = self._until_let_go

    @property
    def has_none_to_let_go(self) -> bool:
        """Whether nothing ends before more is let go."""
        return self._left < 1

    def let_go(self, count: float = math.inf) -> None:
        """Let so many more candidates end, in the order in which they began; all of them where no
        number is given."""
        self._left += count

    async def _until_let_go(self, seconds: float) -> None:
        this = object()
        self._held.append(this)
        try:
            while self._left < 1 or self._held[0] is not this:
                await self._work(TURN_S)  # raises when the engine is closed
            self._left -= 1
        finally:
            self._held.remove(this)
        await asyncio.sleep(0)
