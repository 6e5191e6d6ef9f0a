"""Oracle 3: N = 1, the worst completion, the range of factor B, invariance, Worst-of-N."""

import numpy as np
import pytest
from small_law import ALL_REWARDS, PROBS, STRICT

from bond_core.best_of_n_law import (
    best_of_n_probabilities,
    log_factors,
    reward_quantiles,
)


@ALL_REWARDS
def test_oracle_03_special_cases(rewards: np.ndarray):
    assert best_of_n_probabilities(PROBS, rewards, 1) == pytest.approx(PROBS, abs=1e-15)
    factors = log_factors(PROBS, rewards, 7)
    assert (np.exp(factors.log_b) >= 1 - 1e-12).all()
    assert (np.exp(factors.log_b) <= 7 + 1e-12).all()
    law = best_of_n_probabilities(PROBS, rewards, 7)
    assert (best_of_n_probabilities(PROBS, np.exp(rewards), 7) == law).all()
    assert (best_of_n_probabilities(PROBS, 3 * rewards + 1, 7) == law).all()
    # the worst of n is the best by the opposite reward
    worst = best_of_n_probabilities(PROBS, -rewards, 3)
    p_lt, p_le = reward_quantiles(PROBS, rewards)
    expected = PROBS * ((1 - p_lt) ** 3 - (1 - p_le) ** 3) / (p_le - p_lt)
    assert worst == pytest.approx(expected, abs=1e-10)


def test_oracle_03_worst_completion_must_be_drawn_n_times():
    assert best_of_n_probabilities(PROBS, STRICT, 4)[1] == pytest.approx(0.07**4, abs=1e-12)
