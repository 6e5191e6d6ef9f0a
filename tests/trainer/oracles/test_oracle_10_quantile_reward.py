"""Oracle 10: the quantile reward from k samples, its mean, and what it does with ties."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from bond_core.best_of_n_law import kl_best_of_n_bound, r_bond
from bond_trainer.objectives.quantile_reward import (
    continuous_quantile_reward,
    quantile_reward,
    tied_quantile_reward,
)


@pytest.mark.parametrize("k", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_oracle_10_mean_is_the_series_of_the_logarithm_cut_after_k(k: int, p: float):
    m = torch.arange(k + 1)
    weights = binom.pmf(m.numpy(), k, p)
    mean = float((torch.from_numpy(weights) * continuous_quantile_reward(m, k)).sum())
    assert mean == pytest.approx(-sum((1 - p) ** j / j for j in range(1, k + 1)), abs=1e-12)


def test_oracle_10_values():
    assert continuous_quantile_reward(torch.arange(3), 2).tolist() == pytest.approx([-1.5, -0.5, 0])
    means = {k: sum(-(0.5**j) / j for j in range(1, k + 1)) for k in (2, 4, 8)}
    assert means == pytest.approx({2: -0.625, 4: -0.682292, 8: -0.692750}, abs=1e-6)
    assert torch.isfinite(continuous_quantile_reward(torch.tensor([0]), 4)).all()


def stationary(mean_reward: np.ndarray, n: int) -> tuple[float, float]:
    """Mean quantile and KL of the law ~ exp((n - 1) * reward) over uniform quantiles."""
    u = (np.arange(len(mean_reward)) + 0.5) / len(mean_reward)
    weights = np.exp((n - 1) * mean_reward)
    law = weights / weights.sum()
    return float((law * u).sum()), float((law * np.log(law * len(law))).sum())


BIAS = {
    (2, 16): (0.6640, 0.1825),
    (4, 16): (0.7999, 0.6353),
    (8, 2): (0.8828, 1.1466),
    (8, 4): (0.8882, 1.1974),
    (8, 8): (0.8889, 1.2040),
    (8, 16): (0.8889, 1.2044),
    (16, 16): (0.9412, 1.8351),
}
"""(N, k): where the backward term alone rests, for a continuous reward; docs/bond.md has it."""


@pytest.mark.parametrize(("n", "k"), BIAS, ids=str)
def test_oracle_10_bias_at_finite_k(n: int, k: int):
    u = (np.arange(200_000) + 0.5) / 200_000
    mean = -sum((1 - u) ** j / j for j in range(1, k + 1))
    quantile, kl = stationary(mean, n)
    assert quantile == pytest.approx(BIAS[n, k][0], abs=1e-4)
    assert kl == pytest.approx(BIAS[n, k][1], abs=2e-4)
    if k >= n:
        assert quantile == pytest.approx(n / (n + 1), abs=3e-3)
        assert kl == pytest.approx(kl_best_of_n_bound(n), abs=0.011)


def test_oracle_10_binary_reward_needs_the_plug_in():
    """Accuracy 1/4, N = 8: Best-of-8 is right with 1 - (3/4)^8 = .900; without B, .714."""
    n, k, accuracy = 8, 16, 0.25
    right = np.arange(k + 1)
    chance = binom.pmf(right, k, accuracy)
    wrong_samples = torch.from_numpy(k - right)
    found = {}
    for ties in ("continuous", "tied"):
        if ties == "tied":
            of_wrong = tied_quantile_reward(
                torch.zeros(k + 1, dtype=torch.long), wrong_samples, k, n
            )
            of_right = tied_quantile_reward(wrong_samples, torch.full((k + 1,), k), k, n)
        else:
            of_wrong = continuous_quantile_reward(wrong_samples, k)
            of_right = continuous_quantile_reward(torch.full((k + 1,), k), k)
        odds = (
            accuracy
            / (1 - accuracy)
            * math.exp((n - 1) * float((torch.from_numpy(chance) * (of_right - of_wrong)).sum()))
        )
        found[ties] = odds / (1 + odds)
    assert found["continuous"] == pytest.approx(0.714, abs=0.01)
    assert found["tied"] == pytest.approx(0.900, abs=0.02)


def test_oracle_10_the_plug_in_tends_to_r_bond():
    """With many samples of a tied law, and the constant log(N) / (N - 1) put back."""
    law, rewards, n, k = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0]), 4, 200_000
    counts = (law * k).round().astype(int)
    worse = torch.from_numpy(np.concatenate([[0], counts.cumsum()[:-1]]))
    found = tied_quantile_reward(worse, torch.from_numpy(counts.cumsum()), k, n)
    expected = r_bond(law, rewards, n) - math.log(n) / (n - 1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_oracle_10_ties_decide_the_estimator_prompt_by_prompt():
    anchors = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 1.0]])
    policy = torch.tensor([[1.5], [1.0]])
    psi, plug_in = (quantile_reward(policy, anchors, 2, ties) for ties in ("continuous", "tied"))
    mixed = quantile_reward(policy, anchors, 2, "auto")
    assert mixed.flatten().tolist() == [float(psi[0]), float(plug_in[1])]
    assert float(psi[0]) == pytest.approx(1 + 1 / 2 - (1 + 1 / 2 + 1 / 3))
    # worse 1 of 3, not better 3 of 3, the sample itself counted: p_lt 1/4, p_le 1, B = 1 + 1/4
    assert float(plug_in[1]) == pytest.approx(math.log(1.25) - math.log(2))
