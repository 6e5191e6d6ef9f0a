"""Oracle 6: KL(Best-of-N || reference) by levels, below its bound, growing with N."""

import math

import numpy as np
import pytest
from small_law import ALL_REWARDS, PROBS

from bond_core.best_of_n_law import (
    best_of_n_kl,
    kl_best_of_n_bound,
)


@ALL_REWARDS
def test_oracle_06_kl_by_levels_below_the_bound_and_growing(rewards: np.ndarray):
    levels = sorted(set(rewards.tolist()))
    cumulative = np.array([0.0, *(PROBS[rewards <= level].sum() for level in levels)])
    previous = -1e-12
    for n in range(1, 20):
        mass = np.diff(cumulative**n)
        by_level = float((mass * np.log(mass / np.diff(cumulative))).sum())
        kl = best_of_n_kl(PROBS, rewards, n)
        assert kl == pytest.approx(by_level, abs=1e-10)
        assert previous <= kl + 1e-12 <= kl_best_of_n_bound(n) + 2e-12
        previous = kl


@pytest.mark.parametrize(
    ("num_atoms", "n", "kl"),
    [
        (2, 2, 0.130812),
        (10, 2, 0.189318),
        (100, 2, 0.193090),
        (1000, 2, 0.193146),
        (2, 16, 0.692963),
        (10, 16, 1.733063),
        (100, 16, 1.834018),
        (1000, 16, 1.835078),
    ],
)
def test_oracle_06_uniform_reference(num_atoms: int, n: int, kl: float):
    uniform = np.full(num_atoms, 1 / num_atoms)
    assert best_of_n_kl(uniform, np.arange(num_atoms), n) == pytest.approx(kl, abs=6e-7)


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_oracle_06_fair_binary_reward(n: int):
    wrong = 0.5**n
    entropy = -wrong * math.log(wrong) - (1 - wrong) * math.log1p(-wrong)
    expected = math.log(2) - entropy
    assert best_of_n_kl([0.5, 0.5], [0, 1], n) == pytest.approx(expected, abs=1e-10)
