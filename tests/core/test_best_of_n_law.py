"""The exact Best-of-N law against enumeration and against published and hand-made figures."""

import math

import numpy as np
import pytest

from bond_core.best_of_n_law import (
    best_of_n_probabilities,
    effective_n_from_kl,
    effective_n_from_quantile,
    kl_best_of_n_bound,
    log_factors,
    r_bond,
)


def test_bound_table():
    table = {2: 0.193147, 4: 0.636294, 8: 1.204442, 16: 1.835089, 1024: 5.932448, 60000: 10.002117}
    for n, bound in table.items():
        assert kl_best_of_n_bound(n) == pytest.approx(bound, abs=5e-7)
    assert kl_best_of_n_bound(1) == 0


@pytest.mark.parametrize("n", [1.0, 1.001, 2.0, 3.7, 8.0, 1e3, 1e9])
def test_effective_n_inverts_bound_and_mean_quantile(n: float):
    assert effective_n_from_kl(kl_best_of_n_bound(n)) == pytest.approx(n, rel=1e-9)
    assert effective_n_from_quantile(n / (n + 1)) == pytest.approx(n, rel=1e-6)


def test_effective_n_at_the_ends():
    assert effective_n_from_kl(-0.01) == 1  # an unbiased estimate may fall below zero
    assert effective_n_from_kl(1e4) == math.inf
    assert effective_n_from_quantile(1.0) == math.inf
    assert effective_n_from_quantile(0.0) == 0
    with pytest.raises(ValueError, match="not a number"):
        effective_n_from_kl(math.nan)
    with pytest.raises(ValueError, match="between 0 and 1"):
        effective_n_from_quantile(1.2)


def test_tiny_and_impossible_completions_keep_their_precision():
    probs = np.array([1e-300, 1 - 1e-12, 1e-12, 0.0])
    factors = log_factors(probs, [0, 1, 2, 3], 16)
    assert factors.log_b[2] == pytest.approx(math.log(16), abs=1e-10)
    law = best_of_n_probabilities(probs, [0, 1, 2, 3], 16)
    assert law[0] == 0  # underflows, without a warning
    assert law[2] == pytest.approx(16e-12, rel=1e-9)
    assert law[3] == 0
    assert best_of_n_probabilities([0.0, 1.0], [0, 1], 4).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("probs", "rewards", "match"),
    [
        ([0.5, 0.4], [0, 1], "sum to 1"),
        ([1.5, -0.5], [0, 1], "sum to 1"),
        ([0.5, 0.5], [0, math.nan], "reward 1 is not a finite number"),
        ([0.5, 0.5], [0], "one length"),
    ],
)
def test_what_is_not_a_law_is_refused(probs: list[float], rewards: list[float], match: str):
    with pytest.raises(ValueError, match=match):
        best_of_n_probabilities(probs, rewards, 2)


def test_n_is_checked():
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n_probabilities([1.0], [0], 0)
    with pytest.raises(ValueError, match="Best-of-1 is the reference"):
        r_bond([1.0], [0], 1)
