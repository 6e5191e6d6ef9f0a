"""The gate: whether a challenger may replace the incumbent. A pure function of its evidence.

Three kinds of checks: the reward has to be shown to rise, at a level that falls from challenger to
challenger (`gate_levels`); the judge and the user's suite must not be lost; and guards bound KL,
length, truncation, repetition and sameness of the answers (`gate_guards`).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bond_core.config import GateConfig
from bond_core.intervals import MeanEstimate, clustered_mean, paired_difference
from bond_trainer.gate_guards import (
    distinct_check,
    identical_check,
    kl_check,
    length_check,
    repetition_check,
    truncation_check,
)
from bond_trainer.gate_inputs import GateCheck, GateInputs
from bond_trainer.gate_levels import lond_level


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
    suite_gain_over_reference: MeanEstimate | None

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
    gain_lower = gain.cautious_lower(level)
    kl = clustered_mean(inputs.challenger_kl)
    kl_upper = kl.upper(config.level)
    length = clustered_mean(inputs.challenger_tokens).mean
    ratio = length / clustered_mean(inputs.reference_tokens).mean
    checks = [
        _reward_check(inputs, config, gain, gain_lower, level),
        kl_check(config, kl, kl_upper),
        length_check(config, ratio),
        truncation_check(inputs, config),
        repetition_check(inputs, config),
        identical_check(inputs, config),
        distinct_check(inputs, config),
    ]
    judged = _judged(inputs)
    if judged is not None:
        checks += [
            _judge_check(inputs, config, judged.over_incumbent),
            _judge_reference_check(inputs, config, judged),
        ]
    suite = _suite_gain(inputs)
    if suite is not None:
        checks.append(_suite_check(inputs, config, suite))
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
        suite_gain_over_reference=suite,
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


def _suite_gain(inputs: GateInputs) -> MeanEstimate | None:
    """The challenger's mean score on the suite minus the reference's."""
    ours, theirs = inputs.challenger_suite_scores, inputs.reference_suite_scores
    if ours is None and theirs is None:
        return None
    if ours is None or theirs is None:
        raise ValueError("the suite has to be scored for challenger and reference, or neither")
    return paired_difference(ours, theirs)


def _suite_check(inputs: GateInputs, config: GateConfig, gain: MeanEstimate) -> GateCheck:
    """Against the fixed end, as for the judge: a little lost at each promotion adds up."""
    if config.suite is None:
        raise ValueError("suite scores without trainer.gate.suite, which states the margin")
    lower = gain.lower(config.level)
    passed = lower >= -config.suite.margin
    return GateCheck(
        "suite",
        passed,
        f"{inputs.challenger} scores {gain.mean:+.4g} against the reference on {gain.num_units} "
        f"prompts of the suite, lower bound {lower:+.4g}: {'within' if passed else 'beyond'} the "
        f"margin of {config.suite.margin:g}{'' if passed else ', it has forgotten'}",
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
