"""The exact Best-of-N law against enumeration and against published and hand-made figures."""

import itertools
import math

import numpy as np
import pytest

from bond_core.best_of_n_law import (
    best_of_n_kl,
    best_of_n_probabilities,
    best_of_n_win_rate,
    effective_n_from_kl,
    effective_n_from_quantile,
    kl_best_of_n_bound,
    kl_best_of_n_plug_in,
    log_factors,
    r_bond,
    reward_quantiles,
)

PROBS = np.array([0.31, 0.07, 0.22, 0.15, 0.2, 0.05])
STRICT = np.array([0.3, -1.0, 2.0, 0.1, 0.9, 5.0])
TIED = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 2.0])
BINARY = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
ALL_REWARDS = pytest.mark.parametrize(
    "rewards", [STRICT, TIED, BINARY, np.zeros(6)], ids=["strict", "tied", "binary", "constant"]
)


def enumerated(rewards: np.ndarray, n: int, tie_break: str) -> np.ndarray:
    """The law of the best of n draws, from every n-tuple of draws."""
    law = np.zeros(len(PROBS))
    for draws in itertools.product(range(len(PROBS)), repeat=n):
        probability = math.prod(PROBS[i] for i in draws)
        best = max(rewards[i] for i in draws)
        winners = [i for i in draws if rewards[i] == best]
        if tie_break == "first":
            law[winners[0]] += probability
        else:
            for winner in winners:
                law[winner] += probability / len(winners)
    return law


@ALL_REWARDS
@pytest.mark.parametrize("tie_break", ["first", "even"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_oracle_01_law_is_what_enumeration_gives(rewards: np.ndarray, n: int, tie_break: str):
    law = best_of_n_probabilities(PROBS, rewards, n)
    assert law == pytest.approx(enumerated(rewards, n, tie_break), abs=1e-10)
    assert law.sum() == pytest.approx(1, abs=1e-12)


@ALL_REWARDS
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_oracle_01_theorem_1_is_the_difference_of_powers(rewards: np.ndarray, n: int):
    p_lt, p_le = reward_quantiles(PROBS, rewards)
    theorem = PROBS * p_le ** (n - 1) * sum((p_lt / p_le) ** i for i in range(n))
    powers = PROBS * (p_le**n - p_lt**n) / (p_le - p_lt)
    law = best_of_n_probabilities(PROBS, rewards, n)
    assert law == pytest.approx(theorem, abs=1e-10)
    assert law == pytest.approx(powers, abs=1e-10)


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


@ALL_REWARDS
def test_oracle_03_special_cases(rewards: np.ndarray):
    assert best_of_n_probabilities(PROBS, rewards, 1) == pytest.approx(PROBS, abs=1e-15)
    factors = log_factors(PROBS, rewards, 7)
    assert (np.exp(factors.log_b) >= 1 - 1e-12).all()
    assert (np.exp(factors.log_b) <= 7 + 1e-12).all()
    law = best_of_n_probabilities(PROBS, rewards, 7)
    assert (best_of_n_probabilities(PROBS, np.exp(rewards), 7) == law).all()
    assert (best_of_n_probabilities(PROBS, 3 * rewards + 1, 7) == law).all()
    # the worst of n is the best by the opposite reward
    worst = best_of_n_probabilities(PROBS, -rewards, 3)
    p_lt, p_le = reward_quantiles(PROBS, rewards)
    expected = PROBS * ((1 - p_lt) ** 3 - (1 - p_le) ** 3) / (p_le - p_lt)
    assert worst == pytest.approx(expected, abs=1e-10)


def test_oracle_03_worst_completion_must_be_drawn_n_times():
    assert best_of_n_probabilities(PROBS, STRICT, 4)[1] == pytest.approx(0.07**4, abs=1e-12)


@ALL_REWARDS
@pytest.mark.parametrize("n", [2, 3, 16])
def test_oracle_04_reward_tilts_the_reference_without_normaliser(rewards: np.ndarray, n: int):
    tilted = PROBS * np.exp((n - 1) * r_bond(PROBS, rewards, n))
    assert tilted == pytest.approx(best_of_n_probabilities(PROBS, rewards, n), abs=1e-10)


@ALL_REWARDS
@pytest.mark.parametrize(("a", "b"), [(2, 2), (2, 3), (3, 2), (4, 8)])
def test_oracle_05_best_of_a_of_best_of_b_is_best_of_ab(rewards: np.ndarray, a: int, b: int):
    composed = best_of_n_probabilities(best_of_n_probabilities(PROBS, rewards, b), rewards, a)
    assert composed == pytest.approx(best_of_n_probabilities(PROBS, rewards, a * b), abs=1e-10)


@ALL_REWARDS
def test_oracle_05_iterated_best_of_2(rewards: np.ndarray):
    law = PROBS
    for iteration in range(1, 6):
        law = best_of_n_probabilities(law, rewards, 2)
        direct = best_of_n_probabilities(PROBS, rewards, 2**iteration)
        assert law == pytest.approx(direct, abs=1e-10)


@ALL_REWARDS
def test_oracle_06_kl_by_levels_below_the_bound_and_growing(rewards: np.ndarray):
    levels = sorted(set(rewards.tolist()))
    cumulative = np.array([0.0, *(PROBS[rewards <= level].sum() for level in levels)])
    previous = -1e-12
    for n in range(1, 20):
        mass = np.diff(cumulative**n)
        by_level = float((mass * np.log(mass / np.diff(cumulative))).sum())
        kl = best_of_n_kl(PROBS, rewards, n)
        assert kl == pytest.approx(by_level, abs=1e-10)
        assert previous <= kl + 1e-12 <= kl_best_of_n_bound(n) + 2e-12
        previous = kl


@pytest.mark.parametrize(
    ("num_atoms", "n", "kl"),
    [
        (2, 2, 0.130812),
        (10, 2, 0.189318),
        (100, 2, 0.193090),
        (1000, 2, 0.193146),
        (2, 16, 0.692963),
        (10, 16, 1.733063),
        (100, 16, 1.834018),
        (1000, 16, 1.835078),
    ],
)
def test_oracle_06_uniform_reference(num_atoms: int, n: int, kl: float):
    uniform = np.full(num_atoms, 1 / num_atoms)
    assert best_of_n_kl(uniform, np.arange(num_atoms), n) == pytest.approx(kl, abs=6e-7)


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_oracle_06_fair_binary_reward(n: int):
    wrong = 0.5**n
    entropy = -wrong * math.log(wrong) - (1 - wrong) * math.log1p(-wrong)
    expected = math.log(2) - entropy
    assert best_of_n_kl([0.5, 0.5], [0, 1], n) == pytest.approx(expected, abs=1e-10)


@ALL_REWARDS
@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_oracle_07_win_rate(rewards: np.ndarray, n: int):
    law = best_of_n_probabilities(PROBS, rewards, n)
    by_pairs = sum(
        law[i] * PROBS[j] * (0.5 if rewards[i] == rewards[j] else float(rewards[i] > rewards[j]))
        for i, j in itertools.product(range(6), repeat=2)
    )
    win_rate = best_of_n_win_rate(PROBS, rewards, n)
    assert win_rate == pytest.approx(by_pairs, abs=1e-10)
    assert win_rate <= n / (n + 1) + 1e-12


def test_oracle_07_continuous_rewards_reach_the_win_rate_bound():
    fine = np.full(20_000, 1 / 20_000)
    win_rate = best_of_n_win_rate(fine, np.arange(20_000), 8)
    assert win_rate == pytest.approx(8 / 9, abs=1e-8)


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
