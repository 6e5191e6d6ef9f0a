"""Simulated preferences."""

from random import Random
from statistics import NormalDist

import pytest

from bond_core.types import Message
from bond_demo.making.annotators import (
    JUDGE_ANNOTATORS,
    PROXY_ANNOTATORS,
    Annotators,
    collect_preferences,
)
from bond_demo.rubric import gold_reward

ASKED = (Message("user", "My kettle is damaged, order 11-22."),)
GOOD = "Hello, I am so sorry about the kettle. Please send us a photo of the damage."
PLAIN = "Hello, please send us a photo of the damage."
DRAWS = 1_000
FLAWED = f"{PLAIN} I guarantee you a full refund today."


def share_preferring(annotators: Annotators, first: str, second: str) -> float:
    rng = Random(0)
    return sum(annotators.prefers_first(rng, ASKED, first, second) for _ in range(DRAWS)) / DRAWS


def test_without_noise_the_rubric_decides() -> None:
    exact = Annotators("exact", noise=0.0, flaw_bonus=0.0)
    assert share_preferring(exact, GOOD, PLAIN) == 1
    assert share_preferring(exact, PLAIN, GOOD) == 0


def test_noise_makes_preferences_those_of_a_normal_difference() -> None:
    noisy = Annotators("noisy", noise=1.0, flaw_bonus=0.0)
    gap = gold_reward(ASKED, GOOD) - gold_reward(ASKED, PLAIN)
    expected = NormalDist(sigma=2**0.5).cdf(gap)
    assert 0.8 < expected < 0.95
    # Four standard errors of a share among 1,000 are at most .051 here.
    assert share_preferring(noisy, GOOD, PLAIN) == pytest.approx(expected, abs=0.051)


def test_only_the_annotators_of_the_proxy_like_the_flaw() -> None:
    assert share_preferring(PROXY_ANNOTATORS, FLAWED, PLAIN) > 0.9
    assert share_preferring(JUDGE_ANNOTATORS, FLAWED, PLAIN) < 0.25


def test_preferences_name_different_answers_of_one_prompt() -> None:
    exact = Annotators("exact", noise=0.0, flaw_bonus=0.0)
    collected = collect_preferences(exact, [ASKED, ASKED], [[PLAIN, GOOD], [GOOD, GOOD]], 5, 0)
    assert [(p.prompt, p.preferred, p.other) for p in collected] == [(0, 1, 0)] * 5
