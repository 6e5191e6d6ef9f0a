"""Estimators against averages over all subsets, and intervals against published tables."""

import itertools
import math

import numpy as np
import pytest
from few_samples import GOLD, PROXY, over_subsets

from bond_core.statistics import (
    MeanEstimate,
    best_of_n_reward,
    best_of_n_weights,
    bootstrap_interval,
    clustered_mean,
    mean_estimate,
    paired_difference,
    quantiles,
    subset_shares,
    win_rate,
    win_rate_against_best_of_n,
)


def test_weights_without_ties_follow_the_order_statistics():
    assert best_of_n_weights([3.0, 1.0, 2.0, 4.0], 2) == pytest.approx([2 / 6, 0, 1 / 6, 3 / 6])


def test_estimator_is_batched_over_prompts():
    proxy = np.array([PROXY, PROXY[::-1]])
    gold = np.array([GOLD, GOLD])
    expected = [over_subsets(PROXY, GOLD, 3), over_subsets(PROXY[::-1], GOLD, 3)]
    assert best_of_n_reward(proxy, 3, gold) == pytest.approx(expected, abs=1e-12)


def test_many_samples_do_not_overflow():
    assert subset_shares(4000, 2000)[-1] == 1
    rewards = np.arange(4000.0)
    assert float(best_of_n_reward(rewards, 2)) == pytest.approx(2 / 3 * 4001 - 1)


def test_quantiles_count_ties_half():
    assert quantiles([0.0, 1.0, 1.5, 9.0], [1.0, 1.0, 2.0, 0.5]).tolist() == [0, 0.5, 0.75, 1]
    per_prompt = quantiles([[1.0], [1.0]], [[0.0, 1.0], [2.0, 3.0]])
    assert per_prompt.tolist() == [[0.75], [0.0]]


def test_win_rate_over_all_pairs():
    assert float(win_rate([1.0, 3.0], [0.0, 1.0, 4.0])) == pytest.approx((1.5 + 2) / 6)
    assert float(win_rate(PROXY, PROXY)) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_win_rate_against_best_of_n_is_over_all_subsets(n: int):
    ours = [0.4, 2.0, 1.5]
    outcomes = [
        0.5 if reward == best else float(reward > best)
        for reward in ours
        for best in (max(s) for s in itertools.combinations(PROXY, n))
    ]
    estimate = float(win_rate_against_best_of_n(ours, PROXY, n))
    assert estimate == pytest.approx(np.mean(outcomes), abs=1e-12)


def test_win_rate_against_best_of_1_is_the_win_rate():
    one = win_rate_against_best_of_n(GOLD, PROXY, 1)
    assert float(one) == pytest.approx(float(win_rate(GOLD, PROXY)), abs=1e-12)


@pytest.mark.parametrize(
    ("alpha", "num_units", "quantile"),
    [(0.025, 2, 12.706205), (0.05, 6, 2.015048), (0.025, 11, 2.228139), (0.005, 31, 2.749996)],
)
def test_margins_are_students_t(alpha: float, num_units: int, quantile: float):
    estimate = MeanEstimate(1.0, 2.0, num_units)
    assert estimate.upper(alpha) == pytest.approx(1 + 2 * quantile, abs=2e-6)
    assert estimate.lower(alpha) == pytest.approx(1 - 2 * quantile, abs=2e-6)
    assert estimate.interval(1 - 2 * alpha) == (estimate.lower(alpha), estimate.upper(alpha))


def test_mean_estimate_by_hand():
    estimate = mean_estimate([1.0, 2.0, 3.0, 6.0])
    assert estimate.mean == 3
    assert estimate.standard_error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert estimate.num_units == 4


def test_samples_of_one_prompt_are_not_independent_units():
    values = [[1.0, 3.0], [2.0, 2.0], [5.0, 7.0]]
    assert clustered_mean(values) == mean_estimate([2.0, 2.0, 6.0])


def test_pairing_removes_what_prompts_have_in_common():
    prompt_effect = np.array([[0.0], [100.0], [-50.0]])
    ours = prompt_effect + np.array([[1.0, 2.0]])
    theirs = prompt_effect + np.array([[0.5, 0.0, 1.0]])
    difference = paired_difference(ours, theirs)
    assert difference.mean == pytest.approx(1.0)
    assert difference.standard_error == pytest.approx(0, abs=1e-12)
    assert difference.num_units == 3
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(3)
    samples = generator.normal(size=(400, 12))
    covered = [lo <= 0 <= hi for lo, hi in (mean_estimate(s).interval(0.9) for s in samples)]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.045)  # three standard errors


def test_bootstrap_agrees_with_t_and_is_reproducible():
    values = np.random.default_rng(5).normal(loc=2.0, size=(80, 3))
    interval = bootstrap_interval(values, 0.95, num_resamples=4000, seed=1)
    assert interval == bootstrap_interval(values, 0.95, num_resamples=4000, seed=1)
    assert interval == pytest.approx(clustered_mean(values).interval(0.95), abs=0.02)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float):
    with pytest.raises(ValueError, match="not a finite number"):
        quantiles([1.0, bad], [0.0])
    with pytest.raises(ValueError, match="not a finite number"):
        best_of_n_reward([1.0, bad], 1)
    with pytest.raises(ValueError, match="value 1 is not a finite number"):
        mean_estimate([1.0, bad])


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="1 <= n <= k"):
        best_of_n_reward([1.0, 2.0], 3)
    with pytest.raises(ValueError, match="at least 2 values"):
        mean_estimate([1.0])
    with pytest.raises(ValueError, match="other prompts"):
        quantiles([[1.0]], [[1.0], [2.0]])
