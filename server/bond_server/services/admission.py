"""Admission before work: so many rows at once, a short queue behind them, and no for the rest.

The unit is the row, one candidate that is drawn: a Best-of-8 takes eight of the engine's places and
eight shares of its memory, where a distilled answer takes one. Whether the queue is full does not
depend on who asks: were a Best-of-N refused where a single sample is not, overload would choose
what the arms are measured on.
"""

import asyncio
import math
import random
import time
from collections import deque
from dataclasses import dataclass

from bond_core.errors import BondError, DeadlineError, OverloadedError
from bond_server.metrics import Metrics

QUEUE_FULL = "queue_full"
QUEUE_TIMEOUT = "queue_timeout"
LEFT = "left"
"""The client went away while it waited."""
LEAST_RETRY_S = 0.1
LONGEST_RETRY_S = 60.0
_SMOOTHING = 0.05
"""Weight of the newest request in the mean time that a place is held."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    rows: int
    patient: bool
    place: asyncio.Future[None]


class Line:
    """The answers to one request, which is admitted or refused as a whole, by its first one.

    The others stand in the queue one at a time, each behind whoever came before it: a request of
    many answers waits like one of few, and others have their turn between its answers.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = asyncio.Semaphore(at_once)
        """So many of the answers have places at once, or stand in the queue for one."""
        self.front = asyncio.Lock()
        """Held by the one that stands in the queue."""
        self.is_admitted = False
        self.refusal: BondError | None = None


class Admission:
    """The gateway's places, counted in rows, and the queue for them, first come first served."""

    def __init__(
        self, max_rows: int, max_waiting_rows: int, max_wait_s: float, metrics: Metrics
    ) -> None:
        self._max_rows = max_rows
        self._max_waiting_rows = max_waiting_rows
        self._max_wait_s = max_wait_s
        self._metrics = metrics
        self._queue: deque[_Waiting] = deque()
        self._running_rows = 0
        self._waiting_rows = 0
        self._patient_rows = 0
        self._held_s = 1.0
        self._ended = 0
        metrics.admission.running_rows.set_function(lambda: self._running_rows)
        metrics.admission.waiting_rows.set_function(lambda: self._waiting_rows)
        metrics.admission.waiting_requests.set_function(lambda: len(self._queue))

    @property
    def running_rows(self) -> int:
        """Rows that have a place."""
        return self._running_rows

    @property
    def waiting_rows(self) -> int:
        """Rows in the queue."""
        return self._waiting_rows

    def admitted(
        self, rows: int, within_s: float | None = None, line: Line | None = None
    ) -> "_Places":
        """Hold places for a request of so many rows; gives the seconds that it waited for them.

        Raises `OverloadedError` at once if the queue is full, or after the longest wait, which is
        no longer than `within_s`: nobody waits for a place beyond its own deadline. A request
        that is cancelled leaves the queue, or gives its places back, at once. One of more rows than
        there are places takes them all. Of a `line` only the first is refused; a later one that
        has no place by its deadline raises `DeadlineError`.
        """
        return _Places(self, min(rows, self._max_rows), within_s, line)

    def refusal(self) -> OverloadedError | None:
        """What a request gets that comes now, if the queue is full; counts it as refused."""
        free = not self._queue and self._running_rows < self._max_rows
        return None if free or not self._is_full else self._refused_by_queue()

    @property
    def _is_full(self) -> bool:
        return self._waiting_rows - self._patient_rows >= self._max_waiting_rows

    async def enter_of(self, line: Line, cost: int, within_s: float | None) -> None:
        """Take places for one of a line; raises as `admitted` says."""
        if line.refusal is not None:
            raise line.refusal
        try:
            await self.enter(cost, within_s, patient=line.is_admitted)
        except BondError as error:
            line.refusal = error
            raise
        line.is_admitted = True

    async def enter(self, cost: int, within_s: float | None, *, patient: bool = False) -> bool:
        """Take places; gives whether they had to be waited for."""
        if self._queue or self._running_rows + cost > self._max_rows:
            await self._wait(cost, within_s, patient)
            return True
        self._take(cost)
        return False

    def leave(self, cost: int, held_s: float) -> None:
        """Give places back that were held so long."""
        self._ended += 1
        self._held_s += max(_SMOOTHING, 1 / self._ended) * (held_s - self._held_s)
        self._give_back(cost)

    async def _wait(self, cost: int, within_s: float | None, patient: bool) -> None:
        if self._is_full and not patient:
            raise self._refused_by_queue()
        longest_s, why = (math.inf if patient else self._max_wait_s), "admission.max_wait_s"
        if within_s is not None and within_s < longest_s:
            longest_s, why = max(within_s, 0.0), "the request's deadline"
        waiting = _Waiting(cost, patient, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._count_waiting(waiting, 1)
        try:
            async with asyncio.timeout(longest_s if longest_s < math.inf else None):
                await waiting.place
        except BaseException as error:
            self._leave(waiting)
            if isinstance(error, TimeoutError) and patient:
                raise DeadlineError(
                    "the deadline came before all answers of the request had a place to be drawn: "
                    "allow more time (bond.deadline_ms), or ask for fewer answers at once"
                ) from None
            if isinstance(error, TimeoutError):
                raise self._refused(
                    QUEUE_TIMEOUT,
                    f"the gateway is busy: no place came free within {longest_s:.3g} s ({why})",
                ) from None
            self._metrics.admission.refused.labels(LEFT).inc()
            raise

    def _leave(self, waiting: _Waiting) -> None:
        if waiting.place.done() and not waiting.place.cancelled():
            self._give_back(waiting.rows)  # it was given a place as it left
            return
        if waiting in self._queue:
            self._queue.remove(waiting)
            self._count_waiting(waiting, -1)
        self._fill()  # smaller ones behind it may fit

    def _take(self, cost: int) -> None:
        self._running_rows += cost

    def _give_back(self, cost: int) -> None:
        self._take(-cost)
        self._fill()

    def _fill(self) -> None:
        """Give the free places to the first in the queue; none overtakes."""
        while self._queue:
            waiting = self._queue[0]
            gone = waiting.place.cancelled()
            if not gone and self._running_rows + waiting.rows > self._max_rows:
                return
            self._queue.popleft()
            self._count_waiting(waiting, -1)
            if not gone:
                self._take(waiting.rows)
                waiting.place.set_result(None)

    def _count_waiting(self, waiting: _Waiting, times: int) -> None:
        self._waiting_rows += times * waiting.rows
        self._patient_rows += times * waiting.rows * waiting.patient

    def _refused_by_queue(self) -> OverloadedError:
        return self._refused(
            QUEUE_FULL,
            f"the gateway is busy: {self._running_rows} candidates are in the making and "
            f"{self._waiting_rows} wait",
        )

    def _refused(self, reason: str, why: str) -> OverloadedError:
        self._metrics.admission.refused.labels(reason).inc()
        # the time in which the queue empties, and up to as much again so that those who were
        # refused together do not come back together
        empties_s = self._held_s * (1 + self._waiting_rows) / self._max_rows
        retry_s = empties_s * (1 + random.random())
        retry_s = math.ceil(1000 * min(max(retry_s, LEAST_RETRY_S), LONGEST_RETRY_S)) / 1000
        return OverloadedError(
            f"{why}; come back in {retry_s:.1f} s", code=reason, retry_after_s=retry_s
        )


class _Places:
    """Places that are held. A class, as a generator would cost each request several times as
    much."""

    __slots__ = ("_admission", "_cost", "_line", "_started", "_within_s")

    def __init__(
        self, admission: Admission, cost: int, within_s: float | None, line: Line | None
    ) -> None:
        self._admission = admission
        self._cost = cost
        self._within_s = within_s
        self._line = line
        self._started = 0.0

    async def __aenter__(self) -> float:
        arrived = time.perf_counter()
        if self._line is None:
            waited = await self._admission.enter(self._cost, self._within_s)
        else:
            waited = True  # if only for those before it
            await self._enter_line(self._line, arrived)
        self._started = time.perf_counter()
        return self._started - arrived if waited else 0.0

    async def __aexit__(self, *error: object) -> None:
        self._admission.leave(self._cost, time.perf_counter() - self._started)
        if self._line is not None:
            self._line.at_once.release()

    async def _enter_line(self, line: Line, arrived: float) -> None:
        await line.at_once.acquire()
        try:
            async with line.front:
                gone_s = time.perf_counter() - arrived
                left_s = None if self._within_s is None else self._within_s - gone_s
                await self._admission.enter_of(line, self._cost, left_s)
        except BaseException:
            line.at_once.release()
            raise
