"""Choosing N: known curves are found again, and the reasons are true."""

import numpy as np
import pytest

from bond_core.choosing_n import FIT_POINTS, choose_n
from bond_core.statistics import best_of_n_reward


def samples(prompts: int = 300, k: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A uniform proxy, and a gold that rises to u = .8 and falls beyond: E[gold] is known."""
    rng = np.random.default_rng(seed)
    proxy = rng.random((prompts, k))
    gold = -((proxy - 0.8) ** 2) + rng.normal(0, 0.05, proxy.shape)
    return proxy, gold


def gold_of(n: int) -> float:
    """E[-(u - .8)^2] for u the largest of n: moments n / (n + 1) and n / (n + 2)."""
    return -(n / (n + 2) - 1.6 * n / (n + 1) + 0.64)


def test_the_curve_and_its_peak():
    proxy, gold = samples()
    choice = choose_n(proxy, {"gold": gold}, tokens_per_answer=10)
    assert choice.points == (1, *(n for n in FIT_POINTS if n <= 32))
    for i, n in enumerate(choice.points):
        assert choice.means["gold"][i] == pytest.approx(gold_of(n), abs=0.01)
        assert choice.means["proxy"][i] == pytest.approx(n / (n + 1), abs=0.01)
        assert choice.tokens[i] == 10 * n
    true_peak = max(choice.points, key=gold_of)
    peak = choice.peaks["gold"]
    assert true_peak == 8
    assert peak.interval[0] <= true_peak <= peak.interval[1]
    assert not peak.at_the_end
    assert choice.peaks["proxy"].at_the_end
    assert choice.decided_by == "gold"
    assert choice.recommended in (4, 6, 8)


def test_the_budget_limits_what_is_recommended():
    proxy, _ = samples()
    free = choose_n(proxy, {}, tokens_per_answer=10)
    assert free.decided_by == "proxy"
    assert free.recommended == 32
    assert "significantly better than every smaller n" in free.reason
    tight = choose_n(proxy, {}, tokens_per_answer=10, budget_tokens=85)
    assert tight.recommended == 8
    assert "within 85 tokens" in tight.reason
    with pytest.raises(ValueError, match="less than one answer's mean of 10"):
        choose_n(proxy, {}, tokens_per_answer=10, budget_tokens=5)


def test_no_gain_recommends_a_single_sample():
    proxy, _ = samples()
    noise = np.random.default_rng(3).normal(size=proxy.shape)
    choice = choose_n(proxy, {"judge": noise}, tokens_per_answer=1)
    assert choice.recommended == 1
    assert "not significantly below the best" in choice.reason


def test_estimates_are_the_unbiased_ones_and_repeat():
    proxy, gold = samples(prompts=20, k=16)
    choice, again = (choose_n(proxy, {"gold": gold}, 1.0) for _ in range(2))
    assert choice == again
    at = choice.points.index(6)
    assert choice.means["gold"][at] == pytest.approx(best_of_n_reward(proxy, 6, gold).mean())


def test_a_fit_that_disagrees_is_said_to():
    """A reward that jumps at n = 2 and is flat beyond is no parabola in d."""
    proxy, _ = samples()
    flat = np.minimum(proxy, 0.7) - 0.3 * np.maximum(proxy - 0.97, 0) / 0.03
    peak = choose_n(proxy, {"gold": flat}, 1.0).peaks["gold"]
    inside = peak.fitted_n is not None and peak.interval[0] <= peak.fitted_n <= peak.interval[1]
    assert peak.disagree == (not inside)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 8 samples"):
        choose_n(np.zeros((5, 4)), {}, 1.0)
