"""Choosing among candidates: raw scores, the highest first, ties to the lowest index."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bond_core.errors import ScoringError
from bond_core.rewards.base import Scorer
from bond_core.types import Candidate, Conversation, judged_as
from bond_server.services.drawing import DEADLINE, Drawn

SCORING_FAILED = "scoring_failed"
"""Why an answer is degraded: the first candidates were returned unranked."""
ONLY_TOOL_CALLS = "tool_calls_unscored"
"""Why an answer is degraded: a candidate has no text, and the scorer reads nothing else."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Scored candidates and the indices of those to return, best first."""

    candidates: tuple[Candidate, ...]
    chosen: tuple[int, ...]
    score_s: float = 0.0
    degraded: str | None = None
    error: str | None = None


def rank(scores: Sequence[float]) -> list[int]:
    """Positions by falling score; equal scores keep the order of drawing."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def unranked(drawn: Drawn, n: int) -> Selection:
    """The first n in the order of drawing: independent samples of the policy, nothing selected."""
    candidates = _candidates(drawn, [None] * len(drawn.indices))
    return Selection(candidates, drawn.indices[:n], degraded=drawn.degraded)


async def select(
    scorer: Scorer,
    prompt: Conversation,
    drawn: Drawn,
    n: int,
    *,
    within_s: float | None = None,
) -> Selection:
    """Score all candidates, equal texts once, and choose the n best.

    If scoring fails, or does not end in time, the first n are chosen and the selection is marked
    degraded; so it is if a candidate only calls tools, which no scorer here reads.
    """
    started = time.perf_counter()
    completions = drawn.generation.completions
    texts = list(dict.fromkeys(completion.text for completion in completions))
    degraded, why = SCORING_FAILED, ""
    if any(completion.tool_calls and not completion.text for completion in completions):
        return _given_up(drawn, n, 0.0, ONLY_TOOL_CALLS, "a candidate has tool calls and no text")
    limit = asyncio.timeout(None if within_s is None else max(within_s, 0.0))
    try:
        async with limit:
            scores = await scorer.score([judged_as(prompt)] * len(texts), texts)
    except ScoringError as error:
        why = error.message
    except TimeoutError as error:
        if limit.expired():
            degraded, why = DEADLINE, "scoring did not end before the deadline"
        else:  # the scorer gave up by its own clock
            why = f"the scorer did not answer within its own time: {error}"
    else:
        score_of = dict(zip(texts, scores, strict=True))
        by_position = [score_of[completion.text] for completion in completions]
        order = [drawn.indices[position] for position in rank(by_position)]
        spent = time.perf_counter() - started
        return Selection(_candidates(drawn, by_position), tuple(order[:n]), spent, drawn.degraded)
    return _given_up(drawn, n, time.perf_counter() - started, degraded, why)


def _given_up(drawn: Drawn, n: int, spent: float, degraded: str, why: str) -> Selection:
    plain = unranked(drawn, n)
    return Selection(plain.candidates, plain.chosen, spent, degraded, why)


def _candidates(drawn: Drawn, scores: Sequence[float | None]) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(index, completion, score)
        for index, completion, score in zip(
            drawn.indices, drawn.generation.completions, scores, strict=True
        )
    )
