"""Oracle 12: the weights of the k samples reproduce expectations under Best-of-n."""

import itertools

import numpy as np
import pytest

from bond_core.best_of_n_law import best_of_n_probabilities
from bond_core.statistics import (
    best_of_n_weights,
)


@pytest.mark.parametrize(("k", "n"), [(2, 2), (4, 2), (5, 3)])
def test_oracle_12_weights_reproduce_best_of_n(k: int, n: int):
    probs, rewards = np.array([0.4, 0.25, 0.2, 0.15]), np.array([1.0, 0.0, 1.0, 3.0])
    values = np.array([2.0, -1.0, 5.0, 0.3])
    expectation = 0.0
    for draws in itertools.product(range(4), repeat=k):
        weights = best_of_n_weights(rewards[list(draws)], n)
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        expectation += float(np.prod(probs[list(draws)]) * (weights @ values[list(draws)]))
    exact = best_of_n_probabilities(probs, rewards, n) @ values
    assert expectation == pytest.approx(exact, abs=1e-10)
