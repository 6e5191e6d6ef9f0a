"""Scored samples of one policy on the held-out prompts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bond_core.engines.base import Engine
from bond_core.errors import BondError, PromptTooLongError, ScoringError
from bond_core.rewards.base import Scorer
from bond_core.types import Conversation, Generation, SamplingParams
from bond_trainer.rollouts import Draw, sample, score_each
from bond_trainer.variety import Variety, variety_of

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scorers:
    """Who judges: the scorer trains and selects, the judge decides, gold only reports."""

    scorer: Scorer
    judge: Scorer | None = None
    gold: Scorer | None = None


@dataclass(frozen=True, slots=True)
class Draws:
    """Samples per prompt (P prompts, S samples each) with what every scorer says of them."""

    rewards_PS: FloatArray
    judge_PS: FloatArray | None
    gold_PS: FloatArray | None
    num_tokens_PS: FloatArray
    distinct_share: float
    """Different texts among the samples of a prompt, over their number, averaged."""
    truncated_share: float
    """Answers that were cut at `max_tokens`."""
    variety: Variety
    """Within and across the answers, over all prompts."""
    generations: tuple[Generation, ...] = ()
    """The samples themselves; not kept for cached draws."""


logger = logging.getLogger(__name__)


class UnusablePromptsError(BondError):
    """Some prompts, but not all, do not fit into the context or cannot be scored."""

    def __init__(self, prompts: Sequence[Conversation], reason: BondError) -> None:
        super().__init__(f"{len(prompts)} prompts cannot be evaluated on: {reason}")
        self.prompts = prompts


async def draw_scored(
    engine: Engine,
    version: str,
    prompts: Sequence[Conversation],
    params: SamplingParams,
    num_samples: int,
    seed: int,
    scorers: Scorers,
) -> Draws:
    """Sample and score. Equal seeds give paired randomness between versions.

    Raises `UnusablePromptsError` naming the prompts that the engine or a scorer refuses, and
    `ScoringError` if a scorer refuses all of them.
    """
    [drawn] = await sample(
        engine, [Draw(version, num_samples, "evaluation")], prompts, params, seed
    )
    refused = [found if isinstance(found, PromptTooLongError) else None for found in drawn]
    _check_usable(prompts, refused)
    generations = [found for found in drawn if isinstance(found, Generation)]
    completions = [generation.completions for generation in generations]
    return Draws(
        rewards_PS=await _scores(scorers.scorer, prompts, generations),
        judge_PS=await _scores(scorers.judge, prompts, generations) if scorers.judge else None,
        gold_PS=await _gold_scores(scorers.gold, prompts, generations),
        num_tokens_PS=np.array(
            [[len(c.token_ids) for c in row] for row in completions], dtype=np.float64
        ),
        distinct_share=float(
            np.mean([len({c.text for c in row}) / len(row) for row in completions])
        ),
        truncated_share=float(
            np.mean([c.finish_reason == "length" for row in completions for c in row])
        ),
        variety=variety_of([[c.text for c in row] for row in completions]),
        generations=tuple(generations),
    )


async def _scores(
    scorer: Scorer, prompts: Sequence[Conversation], generations: Sequence[Generation]
) -> FloatArray:
    found = await score_each(scorer, prompts, [[generation] for generation in generations])
    _check_usable(prompts, [own if isinstance(own, ScoringError) else None for own in found])
    rows = [own[0] for own in found if not isinstance(own, ScoringError)]
    return np.array(rows, dtype=np.float64)


async def _gold_scores(
    gold: Scorer | None, prompts: Sequence[Conversation], generations: Sequence[Generation]
) -> FloatArray | None:
    """Gold is for reports: without it they have a gap, and the decision goes on as it would."""
    if gold is None:
        return None
    try:
        return await _scores(gold, prompts, generations)
    except (ScoringError, UnusablePromptsError) as error:
        logger.warning("no gold reward in this evaluation: %s", error)
        return None


def _check_usable(prompts: Sequence[Conversation], errors: Sequence[BondError | None]) -> None:
    refused = [(p, error) for p, error in zip(prompts, errors, strict=True) if error is not None]
    if refused:
        raise UnusablePromptsError([prompt for prompt, _ in refused], refused[0][1])
