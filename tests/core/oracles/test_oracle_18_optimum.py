"""Oracle 18: every beta has the optimum Best-of-N where all laws are allowed, and only there."""

import numpy as np
import pytest

from bond_core.best_of_n_law import best_of_n_probabilities
from bond_core.jbond_recursion import minimising_law


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_oracle_18_complete_family(beta: float):
    reference = np.array([0.5, 0.3, 0.2])
    law = best_of_n_probabilities(reference, [0, 1, 2], 2)
    found = minimising_law(law, law, reference, forward=1 - beta, backward=beta, regulariser=0)
    assert found == pytest.approx(law, abs=1e-10)


@pytest.mark.parametrize(("beta", "optimum"), [(0.0, 0.36), (1.0, 0.36567)])
def test_oracle_18_restricted_family(beta: float, optimum: float):
    target = np.array([0.25, 0.39, 0.36])
    t = np.linspace(0.3, 0.42, 120_001)
    pi = np.stack([(1 - t) / 2, (1 - t) / 2, t], axis=1)
    forward = (target * np.log(target / pi)).sum(axis=1)
    backward = (pi * np.log(pi / target)).sum(axis=1)
    best = t[np.argmin((1 - beta) * forward + beta * backward)]
    assert best == pytest.approx(optimum, abs=5e-6)
