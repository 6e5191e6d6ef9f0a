"""The gate's decision, check by check, and the online levels that keep its promise."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bond_core.config import GateConfig, SuiteConfig
from bond_trainer.gate import GateDecision, decide
from bond_trainer.gate_inputs import GateInputs
from bond_trainer.variety import Variety, variety_of

NUM_PROMPTS = 40
CONFIG = GateConfig(level=0.05, min_gain=0.0, kl_budget_nats=2.0, max_length_ratio=1.5)
GENERATOR = np.random.default_rng(0)
PROMPT_EFFECT = GENERATOR.normal(scale=10, size=(NUM_PROMPTS, 1))
NOISE = GENERATOR.normal(scale=0.2, size=(2, NUM_PROMPTS, 4))
REFERENCE_NOISE = np.random.default_rng(2).normal(scale=0.2, size=(NUM_PROMPTS, 16))
GUARDS = ["kl", "length", "truncation", "repetition", "identical", "distinct"]
CHECKS = ["reward", *GUARDS, "judge", "judge_reference"]
VARIED = Variety(repeated_share=0.05, identical_share=0.02, distinct_share=0.8)
GOOD = GateInputs(
    challenger="v0002",
    incumbent="v0001",
    challenger_rewards=PROMPT_EFFECT + 0.5 + NOISE[0],
    incumbent_rewards=PROMPT_EFFECT + NOISE[1],
    challenger_kl=1.0 + 0.1 * NOISE[0],
    challenger_tokens=np.full((NUM_PROMPTS, 4), 22),
    reference_tokens=np.full((NUM_PROMPTS, 16), 20),
    challenger_variety=VARIED,
    reference_variety=VARIED,
    challenger_truncated_share=0.1,
    reference_truncated_share=0.1,
    challenger_judge_scores=PROMPT_EFFECT + NOISE[0],
    incumbent_judge_scores=PROMPT_EFFECT + NOISE[1],
    reference_judge_scores=PROMPT_EFFECT + REFERENCE_NOISE,
)


def verdict(inputs: GateInputs, config: GateConfig = CONFIG, before: int = 0) -> GateDecision:
    return decide(inputs, config, num_challengers_before=before, num_promotions_before=0)


def failed(decision: GateDecision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def test_a_good_challenger_is_promoted_with_the_figures():
    decision = verdict(GOOD)
    assert decision.promote
    assert [check.name for check in decision.checks] == CHECKS
    assert len(decision.reasons) == len(CHECKS)
    assert decision.level == pytest.approx(0.05 * 6 / math.pi**2)
    gains = 0.5 + (NOISE[0] - NOISE[1]).mean(axis=1)
    assert decision.reward_gain.mean == pytest.approx(gains.mean())
    error = gains.std(ddof=1) / math.sqrt(NUM_PROMPTS)
    # Student's t with 39 degrees of freedom at level .0304: 1.9321
    assert decision.reward_gain_lower == pytest.approx(gains.mean() - 1.9321 * error, abs=1e-4)
    assert decision.length_ratio == pytest.approx(1.1)
    assert decision.reasons[0].startswith("reward of v0002 minus v0001 on 40 prompts is +0.5")
    assert decision.reasons[2] == (
        "answers are 1.10 times as long as the reference's: within the limit of 1.5"
    )


def test_no_gain_is_refused():
    decision = verdict(replace(GOOD, challenger_rewards=GOOD.incumbent_rewards))
    assert failed(decision) == ["reward"]
    assert not decision.promote
    assert decision.reasons == [
        "reward of v0002 minus v0001 on 40 prompts is +0, lower bound +0 at level 0.0304: "
        "not above the smallest gain 0"
    ]


def test_gain_has_to_exceed_the_smallest_gain_with_confidence():
    assert failed(verdict(GOOD, CONFIG.model_copy(update={"min_gain": 0.4}))) == []
    assert failed(verdict(GOOD, CONFIG.model_copy(update={"min_gain": 0.49}))) == ["reward"]


def test_later_challengers_need_stronger_evidence():
    weak = replace(GOOD, challenger_rewards=PROMPT_EFFECT + 0.06 + NOISE[0])
    assert failed(verdict(weak)) == []
    assert failed(verdict(weak, before=60)) == ["reward"]
    after_promotions = decide(weak, CONFIG, num_challengers_before=60, num_promotions_before=60)
    assert after_promotions.level == pytest.approx(61 * verdict(weak, before=60).level)


def test_kl_bound_has_to_be_inside_the_budget():
    spread = np.linspace(0.0, 3.8, NUM_PROMPTS)  # mean 1.9 is inside, its upper bound is not
    decision = verdict(replace(GOOD, challenger_kl=spread))
    assert failed(decision) == ["kl"]
    assert decision.kl_nats.mean == pytest.approx(1.9)
    assert decision.kl_upper_nats > 2
    assert "over the budget of 2" in decision.reasons[0]


def test_long_answers_are_refused():
    decision = verdict(replace(GOOD, challenger_tokens=np.full(NUM_PROMPTS, 31)))
    assert failed(decision) == ["length"]
    assert decision.length_ratio == pytest.approx(1.55)


def test_judge_has_to_agree_not_to_be_significantly_worse():
    worse = PROMPT_EFFECT - 0.3 + NOISE[0]
    decision = verdict(replace(GOOD, challenger_judge_scores=worse))
    assert failed(decision) == ["judge", "judge_reference"]
    assert decision.judge_gain is not None
    assert decision.judge_gain.mean < 0
    slightly = PROMPT_EFFECT - 0.01 + NOISE[0]
    assert failed(verdict(replace(GOOD, challenger_judge_scores=slightly))) == []


def test_judge_may_not_sink_below_the_reference_step_by_step():
    """Each challenger as good as its incumbent to the judge, and both worse than the reference."""
    sunk = replace(
        GOOD,
        challenger_judge_scores=PROMPT_EFFECT - 0.1 + NOISE[0],
        incumbent_judge_scores=PROMPT_EFFECT - 0.1 + NOISE[1],
    )
    decision = verdict(sunk)
    assert failed(decision) == ["judge_reference"]
    gains = NOISE[0].mean(axis=1) - 0.1 - REFERENCE_NOISE.mean(axis=1)
    error = gains.std(ddof=1) / math.sqrt(NUM_PROMPTS)
    assert decision.judge_gain_over_reference is not None
    assert decision.judge_gain_over_reference.mean == pytest.approx(gains.mean())
    # Student's t with 39 degrees of freedom at level .05: 1.6849
    lower = gains.mean() - 1.6849 * error
    deviation = math.sqrt(REFERENCE_NOISE.var(axis=1, ddof=1).mean())
    assert deviation == pytest.approx(0.2, abs=0.02)  # the prompts' own 10 does not count
    [reason] = decision.reasons
    assert reason == (
        f"judge's score of v0002 minus the reference's is {gains.mean():+.4g}, lower bound "
        f"{lower:+.4g}: below the limit {-0.25 * deviation:+.4g}, 0.25 standard deviations of the "
        "reference's"
    )
    just_enough, just_not = -lower / deviation + 0.01, -lower / deviation - 0.01
    assert failed(verdict(sunk, CONFIG.model_copy(update={"judge_margin": just_enough}))) == []
    strict = verdict(sunk, CONFIG.model_copy(update={"judge_margin": just_not}))
    assert failed(strict) == ["judge_reference"]


def test_a_judge_that_sees_no_difference_does_not_object():
    same = np.ones((NUM_PROMPTS, 4))
    indifferent = replace(
        GOOD,
        challenger_judge_scores=same,
        incumbent_judge_scores=same,
        reference_judge_scores=same,
    )
    assert failed(verdict(indifferent)) == []


def test_without_a_judge_there_is_no_such_check():
    unjudged = replace(
        GOOD,
        challenger_judge_scores=None,
        incumbent_judge_scores=None,
        reference_judge_scores=None,
    )
    decision = verdict(unjudged)
    assert decision.promote
    assert [check.name for check in decision.checks] == CHECKS[:7]
    assert decision.judge_gain is None
    assert decision.judge_gain_over_reference is None
    for missing in ("challenger", "incumbent", "reference"):
        with pytest.raises(ValueError, match="challenger, incumbent and reference"):
            verdict(replace(GOOD, **{f"{missing}_judge_scores": None}))
    with pytest.raises(ValueError, match="2 or more answers per prompt"):
        verdict(replace(GOOD, reference_judge_scores=np.ones(NUM_PROMPTS)))


def test_all_failures_are_named():
    bad = replace(
        GOOD,
        challenger_rewards=GOOD.incumbent_rewards,
        challenger_kl=np.full(NUM_PROMPTS, 3.0),
        challenger_tokens=np.full(NUM_PROMPTS, 60),
        challenger_judge_scores=PROMPT_EFFECT - 5,
        challenger_variety=Variety(repeated_share=0.9, identical_share=1.0, distinct_share=0.1),
        challenger_truncated_share=0.9,
    )
    assert failed(verdict(bad)) == CHECKS
    assert len(verdict(bad).reasons) == len(CHECKS)


def test_unpaired_or_broken_evidence_is_refused():
    with pytest.raises(ValueError, match="same prompts"):
        verdict(replace(GOOD, incumbent_rewards=np.zeros((NUM_PROMPTS - 1, 4))))
    with pytest.raises(ValueError, match="not a finite number"):
        verdict(replace(GOOD, challenger_kl=np.full(NUM_PROMPTS, math.nan)))


def test_a_collapsed_challenger_is_refused_whatever_its_reward() -> None:
    """One answer to everything: its length, KL and judge may all be in order."""
    texts = [[f"the parcel number {p} came on day {s}" for s in range(4)] for p in range(40)]
    one = [["your order is late and we are sorry"] * 4 for _ in range(40)]
    reference = variety_of(texts)
    inputs = replace(GOOD, challenger_variety=reference, reference_variety=reference)
    assert verdict(inputs).promote
    decision = verdict(replace(inputs, challenger_variety=variety_of(one)))
    assert failed(decision) == ["identical", "distinct"]
    assert decision.reasons[0] == (
        "the share of identical answers to different prompts is 1.000, the reference's 0.000: "
        "over the limit of 0.2 more"
    )
    nearly = [[f"your order is late and we are sorry {p}"] for p in range(40)]
    assert failed(verdict(replace(inputs, challenger_variety=variety_of(nearly)))) == ["distinct"]


def test_answers_in_circles_or_without_an_end_are_refused() -> None:
    circling = replace(VARIED, repeated_share=0.26)
    assert failed(verdict(replace(GOOD, challenger_variety=circling))) == ["repetition"]
    assert failed(verdict(replace(GOOD, challenger_truncated_share=0.21))) == ["truncation"]
    assert failed(verdict(replace(GOOD, challenger_truncated_share=0.19))) == []


def test_variety_by_hand() -> None:
    found = variety_of([["a b c d a b c d", "x"], ["x", "a b"]])
    assert found.repeated_share == pytest.approx((1 / 5) / 4)
    # of the 2 x 2 pairs across the two prompts, "x" with "x" is the equal one
    assert found.identical_share == pytest.approx(1 / 4)
    # first answers: ab bc cd da ab bc cd and x, 5 of 8 differ; second: x and ab, both
    assert found.distinct_share == pytest.approx((5 / 8 + 1) / 2)
    assert variety_of([["aaaaaaa"]]).repeated_share == pytest.approx(3 / 4)  # by characters


def test_a_challenger_that_forgot_is_refused() -> None:
    config = CONFIG.model_copy(
        update={"suite": SuiteConfig(function="f.py:f", prompts=Path("p"), margin=0.3)}
    )
    kept = replace(
        GOOD,
        challenger_suite_scores=PROMPT_EFFECT + NOISE[0],
        reference_suite_scores=PROMPT_EFFECT + REFERENCE_NOISE,
    )
    assert verdict(kept, config).promote
    assert verdict(kept, config).checks[-1].name == "suite"
    forgot = replace(kept, challenger_suite_scores=PROMPT_EFFECT - 1 + NOISE[0])
    assert failed(verdict(forgot, config)) == ["suite"]
    [reason] = verdict(forgot, config).reasons
    assert reason.startswith("v0002 scores -0.9819 against the reference on 40 prompts")
    assert reason.endswith("beyond the margin of 0.3, it has forgotten")
    with pytest.raises(ValueError, match="challenger and reference"):
        verdict(replace(kept, reference_suite_scores=None), config)


def test_what_the_proxy_likes_and_the_judge_does_not_is_refused() -> None:
    """Reward far up, judge down: over-optimisation, which KL alone does not show."""
    hacked = replace(
        GOOD,
        challenger_rewards=PROMPT_EFFECT + 5 + NOISE[0],
        challenger_judge_scores=PROMPT_EFFECT - 0.5 + NOISE[0],
    )
    assert failed(verdict(hacked)) == ["judge", "judge_reference"]
