"""A small reference law with strict, tied, binary and constant rewards, and its enumeration."""

import itertools
import math

import numpy as np
import pytest

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
