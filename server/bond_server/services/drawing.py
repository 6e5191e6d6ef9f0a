"""Drawing candidates: all of them, or those that end before a deadline."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from bond_core.engines import Engine
from bond_core.engines.base import Partial
from bond_core.errors import DeadlineError, EngineUnavailableError
from bond_core.types import Conversation, Generation, SamplingParams, TextDelta

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
    cut_tokens: int = 0
    """Of the candidates that were cancelled."""


async def draw_all(engine: Engine, work: Work) -> Drawn:
    """Every candidate. Raises the engine's errors."""
    started = time.perf_counter()
    try:
        generation = await engine.generate(work.version, work.prompt, work.params, work.n)
    except TimeoutError as error:
        raise _timed_out(error) from error
    return Drawn(generation, tuple(range(work.n)), time.perf_counter() - started)


async def draw_until(engine: Engine, work: Work, within_s: float) -> Drawn:
    """Those that end in time; the others are cancelled.

    Raises `DeadlineError` if none does.
    """
    partial, limit = Partial(), asyncio.timeout(max(within_s, 0.0))
    started = time.perf_counter()
    try:
        async with limit:
            generation = await engine.generate(
                work.version, work.prompt, work.params, work.n, partial
            )
        return Drawn(generation, tuple(range(work.n)), time.perf_counter() - started)
    except TimeoutError as error:
        if not limit.expired():
            raise _timed_out(error) from error
        if not partial.completions:
            raise _too_late(work.n, partial.prompt_token_ids, partial.cut_tokens) from None
    indices = tuple(sorted(partial.completions))
    completions = tuple(partial.completions[index] for index in indices)
    degraded = DEADLINE if len(indices) < work.n else None  # the last may end with the deadline
    return Drawn(
        Generation(partial.prompt_token_ids, completions),
        indices,
        time.perf_counter() - started,
        degraded,
        partial.cut_tokens,
    )


async def stream_until(
    engine: Engine, work: Work, until: float | None
) -> AsyncGenerator[TextDelta]:
    """The pieces of one completion as they are drawn; `until` is of the running loop's clock.

    Raises the engine's errors, and `DeadlineError` if the last piece does not come in time.
    Closing the iterator frees the engine's row.
    """
    deltas = engine.stream(work.version, work.prompt, work.params)
    async with aclosing(cast(AsyncGenerator[TextDelta], deltas)) as pieces:
        if until is None:
            async for piece in pieces:
                yield piece
            return
        prompt_token_ids: tuple[int, ...] = ()
        num_tokens = 0
        while True:
            # not around the yield: the time that a reader takes is not the engine's
            limit = asyncio.timeout_at(until)
            try:
                async with limit:
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                if not limit.expired():
                    raise _timed_out(error) from error
                raise _too_late(1, prompt_token_ids, num_tokens) from None
            prompt_token_ids = piece.prompt_token_ids or prompt_token_ids
            num_tokens = piece.num_tokens
            yield piece


def _too_late(n: int, prompt_token_ids: tuple[int, ...], cut_tokens: int) -> DeadlineError:
    who = "the answer had not" if n == 1 else f"none of {n} candidates had"
    return DeadlineError(
        f"{who} ended when the deadline came, after {cut_tokens} tokens: allow more time "
        "(bond.deadline_ms), or ask for shorter answers",
        prompt_token_ids,
        cut_tokens,
    )


def _timed_out(error: TimeoutError) -> EngineUnavailableError:
    """An engine that gave up by its own clock; no deadline of a request has come."""
    return EngineUnavailableError(f"the engine did not answer within its own time: {error}")
