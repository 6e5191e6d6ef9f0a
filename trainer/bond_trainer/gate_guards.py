"""Bounds that no reward buys off: KL, length, truncation, repetition, sameness."""

from bond_core.config import GateConfig
from bond_core.intervals import MeanEstimate
from bond_trainer.gate_inputs import GateCheck, GateInputs


def kl_check(config: GateConfig, kl: MeanEstimate, upper: float) -> GateCheck:
    """The upper bound of KL(challenger || reference) inside the budget."""
    passed = upper <= config.kl_budget_nats
    return GateCheck(
        "kl",
        passed,
        f"KL to the reference is {kl.mean:.3f} nats, upper bound {upper:.3f}: "
        f"{'within' if passed else 'over'} the budget of {config.kl_budget_nats:g}",
    )


def length_check(config: GateConfig, ratio: float) -> GateCheck:
    """Answers that grow, which many rewards like."""
    passed = ratio <= config.max_length_ratio
    return GateCheck(
        "length",
        passed,
        f"answers are {ratio:.2f} times as long as the reference's: "
        f"{'within' if passed else 'over'} the limit of {config.max_length_ratio:g}",
    )


def truncation_check(inputs: GateInputs, config: GateConfig) -> GateCheck:
    """Answers that no longer end by themselves."""
    return _share_check(
        "truncation",
        "the share of answers cut at the token limit",
        inputs.challenger_truncated_share,
        inputs.reference_truncated_share,
        config.max_added_truncation,
    )


def repetition_check(inputs: GateInputs, config: GateConfig) -> GateCheck:
    """Answers that go round in a circle."""
    return _share_check(
        "repetition",
        "the share of an answer that repeats itself",
        inputs.challenger_variety.repeated_share,
        inputs.reference_variety.repeated_share,
        config.max_added_repetition,
    )


def identical_check(inputs: GateInputs, config: GateConfig) -> GateCheck:
    """One answer to everything."""
    return _share_check(
        "identical",
        "the share of identical answers to different prompts",
        inputs.challenger_variety.identical_share,
        inputs.reference_variety.identical_share,
        config.max_added_identical,
    )


def distinct_check(inputs: GateInputs, config: GateConfig) -> GateCheck:
    """Nearly one answer to everything: the same words with a variation here and there."""
    ours, theirs = inputs.challenger_variety.distinct_share, inputs.reference_variety.distinct_share
    ratio = ours / theirs
    passed = ratio >= config.min_distinct_ratio
    return GateCheck(
        "distinct",
        passed,
        f"different word pairs across prompts are {ours:.3f} of all, {ratio:.2f} times the "
        f"reference's: {'not below' if passed else 'below'} the limit of "
        f"{config.min_distinct_ratio:g}",
    )


def _share_check(name: str, what: str, ours: float, theirs: float, limit: float) -> GateCheck:
    passed = ours - theirs <= limit
    return GateCheck(
        name,
        passed,
        f"{what} is {ours:.3f}, the reference's {theirs:.3f}: "
        f"{'within' if passed else 'over'} the limit of {limit:g} more",
    )
