"""Users of the demo: a few people who each ask, read the answer, pause, and ask again."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from random import Random

from bond_client import AsyncClient, BondClientError
from bond_core.types import Message


class Users:
    """A closed group of users with exponential pauses; every conversation is a new one."""

    def __init__(
        self,
        client: AsyncClient,
        model: str,
        prompts: Iterator[tuple[Message, ...]],
        *,
        rate_per_s: float,
        num_users: int,
        seed: int,
    ) -> None:
        self._client = client
        self._model = model
        self._prompts = prompts
        self._mean_pause_s = num_users / rate_per_s
        self._pauses = [Random(f"{seed} {user}") for user in range(num_users)]
        self._stopping = asyncio.Event()
        self.answered = 0
        self.failures: Counter[str] = Counter()
        """Requests that ended in an error, by its message."""
        self.first_answer_at: float | None = None
        """`time.monotonic()` of the first answer."""

    async def run(self) -> None:
        """Ask until `stop`; returns when every running request has ended."""
        async with asyncio.TaskGroup() as group:
            for pauses in self._pauses:
                group.create_task(self._one_user(pauses))

    def stop(self) -> None:
        """Ask nothing more."""
        self._stopping.set()

    async def _one_user(self, pauses: Random) -> None:
        while not await self._paused_out(pauses.expovariate(1 / self._mean_pause_s)):
            await self._ask(next(self._prompts))

    async def _paused_out(self, pause_s: float) -> bool:
        """Wait; True if it is over meanwhile."""
        try:
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def _ask(self, conversation: tuple[Message, ...]) -> None:
        try:
            await self._client.chat([m.as_dict() for m in conversation], model=self._model)
        except BondClientError as error:
            self.failures[str(error)] += 1
            return
        self.answered += 1
        if self.first_answer_at is None:
            self.first_answer_at = time.monotonic()
