"""Choosing among candidates: raw scores, the highest first, ties to the lowest index."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bond_core.errors import ScoringError
from bond_core.rewards.base import Scorer
from bond_core.types import Candidate, Completion, Conversation

SCORING_FAILED = "scoring_failed"
"""Why an answer is degraded: the first candidates were returned unranked."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Scored candidates and the indices of those to return, best first."""

    candidates: tuple[Candidate, ...]
    chosen: tuple[int, ...]
    score_s: float = 0.0
    degraded: str | None = None
    error: str | None = None


def rank(scores: Sequence[float]) -> list[int]:
    """Indices by falling score; equal scores keep the order of drawing."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def unranked(completions: Sequence[Completion], n: int) -> Selection:
    """The first n in the order of drawing: independent samples of the policy, nothing selected."""
    candidates = tuple(Candidate(i, completion, None) for i, completion in enumerate(completions))
    return Selection(candidates, tuple(range(n)))


async def select(
    scorer: Scorer, prompt: Conversation, completions: Sequence[Completion], n: int
) -> Selection:
    """Score all candidates, equal texts once, and choose the n best.

    If scoring fails, the first n are chosen and the selection is marked degraded.
    """
    started = time.perf_counter()
    texts = list(dict.fromkeys(completion.text for completion in completions))
    try:
        scores = await scorer.score([prompt] * len(texts), texts)
    except ScoringError as error:
        plain = unranked(completions, n)
        spent = time.perf_counter() - started
        return Selection(plain.candidates, plain.chosen, spent, SCORING_FAILED, error.message)
    score_of = dict(zip(texts, scores, strict=True))
    candidates = tuple(
        Candidate(i, completion, score_of[completion.text])
        for i, completion in enumerate(completions)
    )
    order = rank([score_of[completion.text] for completion in completions])
    return Selection(candidates, tuple(order[:n]), time.perf_counter() - started)
