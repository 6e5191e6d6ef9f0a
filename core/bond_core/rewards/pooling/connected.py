"""Conversations in, finite numbers out: batches, at most so many under way at a time."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bond_core.errors import ScorerUnavailableError, ScoringError
from bond_core.rewards.pooling.rendering import Input, Rendering
from bond_core.rewards.pooling.server import PoolingServer, ServedModel


class Connected:
    """A server, the model that is asked there, and how conversations are put to it."""

    def __init__(self, server: PoolingServer, model: ServedModel, rendering: Rendering) -> None:
        self.server = server
        self.model = model
        self.rendering = rendering
        self._places = asyncio.Semaphore(rendering.at_once)  # of all calls together

    async def scores(self, inputs: Sequence[Input], **options: Any) -> list[float]:
        """A finite score for each, in order; equal ones are asked once. `options` go along.

        The first request that fails ends the others, and is what is raised.
        """
        first = {given: index for index, given in reversed(list(enumerate(inputs)))}
        unique = list(dict.fromkeys(inputs))
        size = self.rendering.size
        batches = [unique[start : start + size] for start in range(0, len(unique), size)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(b, first, options)) for b in batches]
        except ExceptionGroup as failed:
            error = failed.exceptions[0]
            raise error from error.__cause__
        found: dict[Input, float] = {}
        for batch, task in zip(batches, tasks, strict=True):
            found.update(zip(batch, task.result(), strict=True))
        for given, score in found.items():
            if not math.isfinite(score):
                raise ScoringError(
                    f"reward model {self.model.id} at {self.server.url} gave {score} for "
                    f"completion {first[given]}: look at the server's --dtype, or at the weights"
                )
        return [found[given] for given in inputs]

    async def _ask(
        self, batch: Sequence[Input], first: Mapping[Input, int], options: Mapping[str, Any]
    ) -> list[float]:
        what = {"model": self.model.id, "use_activation": False}
        body = {**what, **self.rendering.body(batch), **options}
        async with self._places:
            try:
                return await self.server.scores(body, len(batch))
            except ScorerUnavailableError:
                raise
            except ScoringError as error:
                if len(batch) > 1:  # whose fault it is, nobody said
                    raise
                raise ScoringError(f"completion {first[batch[0]]}: {error}") from error
