"""What selection, training and evaluation rely on, of every scorer."""

import asyncio
import math

import pytest

from bond_core.errors import ScoringError
from bond_core.rewards import Scorer
from bond_core.types import Message

PROMPT = [Message("user", "Where is my order?")]
OTHER = [Message("system", "Be kind."), Message("user", "Can I return it?")]
ANSWERS = ["On its way.", "It will arrive tomorrow, we are sorry for the delay.", "no", ""]


async def test_scores_are_finite_and_in_order(scorer: Scorer) -> None:
    scores = await scorer.score([PROMPT] * 4, ANSWERS)
    assert all(math.isfinite(score) for score in scores)
    assert len(set(scores)) == 4
    backwards = await scorer.score([PROMPT] * 4, ANSWERS[::-1])
    assert backwards == pytest.approx(scores[::-1], abs=1e-5)


async def test_a_score_does_not_depend_on_the_batch(scorer: Scorer) -> None:
    together = await scorer.score([PROMPT, OTHER] * 4, ANSWERS * 2)
    for prompt, answer, score in zip([PROMPT, OTHER] * 4, ANSWERS * 2, together, strict=True):
        assert await scorer.score([prompt], [answer]) == pytest.approx([score], abs=1e-5)


async def test_the_prompt_counts(scorer: Scorer) -> None:
    one, other = await scorer.score([PROMPT, OTHER], ["On its way."] * 2)
    assert abs(one - other) > 1e-4


async def test_duplicates_have_one_score(scorer: Scorer) -> None:
    scores = await scorer.score([PROMPT] * 5, ["a", "bb", "a", "a", "bb"])
    assert scores[0] == scores[2] == scores[3]
    assert scores[1] == scores[4] != scores[0]


async def test_calls_at_the_same_time_get_their_own_scores(scorer: Scorer) -> None:
    alone = [(await scorer.score([PROMPT], [answer]))[0] for answer in ANSWERS]
    found = await asyncio.gather(*(scorer.score([PROMPT], [answer]) for answer in ANSWERS))
    assert [scores[0] for scores in found] == pytest.approx(alone, abs=1e-5)


async def test_nothing_to_score_is_nothing(scorer: Scorer) -> None:
    assert await scorer.score([], []) == []


async def test_lists_of_unequal_length_are_an_error(scorer: Scorer) -> None:
    with pytest.raises(ScoringError, match="2 prompts and 1 completions"):
        await scorer.score([PROMPT] * 2, ["a"])


async def test_a_closed_scorer_says_so(scorer: Scorer) -> None:
    await scorer.close()
    with pytest.raises(ScoringError, match="not running"):
        await scorer.score([PROMPT], ["a"])


async def test_it_has_an_identity(scorer: Scorer) -> None:
    assert len(scorer.identity) == 64
    int(scorer.identity, 16)


async def test_it_has_a_name(scorer: Scorer) -> None:
    assert scorer.name.endswith(("tiny-reward", "my_reward.py:reward"))
