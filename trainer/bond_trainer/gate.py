"""The gate: whether a challenger may replace the incumbent. A pure function of its evidence.

The reward has to be shown to rise, at a level that an online rule sets over all challengers to
come: a fixed 5 % would promote one of many challengers without gain sooner or later. LOND
(Javanmard and Montanari, "On online control of false discovery rate", arXiv 1502.06197) tests the
i-th challenger at

    alpha_i = beta_i * (D + 1),    beta_i = level * 6 / (pi^2 * i^2),    sum of beta_i = level

with D the promotions before it. While no challenger has any gain, the probability of ever
promoting one is at most `level`; as true promotions accumulate, the tests grow milder and it is
the share of false promotions that stays below `level`.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bond_core.config import GateConfig
from bond_core.intervals import MeanEstimate, clustered_mean, paired_difference


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
    challenger_judge_scores: npt.ArrayLike | None = None
    """Scores of a second scorer that training never sees; None without one."""
    incumbent_judge_scores: npt.ArrayLike | None = None
    reference_judge_scores: npt.ArrayLike | None = None
    """`(prompts, samples)`, at least two samples: their spread is the unit of the margin."""


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One requirement, whether it is met, and the figures in a sentence."""

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """The verdict, with everything that it rests on."""

    promote: bool
    checks: tuple[GateCheck, ...]
    level: float
    """Level of this challenger's reward test."""
    reward_gain: MeanEstimate
    reward_gain_lower: float
    kl_nats: MeanEstimate
    kl_upper_nats: float
    length_ratio: float
    judge_gain: MeanEstimate | None
    """Over the incumbent."""
    judge_gain_over_reference: MeanEstimate | None

    @property
    def reasons(self) -> list[str]:
        """Why: what failed if it was refused, else everything that it passed."""
        return [check.sentence for check in self.checks if check.passed == self.promote]


@dataclass(frozen=True, slots=True)
class _Judged:
    """What the judge says of the challenger."""

    over_incumbent: MeanEstimate
    over_reference: MeanEstimate
    reference_deviation: float


def lond_level(level: float, num_challengers_before: int, num_promotions_before: int) -> float:
    """alpha_i of the next challenger."""
    if not 0 <= num_promotions_before <= num_challengers_before:
        raise ValueError(
            f"{num_promotions_before} promotions of {num_challengers_before} challengers"
        )
    order = num_challengers_before + 1
    share = level * 6 / (math.pi * order) ** 2
    return share * (num_promotions_before + 1)


def decide(
    inputs: GateInputs,
    config: GateConfig,
    *,
    num_challengers_before: int,
    num_promotions_before: int,
) -> GateDecision:
    """Compare the challenger with the incumbent.

    Both counts are over the life of the log: every challenger that was ever tested, and every one
    that passed. Raises `ValueError` for evidence that does not belong together, has fewer than
    two prompts or is not finite.
    """
    level = lond_level(config.level, num_challengers_before, num_promotions_before)
    gain = paired_difference(inputs.challenger_rewards, inputs.incumbent_rewards)
    gain_lower = gain.lower(level)
    kl = clustered_mean(inputs.challenger_kl)
    kl_upper = kl.upper(config.level)
    length = clustered_mean(inputs.challenger_tokens).mean
    ratio = length / clustered_mean(inputs.reference_tokens).mean
    checks = [
        _reward_check(inputs, config, gain, gain_lower, level),
        _kl_check(config, kl, kl_upper),
        _length_check(config, ratio),
    ]
    judged = _judged(inputs)
    if judged is not None:
        checks += [
            _judge_check(inputs, config, judged.over_incumbent),
            _judge_reference_check(inputs, config, judged),
        ]
    return GateDecision(
        promote=all(check.passed for check in checks),
        checks=tuple(checks),
        level=level,
        reward_gain=gain,
        reward_gain_lower=gain_lower,
        kl_nats=kl,
        kl_upper_nats=kl_upper,
        length_ratio=ratio,
        judge_gain=judged.over_incumbent if judged else None,
        judge_gain_over_reference=judged.over_reference if judged else None,
    )


def _reward_check(
    inputs: GateInputs, config: GateConfig, gain: MeanEstimate, lower: float, level: float
) -> GateCheck:
    passed = lower > config.min_gain
    return GateCheck(
        "reward",
        passed,
        f"reward of {inputs.challenger} minus {inputs.incumbent} on {gain.num_units} prompts is "
        f"{gain.mean:+.4g}, lower bound {lower:+.4g} at level {level:.3g}: "
        f"{'above' if passed else 'not above'} the smallest gain {config.min_gain:g}",
    )


def _kl_check(config: GateConfig, kl: MeanEstimate, upper: float) -> GateCheck:
    passed = upper <= config.kl_budget_nats
    return GateCheck(
        "kl",
        passed,
        f"KL to the reference is {kl.mean:.3f} nats, upper bound {upper:.3f}: "
        f"{'within' if passed else 'over'} the budget of {config.kl_budget_nats:g}",
    )


def _length_check(config: GateConfig, ratio: float) -> GateCheck:
    passed = ratio <= config.max_length_ratio
    return GateCheck(
        "length",
        passed,
        f"answers are {ratio:.2f} times as long as the reference's: "
        f"{'within' if passed else 'over'} the limit of {config.max_length_ratio:g}",
    )


def _judge_check(inputs: GateInputs, config: GateConfig, gain: MeanEstimate) -> GateCheck:
    upper = gain.upper(config.level)
    passed = upper >= 0
    return GateCheck(
        "judge",
        passed,
        f"judge's score of {inputs.challenger} minus {inputs.incumbent} is {gain.mean:+.4g}, "
        f"upper bound {upper:+.4g}: {'not significantly' if passed else 'significantly'} worse",
    )


def _judge_reference_check(inputs: GateInputs, config: GateConfig, judged: _Judged) -> GateCheck:
    """Against the fixed end: each of many promotions may lose a little to its incumbent."""
    gain = judged.over_reference
    lower, limit = gain.lower(config.level), -config.judge_margin * judged.reference_deviation
    passed = lower >= limit
    return GateCheck(
        "judge_reference",
        passed,
        f"judge's score of {inputs.challenger} minus the reference's is {gain.mean:+.4g}, lower "
        f"bound {lower:+.4g}: {'not below' if passed else 'below'} the limit {limit:+.4g}, "
        f"{config.judge_margin:g} standard deviations of the reference's",
    )


def _judged(inputs: GateInputs) -> _Judged | None:
    ours, theirs = inputs.challenger_judge_scores, inputs.incumbent_judge_scores
    reference = inputs.reference_judge_scores
    if ours is None and theirs is None and reference is None:
        return None
    if ours is None or theirs is None or reference is None:
        raise ValueError("the judge has to score challenger, incumbent and reference, or none")
    return _Judged(
        paired_difference(ours, theirs),
        paired_difference(ours, reference),
        _deviation_within_prompts(reference),
    )


def _deviation_within_prompts(values_PS: npt.ArrayLike) -> float:
    """Root of the mean variance among the answers to one prompt.

    Prompts differ in how well any answer to them scores; that says nothing of answers.
    """
    values = np.asarray(values_PS, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(
            f"the reference's judge scores need 2 or more answers per prompt, not {values.shape}"
        )
    return float(np.sqrt(values.var(axis=1, ddof=1).mean()))
