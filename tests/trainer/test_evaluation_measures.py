"""`bond eval`'s numbers, by hand or by brute force over all subsets."""

import itertools
import json
import math

import numpy as np
import pytest

from bond_core.best_of_n_law import effective_n_from_kl, kl_best_of_n_bound
from bond_core.statistics import bootstrap_interval_of
from bond_core.types import Completion, Generation
from bond_trainer.draws import Draws
from bond_trainer.evaluation import DrawnPolicies, DrawnPolicy, evaluate
from bond_trainer.laws_along import LawsAlong
from bond_trainer.variety import variety_of

WORDS = ("yes", "no", "the parcel is late", "the parcel is here", "late", "a b c d a b c d")


def drawn(rewards: list[list[float]], kl: float, judge: list[list[float]] | None) -> DrawnPolicy:
    """Answers of ten tokens; answer j of prompt i says WORDS[i + j], entropy 5 nats."""
    values = np.array(rewards, dtype=np.float64)
    texts = [[WORDS[(i + j) % 6] for j in range(values.shape[1])] for i in range(len(values))]
    generations = tuple(
        Generation((1,), tuple(Completion(t, (5,) * 10, (-0.2,) * 10, "stop") for t in row))
        for row in texts
    )
    draws = Draws(
        rewards_PS=values,
        judge_PS=None if judge is None else np.array(judge),
        gold_PS=None,
        num_tokens_PS=np.full_like(values, 10),
        distinct_share=1.0,
        truncated_share=0.0,
        variety=variety_of(texts),
        generations=generations,
    )
    laws = LawsAlong(np.full_like(values, kl), np.full_like(values, 5.0))
    return DrawnPolicy(draws, laws)


REFERENCE = drawn(
    [[1, 2, 3, 4], [10, 20, 30, 40], [0, 0, 1, 1]],
    0.0,
    [[4, 3, 2, 1], [1, 1, 2, 2], [5, 6, 7, 8]],
)
OURS = drawn([[3.5, 2.0], [25, 45], [1, 1]], 0.7, [[1, 1], [2, 2], [3, 3]])
OTHER = drawn([[1.5, 1.5], [25, 5], [0, 0]], 0.1, None)
FOUND = evaluate(DrawnPolicies(REFERENCE, {"v0002": OURS, "v0001": OTHER}), best_of=2)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_best_of_n_for_every_n_is_the_mean_over_all_subsets(n: int) -> None:
    expected = {"reward_mean": 0.0, "judge_mean": 0.0}
    assert REFERENCE.draws.judge_PS is not None
    for rewards, judged in zip(REFERENCE.draws.rewards_PS, REFERENCE.draws.judge_PS, strict=True):
        subsets = list(itertools.combinations(range(4), n))
        for subset in subsets:
            top = max(rewards[i] for i in subset)
            tied = [i for i in subset if rewards[i] == top]
            expected["reward_mean"] += top / len(subsets) / 3
            expected["judge_mean"] += np.mean([judged[i] for i in tied]) / len(subsets) / 3
    found = FOUND["best_of_n"][str(n)]
    assert found["reward_mean"] == pytest.approx(expected["reward_mean"])
    assert found["judge_mean"] == pytest.approx(expected["judge_mean"])
    assert found["kl_nats"] == pytest.approx(math.log(n) - (n - 1) / n)
    assert found["kl_plug_in_nats"] <= found["kl_nats"] + 1e-12
    assert list(FOUND["best_of_n"]) == ["1", "2", "3", "4"]


def test_the_plug_in_estimate_of_answers_with_probability_e_to_minus_two() -> None:
    # every answer has p = e^-2; Beirami's estimate of Best-of-2 (arXiv 2401.01879, section 4)
    p, n = math.exp(-2.0), 2
    missed = (1 - p) ** n
    expected = missed * (math.log(n) + (n - 1) * math.log1p(-p) - (n - 1) / n)
    expected += (1 - missed) * math.log((1 - missed) / p)
    assert FOUND["best_of_n"]["2"]["kl_plug_in_nats"] == pytest.approx(expected)


def test_quantile_kl_and_what_they_are_worth() -> None:
    found = FOUND["policies"]["v0002"]
    # 3.5 beats 3 of 4, 2 beats 1 and ties 1; 25 beats 2, 45 beats 4; 1 beats 2 and ties 2
    u = (0.75 + 0.375 + 0.5 + 1.0 + 0.75 + 0.75) / 6
    n_q, n_kl = u / (1 - u), effective_n_from_kl(0.7)
    assert found["quantile_mean"] == pytest.approx(u)
    assert found["n_q"] == pytest.approx(n_q)
    assert found["kl_efficiency"] == pytest.approx(n_q / n_kl)
    assert found["kl_excess_nats"] == pytest.approx(0.7 - kl_best_of_n_bound(n_q))
    assert found["kl_nats_ci95"] == pytest.approx([0.7, 0.7])
    assert found["entropy_per_token"] == pytest.approx(0.5)
    assert "kl_nats" not in FOUND["policies"]["reference"]


def test_comparisons_are_paired_and_ties_are_half() -> None:
    against = FOUND["against"]["v0002"]
    assert list(against) == ["reference", "v0001", "best_of_2"]
    assert against["reference"]["reward_difference"] == pytest.approx(
        (2.75 - 2.5 + 35 - 25 + 1 - 0.5) / 3
    )
    # of four pairs each: all wins; 25 ties 25 and beats 5, 45 beats both; all wins
    assert against["v0001"]["win_rate"] == pytest.approx((4 / 4 + 3.5 / 4 + 4 / 4) / 3)
    assert "judge_difference" not in against["v0001"]  # v0001 has no judge's scores
    assert against["reference"]["judge_difference"] == pytest.approx((1 - 2.5 + 2 - 1.5 - 3.5) / 3)
    # pairs of [0 0 1 1]: the best is 0 once and 1 five times, so that a 1 wins 1 + 5/2 of 6
    assert against["best_of_2"]["win_rate"] == pytest.approx(((3 + 0.5 + 1 + 6) / 12 + 3.5 / 6) / 3)
    assert (
        FOUND["against"]["v0001"]["v0002"]["reward_difference"]
        == -against["v0001"]["reward_difference"]
    )


def test_what_answers_look_like() -> None:
    found = FOUND["policies"]["v0002"]
    # column 0: y e s / n o / the parcel is late; column 1: n o / the parcel is late / … is here,
    # where a text without white space is read by its characters
    assert found["distinct_n"]["1"] == pytest.approx((9 / 9 + 7 / 10) / 2)
    assert found["distinct_n"]["4"] == 1.0
    assert found["repeated_share"] == 0.0
    assert found["tokens_per_answer"] == 10


def test_a_policy_above_every_sample_has_no_finite_n_and_is_still_json() -> None:
    above = drawn([[9, 9], [99, 99], [9, 9]], 1.0, None)
    found = evaluate(DrawnPolicies(REFERENCE, {"v0001": above}), best_of=2)
    policy = json.loads(json.dumps(found, allow_nan=False))["policies"]["v0001"]
    assert policy["quantile_mean"] == 1.0
    assert policy["n_q"] is None
    assert policy["kl_efficiency"] is None
    assert policy["kl_excess_nats"] is None


def test_a_worse_policy_needed_no_kl() -> None:
    below = drawn([[0, 0], [0, 0], [0, 0]], 0.3, None)
    found = evaluate(DrawnPolicies(REFERENCE, {"v0001": below}), best_of=2)
    assert found["policies"]["v0001"]["kl_excess_nats"] == pytest.approx(0.3)


def test_best_of_more_than_the_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 5 reference samples, not 4"):
        evaluate(DrawnPolicies(REFERENCE, {}), best_of=5)


def test_the_interval_of_a_ratio_takes_the_same_prompts_from_both_columns() -> None:
    numerator = np.array([1.0, 2.0, 4.0, 8.0])
    # proportional columns: the ratio is 3 in every resample, only if they are resampled together
    low, high = bootstrap_interval_of(lambda means: means[0] / means[1], numerator * 3, numerator)
    assert (low, high) == (pytest.approx(3), pytest.approx(3))


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    """400 samples of 60 pairs whose ratio of means is 2: between 92 and 97.5 per cent cover it."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        below = generator.gamma(4.0, size=60)
        above = 2 * below + generator.normal(size=60)
        low, high = bootstrap_interval_of(lambda m: m[0] / m[1], above, below, num_resamples=500)
        covered += low <= 2 <= high
    assert 0.92 <= covered / 400 <= 0.975
