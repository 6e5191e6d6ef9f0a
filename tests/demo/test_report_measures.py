"""The published numbers, against enumeration."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from demo_results import make_samples

from bond_core.best_of_n_law import kl_best_of_n_bound
from bond_core.statistics import best_of_n_reward
from bond_demo.measures import (
    FreshSamples,
    best_of_n_curve,
    best_of_n_quantile,
    measure_best_of_n,
    measure_distilled,
    measure_reference,
    verdict,
)

PROXY = [[0.3, 0.1, 0.9, 0.5], [2.0, 2.0, 1.0, 4.0]]
GOLD = [[3.0, 1.0, 0.0, 5.0], [1.0, 2.0, 3.0, -4.0]]


@pytest.fixture
def samples() -> FreshSamples:
    return FreshSamples(
        version="v0001",
        reference_proxy_PK=np.array(PROXY),
        reference_gold_PK=np.array(GOLD),
        distilled_proxy_PS=np.array([[0.6, 1.0], [2.0, 0.0]]),
        distilled_gold_PS=np.array([[1.0, 2.0], [3.0, 4.0]]),
        distilled_kl_PS=np.array([[0.5, -0.25], [1.0, 0.75]]),
    )


def enumerated_quantile(n: int) -> float:
    """Best of each n-subset against each sample outside it, ties half."""
    wins = [
        (max(row[i] for i in subset) > row[other]) + (max(row[i] for i in subset) == row[other]) / 2
        for row in PROXY
        for subset in itertools.combinations(range(4), n)
        for other in range(4)
        if other not in subset
    ]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_quantile_is_the_mean_over_all_subsets(n: int) -> None:
    assert best_of_n_quantile(np.array(PROXY), n) == pytest.approx(enumerated_quantile(n))


def test_without_ties_the_quantile_is_n_over_n_plus_one() -> None:
    rewards_PK = np.random.default_rng(1).normal(size=(5, 16))
    for n in (1, 2, 8, 15):
        assert best_of_n_quantile(rewards_PK, n) == pytest.approx(n / (n + 1))


def test_the_reference_against_itself_is_a_half(samples: FreshSamples) -> None:
    found = measure_reference(samples)
    assert (found.samples, found.kl_nats) == (8, 0.0)
    assert found.reward.mean == pytest.approx(np.mean(PROXY))
    assert found.gold_mean == pytest.approx(np.mean(GOLD))
    assert found.quantile_mean == pytest.approx(0.5)
    assert found.win_rate_vs_reference == pytest.approx(0.5)


def test_best_of_two_is_the_mean_over_all_pairs(samples: FreshSamples) -> None:
    found = measure_best_of_n(samples, 2)
    pairs = list(itertools.combinations(range(4), 2))
    reward = [np.mean([max(row[i], row[j]) for i, j in pairs]) for row in PROXY]
    assert found.reward.mean == pytest.approx(np.mean(reward))
    assert found.reward.num_units == 2
    assert found.kl_nats == pytest.approx(math.log(2) - 0.5)
    first = [GOLD[0][max((i, j), key=PROXY[0].__getitem__)] for i, j in pairs]
    tied = [
        np.mean([GOLD[1][i] for i in pair if PROXY[1][i] == max(PROXY[1][j] for j in pair)])
        for pair in pairs
    ]
    assert found.gold_mean == pytest.approx((np.mean(first) + np.mean(tied)) / 2)


def test_distilled_numbers_are_means_over_all_pairs(samples: FreshSamples) -> None:
    found = measure_distilled(samples)
    assert found.samples == 4
    assert found.reward.mean == pytest.approx(0.9)
    assert found.gold_mean == pytest.approx(2.5)
    assert found.kl_nats == pytest.approx(0.5)
    assert found.quantile_mean == pytest.approx((3 / 4 + 4 / 4 + 2 / 4 + 0) / 4)
    assert found.win_rate_vs_reference == pytest.approx(found.quantile_mean)


def test_the_curve_begins_at_the_reference_and_ends_at_the_best(samples: FreshSamples) -> None:
    curve = best_of_n_curve(samples, (1, 2, 4))
    assert [point.n for point in curve] == [1, 2, 4]
    assert curve[0].reward_mean == pytest.approx(np.mean(PROXY))
    assert curve[0].kl_nats == 0.0
    assert curve[2].reward_mean == pytest.approx((0.9 + 4.0) / 2)
    assert curve[2].gold_mean == pytest.approx((0.0 - 4.0) / 2)
    assert curve[2].kl_nats == pytest.approx(kl_best_of_n_bound(4))


@pytest.mark.parametrize(
    ("shift", "finding"),
    [
        (-2.0, "significantly below Best-of-2"),
        (4.0, "significantly above Best-of-2"),
        (0.56, "not significantly different from Best-of-2"),
    ],
)
def test_the_verdict_follows_the_paired_interval(shift: float, finding: str) -> None:
    found = verdict(make_samples(shift=shift), 2)
    assert finding in found.sentence
    low, high = found.difference.interval()
    assert f"[{low:+.3f}, {high:+.3f}]" in found.sentence


def test_the_verdict_pairs_prompts_whose_rewards_differ_widely() -> None:
    generator = np.random.default_rng(7)
    level_P1 = 20 * generator.normal(size=(40, 1))
    reference_PK = level_P1 + 0.1 * generator.normal(size=(40, 16))
    distilled_PS = level_P1 + 0.5 + 0.1 * generator.normal(size=(40, 4))
    plain = make_samples(prompts=40)
    found = verdict(
        replace(plain, reference_proxy_PK=reference_PK, distilled_proxy_PS=distilled_PS), 2
    )
    best_P, single_P = best_of_n_reward(reference_PK, 2), distilled_PS.mean(axis=1)
    unpaired_error = math.sqrt((best_P.var(ddof=1) + single_P.var(ddof=1)) / 40)
    low, high = found.difference.interval()
    assert found.difference.mean - 2 * unpaired_error < 0  # unpaired, nothing could be said
    assert 0.3 < low < high < 0.6
    assert "significantly above Best-of-2" in found.sentence


def test_the_verdict_is_paired_by_prompt(samples: FreshSamples) -> None:
    found = verdict(samples, 4)
    assert found.difference.mean == pytest.approx(((0.8 - 0.9) + (1.0 - 4.0)) / 2)
    assert found.win_rate == pytest.approx((0 + 1 + 0 + 0) / 4)
