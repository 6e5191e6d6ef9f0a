"""Oracle 7: the win rate by pairs, at most N / (N + 1), reached by continuous rewards."""

import itertools

import numpy as np
import pytest
from small_law import ALL_REWARDS, PROBS

from bond_core.best_of_n_law import (
    best_of_n_probabilities,
    best_of_n_win_rate,
)


@ALL_REWARDS
@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_oracle_07_win_rate(rewards: np.ndarray, n: int):
    law = best_of_n_probabilities(PROBS, rewards, n)
    by_pairs = sum(
        law[i] * PROBS[j] * (0.5 if rewards[i] == rewards[j] else float(rewards[i] > rewards[j]))
        for i, j in itertools.product(range(6), repeat=2)
    )
    win_rate = best_of_n_win_rate(PROBS, rewards, n)
    assert win_rate == pytest.approx(by_pairs, abs=1e-10)
    assert win_rate <= n / (n + 1) + 1e-12


def test_oracle_07_continuous_rewards_reach_the_win_rate_bound():
    fine = np.full(20_000, 1 / 20_000)
    win_rate = best_of_n_win_rate(fine, np.arange(20_000), 8)
    assert win_rate == pytest.approx(8 / 9, abs=1e-8)
