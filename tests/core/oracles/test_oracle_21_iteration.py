"""Oracles 20, 21 and 24: J-BOND with hard anchor updates, solved exactly on a fine grid."""

import numpy as np
import pytest

from bond_core.best_of_n_law import kl_best_of_n_bound
from bond_core.jbond_recursion import minimising_law, next_anchor

NUM_ATOMS = 8000
REFERENCE, REWARDS = np.full(NUM_ATOMS, 1 / NUM_ATOMS), np.arange(NUM_ATOMS)
U = (np.arange(NUM_ATOMS) + 0.5) / NUM_ATOMS


def quantile_and_kl(law: np.ndarray) -> tuple[float, float]:
    return float(law @ U), float(law @ np.log(law * NUM_ATOMS))


TABLE = {
    (0.0, 0.0): [(0.6667, 0.1931), (0.8, 0.6363), (0.8889, 1.2044), (0.9412, 1.8351)],
    (0.5, 0.0): [(0.6718, 0.2007), (0.8065, 0.6648), (0.8937, 1.2488), (0.9438, 1.8827)],
    (1.0, 0.0): [(0.6763, 0.2092), (0.8116, 0.6909), (0.8970, 1.2856), (0.9453, 1.9187)],
    (0.5, 0.5): [(0.6247, 0.1028), (0.7347, 0.3671), (0.8215, 0.7335), (0.8842, 1.1590)],
    (0.5, 1.0): [(0.5960, 0.0596), (0.6852, 0.2217), (0.7626, 0.4609), (0.8259, 0.7541)],
}


@pytest.mark.parametrize(("beta", "gamma"), TABLE)
def test_oracle_21_iteration_table(beta: float, gamma: float):
    law = REFERENCE
    for quantile, kl in TABLE[beta, gamma]:
        law = next_anchor(law, REWARDS, beta=beta, gamma=gamma)
        found = quantile_and_kl(law)
        assert found[0] == pytest.approx(quantile, abs=1.5e-4)
        assert found[1] == pytest.approx(kl, abs=1e-3)


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 0.0), (0.5, 0.5), (0.5, 1.0)])
def test_oracle_21_exact_backward_multiplies_n(beta: float, gamma: float):
    """The backward term with r_bond itself takes N to N (1 + beta / (beta + gamma))."""
    n, law = 1.0, U**0 / NUM_ATOMS
    for _ in range(4):
        best_of_2 = U ** (2 * n - 1)
        law = minimising_law(REFERENCE, best_of_2, law, forward=0, backward=beta, regulariser=gamma)
        n *= 1 + beta / (beta + gamma)
        expected = U ** (n - 1)
        assert law == pytest.approx(expected / expected.sum(), abs=1e-10)


def test_oracle_20_fixed_anchor_on_a_fine_grid():
    forward = quantile_and_kl(next_anchor(REFERENCE, REWARDS, beta=0, gamma=0))
    assert forward == pytest.approx((2 / 3, kl_best_of_n_bound(2)), abs=1e-4)
    backward = quantile_and_kl(next_anchor(REFERENCE, REWARDS, beta=1, gamma=0))
    assert backward == pytest.approx((0.6763, 0.2092), abs=1.5e-4)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_oracle_24_m_rounds_are_about_best_of_2_to_the_m(beta: float):
    """Exact at beta = 0; with r_J's two-sample stand-in .3 to 1.5 % higher in mean quantile."""
    law = REFERENCE
    for rounds in range(1, 5):
        law = next_anchor(law, REWARDS, beta=beta, gamma=0)
        n = 2**rounds
        quantile, kl = quantile_and_kl(law)
        excess = quantile / (n / (n + 1)) - 1
        if beta == 0:
            assert excess == pytest.approx(0, abs=1e-4)
            assert kl == pytest.approx(kl_best_of_n_bound(n), abs=1e-3)
        else:
            assert 0.0025 < excess < 0.015
            assert 0 < kl - kl_best_of_n_bound(n) < 0.1
