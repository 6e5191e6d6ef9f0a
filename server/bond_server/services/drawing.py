"""Drawing candidates: all of them, or those that end before a deadline."""

import asyncio
from dataclasses import dataclass

from bond_core.engines import Engine
from bond_core.engines.base import Partial
from bond_core.errors import DeadlineError
from bond_core.types import Conversation, Generation, SamplingParams

DEADLINE = "deadline"
"""Why an answer is degraded: the best of the candidates that had ended was returned."""


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine is asked for."""

    version: str
    prompt: Conversation
    params: SamplingParams
    n: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Completions with their indices among those that were asked for."""

    generation: Generation
    indices: tuple[int, ...]
    generate_s: float = 0.0
    degraded: str | None = None


async def draw_all(engine: Engine, work: Work) -> Drawn:
    """Every candidate. Raises the engine's errors."""
    generation = await engine.generate(work.version, work.prompt, work.params, work.n)
    return Drawn(generation, tuple(range(work.n)))


async def draw_until(engine: Engine, work: Work, within_s: float) -> Drawn:
    """Those that end in time; the others are cancelled.

    Raises `DeadlineError` if none does.
    """
    partial = Partial()
    try:
        async with asyncio.timeout(max(within_s, 0.0)):
            generation = await engine.generate(
                work.version, work.prompt, work.params, work.n, partial
            )
        return Drawn(generation, tuple(range(work.n)))
    except TimeoutError:
        if not partial.completions:
            raise DeadlineError(
                f"none of {work.n} candidates ended before the deadline: allow more time, or ask "
                "for shorter answers"
            ) from None
    indices = tuple(sorted(partial.completions))
    completions = tuple(partial.completions[index] for index in indices)
    degraded = DEADLINE if len(indices) < work.n else None  # the last may end with the deadline
    return Drawn(Generation(partial.prompt_token_ids, completions), indices, degraded=degraded)
