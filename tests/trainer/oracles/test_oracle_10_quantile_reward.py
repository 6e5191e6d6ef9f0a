"""Oracle 10: the quantile reward from k samples, its mean, and the bias that k leaves."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from bond_core.best_of_n_law import r_bond
from bond_trainer.objectives.quantile_reward import (
    quantile_reward,
    quantile_reward_floor,
    quantile_reward_of,
    tied_quantile_reward,
)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("k", [1, 2, 4, 8, 32])
def test_oracle_10_mean_is_the_truncated_series_of_the_logarithm(p: float, k: int):
    counts = np.arange(k + 1)
    rewards = quantile_reward(torch.from_numpy(counts), k).numpy()
    mean = float(binom.pmf(counts, k, p) @ rewards)
    assert mean == pytest.approx(-sum((1 - p) ** j / j for j in range(1, k + 1)), abs=1e-10)


@pytest.mark.parametrize(("k", "mean"), [(2, -0.625), (4, -0.682292), (8, -0.692750)])
def test_oracle_10_mean_at_the_median(k: int, mean: float):
    counts = np.arange(k + 1)
    rewards = quantile_reward(torch.from_numpy(counts), k).numpy()
    assert float(binom.pmf(counts, k, 0.5) @ rewards) == pytest.approx(mean, abs=5.1e-7)


def test_oracle_10_harmonic_differences_are_finite():
    assert quantile_reward(torch.tensor([0, 1, 2]), 2).tolist() == [-1.5, -0.5, 0]
    assert float(quantile_reward(torch.tensor([0]), 16)) == pytest.approx(quantile_reward_floor(16))
    k = 10
    counts = torch.arange(k + 1)
    psi = torch.digamma(counts.double() + 1) - torch.digamma(torch.tensor(k + 1.0).double())
    torch.testing.assert_close(quantile_reward(counts, k), psi, rtol=0, atol=1e-12)


def stationary(k: int, n: int, estimate: Callable[[np.ndarray, int], np.ndarray]) -> float:
    """Mean quantile where the backward term rests if `estimate(m, k)` stands for log p_le."""
    nodes, weights = np.polynomial.legendre.leggauss(160)
    u, weights = (nodes + 1) / 2, weights / 2
    counts = np.arange(k + 1)
    mean_reward = binom.pmf(counts[None], k, u[:, None]) @ estimate(counts, k)
    density = np.exp((n - 1) * mean_reward)
    return float(weights @ (density * u) / (weights @ density))


def psi(counts: np.ndarray, k: int) -> np.ndarray:
    return quantile_reward(torch.from_numpy(counts), k).numpy()


@pytest.mark.parametrize(
    ("n", "k", "quantile"),
    [
        (2, 2, 0.6168),
        (2, 4, 0.6437),
        (2, 8, 0.6582),
        (2, 16, 0.664),
        (2, 32, 0.6659),
        (4, 2, 0.7714),
        (4, 4, 0.7933),
        (4, 8, 0.7989),
        (4, 16, 0.7999),
        (4, 32, 0.8),
        (8, 2, 0.8828),
        (8, 4, 0.8882),
        (8, 8, 0.8889),
        (8, 16, 0.8889),
        (8, 32, 0.8889),
        (16, 2, 0.9402),
        (16, 4, 0.9411),
        (16, 8, 0.9412),
        (16, 16, 0.9412),
        (16, 32, 0.9412),
    ],
)
def test_oracle_10_bias_of_continuous_scores(n: int, k: int, quantile: float):
    found = stationary(k, n, psi)
    assert found == pytest.approx(quantile, abs=6e-5)
    assert found <= n / (n + 1) + 1e-9  # the truncated series lies above the logarithm


def test_oracle_10_other_estimators_are_further_off():
    def half_floor(counts: np.ndarray, k: int) -> np.ndarray:
        return np.log(np.maximum(counts, 0.5) / k)

    def add_one(counts: np.ndarray, k: int) -> np.ndarray:
        return np.log((counts + 1) / (k + 1))

    assert stationary(16, 8, half_floor) == pytest.approx(0.8925, abs=6e-5)
    assert stationary(16, 8, add_one) == pytest.approx(0.8854, abs=6e-5)


def binary_accuracy(
    a: float, n: int, k: int, estimate: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """P(correct) where the backward term rests, for a reference that is right with chance a."""
    num_wrong = torch.arange(k + 1)
    chances = binom.pmf(num_wrong.numpy(), k, 1 - a)
    everything = torch.full_like(num_wrong, k)
    wrong = float(chances @ estimate(torch.zeros_like(num_wrong), num_wrong).numpy())
    right = float(chances @ estimate(num_wrong, everything).numpy())
    odds = a / (1 - a) * math.exp((n - 1) * (right - wrong))
    return odds / (1 + odds)


@pytest.mark.parametrize(
    ("k", "continuous", "tied"),
    [
        (2, 0.7048, 0.9087),
        (4, 0.7137, 0.9064),
        (8, 0.7141, 0.9034),
        (16, 0.7141, 0.9017),
        (32, 0.7141, 0.9008),
    ],
)
def test_oracle_10_binary_scores_need_the_tie_factor(k: int, continuous: float, tied: float):
    a, n = 0.25, 8
    exact = 1 - (1 - a) ** n
    assert exact == pytest.approx(0.9, abs=2e-4)
    without = binary_accuracy(a, n, k, lambda _, m: quantile_reward(m, k))
    assert without == pytest.approx(continuous, abs=6e-5)
    with_factor = binary_accuracy(a, n, k, lambda w, m: tied_quantile_reward(w, m, k, n))
    assert with_factor == pytest.approx(tied, abs=6e-5)
    assert abs(with_factor - exact) < 0.01


def test_oracle_10_factor_b_beside_the_plain_plug_in():
    """With p_le itself by its share the accuracy is further off at every k: .9084 at 16."""

    def plain(worse: Tensor, not_better: Tensor) -> Tensor:
        p_le = not_better.double().clamp(min=0.5) / 16
        ratio = worse.double() / 16 / p_le
        return p_le.log() + sum(ratio**i for i in range(8)).log() / 7

    assert binary_accuracy(0.25, 8, 16, plain) == pytest.approx(0.9084, abs=6e-5)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_oracle_10_many_samples_give_r_bond(n: int):
    """Counts in proportion to the reference's law reproduce its reward."""
    probs, rewards, k = np.array([0.4, 0.25, 0.2, 0.15]), np.array([1.0, 0.0, 1.0, 3.0]), 20_000
    reference = np.repeat(rewards, (probs * k).astype(int))
    found = quantile_reward_of(
        torch.from_numpy(rewards)[None], torch.from_numpy(reference)[None], n, "tied"
    )
    assert found[0].numpy() == pytest.approx(r_bond(probs, rewards, n), abs=2e-4)


def test_a_sample_is_rewarded_by_its_own_ties_alone():
    own, anchors = torch.tensor([[0.5], [9.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    tied = anchors.clone()
    tied[1, 1] = 3.0  # two anchors tie with each other, not with the sample
    for theirs in (anchors, tied):
        torch.testing.assert_close(
            quantile_reward_of(own, theirs, 4), quantile_reward_of(own, theirs, 4, "continuous")
        )
    # a sample that ties with one of the two anchors below or equal: B = 1 + 1/2 + 1/4 + 1/8
    found = quantile_reward_of(torch.tensor([[2.0], [9.0]]), anchors, 4)
    expected = (math.log(1.875) - math.log(4)) / 3
    torch.testing.assert_close(found, torch.tensor([[expected], [0.0]]).double())
    torch.testing.assert_close(
        quantile_reward_of(own, anchors, 4), torch.tensor([[-1.5], [0.0]]).double()
    )
    # a sample that beats all of k without a tie has B = n; one that is worse than all has B = 1
    torch.testing.assert_close(
        quantile_reward_of(own, anchors, 4, "tied"),
        torch.tensor([[-1.5], [math.log(4) / 3]]).double(),
    )


def test_an_atom_in_a_continuous_law_is_not_paid_for_tying():
    """Reward with an atom at quantiles .8 to .9, n = k = 8: the expected advantage of the atom over
    a sample at .79, times n - 1, against the exact one; a choice by the batch gave 1.40."""
    n = k = 8
    of_atom = 0.0
    for worse in range(k + 1):
        for equal in range(k + 1 - worse):
            above = k - worse - equal
            probability = math.comb(k, worse) * math.comb(k - worse, equal)
            probability *= 0.8**worse * 0.1**equal * 0.1**above
            anchors = torch.tensor([[0.0] * worse + [1.0] * equal + [2.0] * above])
            of_atom += probability * float(quantile_reward_of(torch.ones(1, 1), anchors, n))
    below = 0.0
    for worse in range(k + 1):
        probability = math.comb(k, worse) * 0.79**worse * 0.21 ** (k - worse)
        anchors = torch.tensor([[0.0] * worse + [2.0] * (k - worse)])
        below += probability * float(quantile_reward_of(torch.ones(1, 1), anchors, n))
    log_b = math.log(sum((0.8 / 0.9) ** i for i in range(n)))
    exact = (n - 1) * (math.log(0.9) - math.log(0.79)) + log_b - math.log(n)
    assert exact == pytest.approx(0.536, abs=1e-3)
    assert (n - 1) * (of_atom - below) == pytest.approx(exact, abs=0.05)


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="between 0 and 4, not 5 to 5"):
        quantile_reward(torch.tensor([5]), 4)
    with pytest.raises(ValueError, match="at least 1 reference sample"):
        quantile_reward(torch.tensor([0]), 0)
    with pytest.raises(ValueError, match="counts are swapped"):
        tied_quantile_reward(torch.tensor([3]), torch.tensor([2]), 4, 2)
    with pytest.raises(ValueError, match="n of at least 2"):
        tied_quantile_reward(torch.tensor([0]), torch.tensor([2]), 4, 1)
