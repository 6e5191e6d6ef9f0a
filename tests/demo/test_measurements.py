"""The figures, against hand-made samples."""

import numpy as np
import pytest

from bond_demo.making.measurements import (
    ScoredSamples,
    best_of_n_curve,
    distinct_share,
    measure,
    tied_share,
    within_prompt_correlation,
)

PROXY = np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
GOLD = np.array([[0.0, 1.0, 2.0, -3.0], [5.0, 1.0, 1.5, 0.0]])
SAMPLES = ScoredSamples(
    texts=[["a", "b", "c", "c"], ["d", "e", "f", "g"]],
    tokens=np.array([[1, 2, 3, 3], [4, 5, 6, 8]]),
    proxy=PROXY,
    judge=-PROXY,
    gold=GOLD,
    flaws=np.array([[0, 0, 0, 1], [0, 0, 0, 2]]),
    template_held_out=np.array([False, True]),
)


def test_the_curve_reports_the_gold_of_what_the_proxy_selects() -> None:
    curve = best_of_n_curve(SAMPLES)
    assert list(curve) == ["1", "2", "4"]
    assert curve["1"]["gold"]["mean"] == pytest.approx(GOLD.mean())
    # Of the six pairs, the best by proxy is the sample of proxy 2, 3, 4 in one, two, three.
    best_of_two = [(1 + 2 * 2 - 3 * 3) / 6, (1.5 + 2 * 1 + 3 * 5) / 6]
    assert curve["2"]["gold"]["mean"] == pytest.approx(np.mean(best_of_two))
    error = np.std(best_of_two, ddof=1) / np.sqrt(2)
    assert curve["2"]["gold"]["standard_error"] == pytest.approx(error)
    assert curve["4"]["gold"]["mean"] == pytest.approx((-3 + 5) / 2)
    assert curve["4"]["judge"]["mean"] == pytest.approx(-4)


def test_correlation_is_taken_within_prompts() -> None:
    # Ranks of gold in the first prompt are 2, 3, 4, 1: rho = 1 - 6 * 12 / (4 * 15) = -0.2;
    # in the second 4, 2, 3, 1 against 4, 3, 2, 1: rho = 1 - 6 * 2 / 60 = 0.8.
    assert within_prompt_correlation(PROXY, GOLD) == pytest.approx((-0.2 + 0.8) / 2)


def test_ties_are_counted_over_pairs_of_one_prompt() -> None:
    assert tied_share(PROXY) == 0
    assert tied_share(np.array([[1.0, 1.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])) == pytest.approx(0.25)


def test_distinct_share_counts_texts() -> None:
    assert distinct_share(SAMPLES.texts, among=4) == pytest.approx((3 / 4 + 1) / 2)


def test_all_figures_of_samples_with_enough_answers() -> None:
    rng = np.random.default_rng(0)
    shape = (6, 64)
    proxy = rng.normal(size=shape)
    samples = ScoredSamples(
        texts=[[f"{p} {k}" for k in range(64)] for p in range(6)],
        tokens=np.full(shape, 9),
        proxy=proxy,
        judge=proxy,
        gold=proxy**3,
        flaws=(proxy > 1).astype(np.int64),
        template_held_out=np.arange(6) % 2 == 0,
    )
    figures = measure(samples)
    assert figures["rank_correlation_within_prompt"]["proxy_gold"] == pytest.approx(1)
    assert figures["flaw"]["share_of_answers"] == (proxy > 1).mean()
    assert figures["flaw"]["proxy_with"] > 1 > figures["flaw"]["proxy_without"]
    assert figures["best_of"]["64"]["proxy"]["mean"] == pytest.approx(proxy.max(axis=1).mean())
    assert figures["held_out_templates"]["prompts"] == figures["seen_templates"]["prompts"] == 3
    assert figures["distinct_share_of_16"] == 1
