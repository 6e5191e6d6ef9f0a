"""Oracle 25: BoNBoN's margin and the density of Best-of-Poisson."""

import math

import numpy as np
import pytest

from bond_core.tilt_frontier import best_of_poisson_density, bonbon_margin, tilt_kl, tilt_win_rate

NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)
U, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2


def test_oracle_25_margin_of_bonbon():
    assert bonbon_margin(1) == 0
    assert bonbon_margin(2) == 1
    assert bonbon_margin(8) == pytest.approx(18.15, abs=1e-12)
    # (n - 1) E[log U_max - log U_min] of n uniforms is what it stands for
    n = 5
    log_max, log_min = -1 / n, -sum(1 / i for i in range(1, n + 1))
    assert bonbon_margin(n) == pytest.approx((n - 1) * (log_max - log_min), abs=1e-12)


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0, 7.0, 30.0])
def test_oracle_25_density_of_best_of_poisson(mu: float):
    density = best_of_poisson_density(U, mu)
    assert float(WEIGHTS @ density) == pytest.approx(1, abs=1e-10)
    mixture = sum(math.exp(-mu) * mu**i / math.factorial(i) * (i + 1) * U**i for i in range(120))
    assert density == pytest.approx(mixture, rel=1e-9)


@pytest.mark.parametrize("mu", [0.5, 2.0, 8.0])
def test_best_of_poisson_is_close_to_the_frontier(mu: float):
    density = best_of_poisson_density(U, mu)
    mean_u = float(WEIGHTS @ (density * U))
    kl = float(WEIGHTS @ (density * np.log(density)))
    low, high = 0.0, 1e3
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if tilt_win_rate(c) < mean_u else (low, c)
    assert 0 <= kl - tilt_kl(low) < 8e-4


def test_what_is_not_a_number_of_draws_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        bonbon_margin(0)
    with pytest.raises(ValueError, match="at least 0"):
        best_of_poisson_density(0.5, -1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        best_of_poisson_density([0.5, 1.5], 1)
