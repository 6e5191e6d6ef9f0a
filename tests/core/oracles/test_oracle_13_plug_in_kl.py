"""Oracle 13: the plug-in estimate of the KL lies between 0 and the bound."""

import math

import pytest

from bond_core.best_of_n_law import (
    kl_best_of_n_bound,
    kl_best_of_n_plug_in,
)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_oracle_13_plug_in_kl_is_between_zero_and_the_bound(n: int):
    bound = kl_best_of_n_bound(n)
    for probability in (1e-12, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-12):
        assert -1e-12 <= kl_best_of_n_plug_in(math.log(probability), n) <= bound + 1e-12
    assert kl_best_of_n_plug_in(0.0, n) == 0
    assert kl_best_of_n_plug_in(-30.0, n) == pytest.approx(bound, abs=1e-9)
    assert kl_best_of_n_plug_in(-2000.0, n) == bound  # the probability underflows
    assert kl_best_of_n_plug_in(-1.0, 1) == 0


def test_oracle_13_plug_in_kl_by_hand():
    missed = 0.8**3
    expected = missed * (math.log(3) + 2 * math.log(0.8) - 2 / 3) + (1 - missed) * math.log(
        (1 - missed) / 0.2
    )
    assert kl_best_of_n_plug_in(math.log(0.2), 3) == pytest.approx(expected, abs=1e-12)
