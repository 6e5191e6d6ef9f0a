"""Oracle 8: no policy wins more at its KL than the tilt, and Best-of-N hardly less."""

import math

import numpy as np
import pytest

from bond_core.best_of_n_law import kl_best_of_n_bound
from bond_core.tilt_frontier import best_win_rate, tilt_kl, tilt_of_kl, tilt_win_rate


@pytest.mark.parametrize(
    ("n", "gap"), [(2, 0.00924), (4, 0.00400), (8, 0.00079), (16, 0.00011), (64, 0.0)]
)
def test_oracle_08_gap_of_best_of_n(n: int, gap: float):
    found = best_win_rate(kl_best_of_n_bound(n)) - n / (n + 1)
    assert found >= 0
    assert found == pytest.approx(gap, abs=5e-6)


@pytest.mark.parametrize(
    ("c", "kl", "win_rate"),
    [(1, 0.040652, 0.581977), (3, 0.306869, 0.719062), (8, 1.082462, 0.875336)],
)
def test_oracle_08_published_values(c: float, kl: float, win_rate: float):
    assert tilt_kl(c) == pytest.approx(kl, abs=5.1e-7)
    assert tilt_win_rate(c) == pytest.approx(win_rate, abs=5.1e-7)


@pytest.mark.parametrize("c", [1e-6, 0.01, 0.0499999, 0.05, 0.3, 3.0, 40.0])
def test_oracle_08_closed_forms_against_quadrature(c: float):
    nodes, weights = np.polynomial.legendre.leggauss(60)
    u, weights = (nodes + 1) / 2, weights / 2
    density = np.exp(c * (u - 1))
    density /= weights @ density
    assert tilt_win_rate(c) == pytest.approx(float(weights @ (density * u)), abs=1e-10)
    kl = float(weights @ (density * np.log(density)))
    assert tilt_kl(c) == pytest.approx(kl, abs=1e-10)


def test_oracle_08_series_is_accurate_below_its_threshold():
    for c in (1e-8, 1e-3, 0.05 - 1e-12):
        assert tilt_kl(c) == pytest.approx(c**2 / 24 * (1 - c**2 / 40 + c**4 / 1512), rel=1e-9)
    below, above = 0.05 - 1e-9, 0.05
    assert tilt_kl(below) == pytest.approx(tilt_kl(above), abs=1e-11)
    assert tilt_win_rate(below) == pytest.approx(tilt_win_rate(above), abs=1e-9)


@pytest.mark.parametrize("kl", [0.0, 1e-9, 0.02, 0.5, 3.0, 40.0, 700.0])
def test_solving_for_a_kl(kl: float):
    assert tilt_kl(tilt_of_kl(kl)) == pytest.approx(kl, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("bad", [-0.1, math.nan, 701.0])
def test_what_has_no_tilt_is_refused(bad: float):
    with pytest.raises(ValueError, match="between 0 and 700"):
        tilt_of_kl(bad)
    with pytest.raises(ValueError, match="at least 0"):
        tilt_kl(-1)
    with pytest.raises(ValueError, match="at least 0"):
        tilt_win_rate(math.nan)
