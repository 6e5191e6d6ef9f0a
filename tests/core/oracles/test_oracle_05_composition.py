"""Oracle 5: Best-of-a of Best-of-b is Best-of-ab, exactly, ties included."""

import numpy as np
import pytest
from small_law import ALL_REWARDS, PROBS

from bond_core.best_of_n_law import (
    best_of_n_probabilities,
)


@ALL_REWARDS
@pytest.mark.parametrize(("a", "b"), [(2, 2), (2, 3), (3, 2), (4, 8)])
def test_oracle_05_best_of_a_of_best_of_b_is_best_of_ab(rewards: np.ndarray, a: int, b: int):
    composed = best_of_n_probabilities(best_of_n_probabilities(PROBS, rewards, b), rewards, a)
    assert composed == pytest.approx(best_of_n_probabilities(PROBS, rewards, a * b), abs=1e-10)


@ALL_REWARDS
def test_oracle_05_iterated_best_of_2(rewards: np.ndarray):
    law = PROBS
    for iteration in range(1, 6):
        law = best_of_n_probabilities(law, rewards, 2)
        direct = best_of_n_probabilities(PROBS, rewards, 2**iteration)
        assert law == pytest.approx(direct, abs=1e-10)
