"""Requests that hold places of an admission for as long as a test wants."""

import asyncio

from bond_server.metrics import Metrics
from bond_server.services.admission import Admission, Line


class Holders:
    """Requests under one admission: who holds places, in the order in which they got them."""

    def __init__(self, max_rows: int, max_waiting_rows: int = 1000, max_wait_s: float = 60) -> None:
        self.metrics = Metrics()
        self.admission = Admission(max_rows, max_waiting_rows, max_wait_s, self.metrics)
        self.order: list[str] = []
        self.waited: dict[str, float] = {}
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def enter(self, name: str, rows: int, line: Line | None = None) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._hold(name, rows, line))
        await turns()
        return self._tasks[name]

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await self._tasks[name]
        await turns()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.wait({self._tasks[name]})
        await turns()

    def refused(self, reason: str) -> float:
        value = self.metrics.registry.get_sample_value(
            "bond_admission_refused_total", {"reason": reason}
        )
        return value or 0.0

    async def _hold(self, name: str, rows: int, line: Line | None) -> None:
        async with self.admission.admitted(rows, line=line) as waited:
            self.order.append(name)
            self.waited[name] = waited
            await self._leave[name].wait()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
