"""Oracle 4: reference * exp((N - 1) r_bond) is Best-of-N without a normaliser."""

import numpy as np
import pytest
from small_law import ALL_REWARDS, PROBS

from bond_core.best_of_n_law import (
    best_of_n_probabilities,
    r_bond,
)


@ALL_REWARDS
@pytest.mark.parametrize("n", [2, 3, 16])
def test_oracle_04_reward_tilts_the_reference_without_normaliser(rewards: np.ndarray, n: int):
    tilted = PROBS * np.exp((n - 1) * r_bond(PROBS, rewards, n))
    assert tilted == pytest.approx(best_of_n_probabilities(PROBS, rewards, n), abs=1e-10)
