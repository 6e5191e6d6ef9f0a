"""Oracle 1: the law of Best-of-N is what enumeration of all N-tuples gives, ties included."""

import numpy as np
import pytest
from small_law import ALL_REWARDS, PROBS, enumerated

from bond_core.best_of_n_law import (
    best_of_n_probabilities,
    reward_quantiles,
)


@ALL_REWARDS
@pytest.mark.parametrize("tie_break", ["first", "even"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_oracle_01_law_is_what_enumeration_gives(rewards: np.ndarray, n: int, tie_break: str):
    law = best_of_n_probabilities(PROBS, rewards, n)
    assert law == pytest.approx(enumerated(rewards, n, tie_break), abs=1e-10)
    assert law.sum() == pytest.approx(1, abs=1e-12)


@ALL_REWARDS
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_oracle_01_theorem_1_is_the_difference_of_powers(rewards: np.ndarray, n: int):
    p_lt, p_le = reward_quantiles(PROBS, rewards)
    theorem = PROBS * p_le ** (n - 1) * sum((p_lt / p_le) ** i for i in range(n))
    powers = PROBS * (p_le**n - p_lt**n) / (p_le - p_lt)
    law = best_of_n_probabilities(PROBS, rewards, n)
    assert law == pytest.approx(theorem, abs=1e-10)
    assert law == pytest.approx(powers, abs=1e-10)
