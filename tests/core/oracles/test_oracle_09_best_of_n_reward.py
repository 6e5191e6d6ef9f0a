"""Oracle 9: the Best-of-n estimator is the mean over all n-subsets of the samples."""

import math

import pytest
from few_samples import GOLD, PROXY, over_subsets

from bond_core.statistics import (
    best_of_n_reward,
)


@pytest.mark.parametrize("n", range(1, 8))
def test_oracle_09_estimator_is_the_mean_over_subsets(n: int):
    # within a tie class every member is as likely to be met, so both tie rules agree
    assert float(best_of_n_reward(PROXY, n)) == pytest.approx(
        over_subsets(PROXY, PROXY, n), abs=1e-12
    )
    estimate = float(best_of_n_reward(PROXY, n, GOLD))
    assert estimate == pytest.approx(over_subsets(PROXY, GOLD, n), abs=1e-12)


def test_oracle_09_by_hand():
    gold = [1.0, 2.0, 0.0, -1.0]
    assert float(best_of_n_reward([0.1, 0.5, 0.3, 0.9], 2, gold)) == pytest.approx(1 / 6, abs=1e-12)
    assert float(best_of_n_reward([0.1, 0.5, 0.3, 0.9], 1, gold)) == pytest.approx(0.5)
    assert float(best_of_n_reward([0.1, 0.5, 0.3, 0.9], 4, gold)) == -1


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_oracle_09_binary_reward_gives_pass_at_n(n: int):
    correct = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    expected = 1 - math.comb(7, n) / math.comb(10, n)
    assert float(best_of_n_reward(correct, n)) == pytest.approx(expected, abs=1e-12)
