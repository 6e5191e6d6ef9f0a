"""Oracle 2: three completions by hand."""

import math

import pytest

from bond_core.best_of_n_law import (
    best_of_n_kl,
    best_of_n_probabilities,
    r_bond,
)


def test_oracle_02_three_completions_by_hand():
    probs, rewards = [0.5, 0.3, 0.2], [0, 1, 2]
    law = best_of_n_probabilities(probs, rewards, 2)
    assert law == pytest.approx([0.25, 0.39, 0.36], abs=1e-10)
    by_hand = 0.25 * math.log(0.5) + 0.39 * math.log(1.3) + 0.36 * math.log(1.8)
    assert best_of_n_kl(probs, rewards, 2) == pytest.approx(by_hand, abs=1e-10)
    assert best_of_n_kl(probs, rewards, 2) == pytest.approx(0.140638, abs=5e-7)
    assert r_bond(probs, rewards, 2) == pytest.approx(
        [math.log(0.5), math.log(1.3), math.log(1.8)], abs=1e-10
    )
    assert r_bond(probs, rewards, 2) == pytest.approx([-0.693147, 0.262364, 0.587787], abs=5e-7)
