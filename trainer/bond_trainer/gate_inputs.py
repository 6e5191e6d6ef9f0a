"""What the gate decides on, and the form of one finding."""

from dataclasses import dataclass

import numpy.typing as npt

from bond_trainer.variety import Variety


@dataclass(frozen=True, slots=True, kw_only=True)
class GateInputs:
    """Fresh samples of challenger and incumbent on the gate half of the held-out prompts.

    Arrays are `(prompts, samples)`, or `(prompts,)`; row i of each answers prompt i.
    """

    challenger: str
    incumbent: str
    challenger_rewards: npt.ArrayLike
    incumbent_rewards: npt.ArrayLike
    challenger_kl: npt.ArrayLike
    """Estimates of KL(challenger || reference) in nats per answer."""
    challenger_tokens: npt.ArrayLike
    """Lengths of the challenger's answers."""
    reference_tokens: npt.ArrayLike
    challenger_variety: Variety
    reference_variety: Variety
    challenger_truncated_share: float
    """Answers that were cut at the token limit."""
    reference_truncated_share: float
    challenger_judge_scores: npt.ArrayLike | None = None
    """Scores of a second scorer that training never sees; None without one."""
    incumbent_judge_scores: npt.ArrayLike | None = None
    reference_judge_scores: npt.ArrayLike | None = None
    """`(prompts, samples)`, at least two samples: their spread is the unit of the margin."""
    challenger_suite_scores: npt.ArrayLike | None = None
    """On the prompts of the user's suite; None without one."""
    reference_suite_scores: npt.ArrayLike | None = None


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One requirement, whether it is met, and the figures in a sentence."""

    name: str
    passed: bool
    sentence: str
