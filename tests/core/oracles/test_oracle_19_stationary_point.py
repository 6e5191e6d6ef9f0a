"""Oracle 19: at the Lambert-W law the objective's derivative is the same everywhere."""

import numpy as np
import pytest
from small_law import PROBS, STRICT, TIED

from bond_core.best_of_n_law import best_of_n_probabilities
from bond_core.jbond_recursion import minimising_law, next_anchor, penalty_target


@pytest.mark.parametrize("rewards", [STRICT, TIED], ids=["strict", "tied"])
@pytest.mark.parametrize(
    ("beta", "gamma"), [(0.0, 0.6), (0.5, 0.0), (0.5, 1.0), (0.05, 0.0), (1.0, 0.4)]
)
def test_oracle_19_stationary(rewards: np.ndarray, beta: float, gamma: float):
    forward, backward = best_of_n_probabilities(PROBS, rewards, 2), penalty_target(PROBS, rewards)
    pi = next_anchor(PROBS, rewards, beta=beta, gamma=gamma)
    assert pi.sum() == pytest.approx(1, abs=1e-12)
    derivative = (
        -(1 - beta) * forward / pi
        + beta * (np.log(pi / backward) + 1)
        + gamma * (np.log(pi / PROBS) + 1)
    )
    assert derivative == pytest.approx(derivative[0], abs=1e-10)


def test_oracle_19_forward_alone_is_its_target():
    assert next_anchor(PROBS, TIED, beta=0, gamma=0) == pytest.approx(
        best_of_n_probabilities(PROBS, TIED, 2), abs=1e-12
    )


def test_what_has_no_minimum_is_refused():
    with pytest.raises(ValueError, match="positive everywhere"):
        minimising_law([1.0, 0.0], [0.5, 0.5], [0.5, 0.5], forward=1, backward=0, regulariser=0)
    with pytest.raises(ValueError, match="one of them is above"):
        minimising_law([0.5, 0.5], [0.5, 0.5], [0.5, 0.5], forward=0, backward=0, regulariser=0)
