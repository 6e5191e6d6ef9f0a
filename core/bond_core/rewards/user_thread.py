"""A thread for code that is not ours: it may raise anything, or never return."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bond_core.errors import ScoringError


@dataclass(frozen=True, slots=True)
class Raised:
    """What a call raised, as a value: a future cannot carry `StopIteration`, and `SystemExit`
    would end whatever awaits it."""

    error: BaseException


class UserThread:
    """Runs calls one at a time, from one event loop.

    The thread is a daemon and nobody waits for its end, so that code which hangs keeps neither
    `close` nor the process from ending.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._turn = asyncio.Lock()
        self._running: asyncio.Future[object] | None = None
        self._due: float | None = None
        self._closed = False
        threading.Thread(target=self._run, name="bond-scorer", daemon=True).start()

    async def call(self, function: Callable[[], Any], timeout_s: float | None) -> object:
        """What the function returns, or `Raised`.

        Raises `TimeoutError` if it takes longer than that from its start. Then, since a thread
        cannot be stopped, later calls fail at once until it returns after all.
        """
        async with self._turn:
            await self._outcome()  # of an earlier call whose caller has gone
            if self._closed:
                raise ScoringError("the scorer was closed while a call waited for its turn")
            loop = asyncio.get_running_loop()
            self._due = None if timeout_s is None else loop.time() + timeout_s
            self._running = self._submitted(loop, function)
            return await self._outcome()

    def close(self) -> None:
        """End the thread once it has nothing to do; returns at once."""
        self._closed = True
        self._work.put(None)

    async def _outcome(self) -> object:
        if self._running is None:
            return None
        left = None
        if self._due is not None:
            left = max(0.0, self._due - asyncio.get_running_loop().time())
        # `wait`, unlike `wait_for`, lets the call go on if this caller is cancelled.
        done, _ = await asyncio.wait({self._running}, timeout=left)
        if not done:
            raise TimeoutError
        return self._running.result()

    def _submitted(
        self, loop: asyncio.AbstractEventLoop, function: Callable[[], Any]
    ) -> asyncio.Future[object]:
        answer: asyncio.Future[object] = loop.create_future()

        def work() -> None:
            outcome: object
            try:
                outcome = function()
            except BaseException as error:  # the user's code may raise anything
                outcome = Raised(error)
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(answer.set_result, outcome)

        self._work.put(work)
        return answer

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
