"""Oracle 26: the over-optimisation curves are recovered from points on them, and their peaks."""

import math

import numpy as np
import pytest

from bond_core.best_of_n_law import kl_best_of_n_bound
from bond_core.over_optimisation import (
    RewardCurve,
    best_of_n_peak,
    fit_best_of_n_curve,
    fit_rl_curve,
    n_of_distance,
    rl_peak,
)

D = np.array([0.3, 0.8, 1.1, 1.9, 2.7])


@pytest.mark.parametrize(("alpha", "beta"), [(0.49, 0.12), (1.3, 0.4), (0.2, -0.1)])
def test_oracle_26_best_of_n_curve_is_recovered(alpha: float, beta: float):
    curve = fit_best_of_n_curve(D, D * (alpha - beta * D))
    assert (curve.alpha, curve.beta) == pytest.approx((alpha, beta), abs=1e-10)


@pytest.mark.parametrize(("alpha", "beta"), [(0.384, 0.175), (1.0, 0.3)])
def test_oracle_26_rl_curve_is_recovered(alpha: float, beta: float):
    curve = fit_rl_curve(D, D * (alpha - beta * np.log(D)))
    assert (curve.alpha, curve.beta) == pytest.approx((alpha, beta), abs=1e-10)


def test_oracle_26_peaks_are_the_highest_points():
    d = np.linspace(1e-3, 12, 200_000)
    best_of_n, rl = RewardCurve(0.4908, 0.1198), RewardCurve(0.384, 0.175)
    top = d[np.argmax(d * (best_of_n.alpha - best_of_n.beta * d))]
    assert best_of_n_peak(best_of_n) == pytest.approx(top, abs=1e-4)
    assert best_of_n_peak(best_of_n) == pytest.approx(2.05, abs=0.01)
    top = d[np.argmax(d * (rl.alpha - rl.beta * np.log(d)))]
    assert rl_peak(rl) == pytest.approx(top, abs=1e-4)
    assert best_of_n_peak(RewardCurve(0.4, -0.1)) is None
    assert best_of_n_peak(RewardCurve(-0.4, 0.1)) == 0
    assert rl_peak(RewardCurve(0.4, 0.0)) is None


def test_oracle_26_n_of_a_distance():
    for n in (2, 8, 64, 1000):
        assert n_of_distance(math.sqrt(kl_best_of_n_bound(n))) == pytest.approx(n, rel=1e-9)
    assert n_of_distance(0) == 1
    assert n_of_distance(10) is None
    assert n_of_distance(2.05) == pytest.approx(math.exp(4.2 + 1), rel=0.02)


def test_oracle_26_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="two distances"):
        fit_best_of_n_curve([1.0], [1.0])
    with pytest.raises(ValueError, match="leave the reference"):
        fit_best_of_n_curve([0.0, 1.0], [0.0, 1.0])
