"""An event loop whose clock jumps to the next timer when nothing else is to be done.

Delays take no time and are exact to the last bit, whatever else the machine does. For code that
waits for timers alone: what comes from a thread or a socket would come too late.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class _Skipping(selectors.DefaultSelector):
    """Waits for nothing, and counts what it would have waited."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self.skipped_s += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.skipped_s


def run_skipping(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of the work, on a loop of its own whose clock begins at 0."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)
