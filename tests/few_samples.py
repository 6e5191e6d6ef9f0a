"""Seven samples of one prompt with two rewards, and Best-of-n of them by enumeration."""

import itertools

import numpy as np

PROXY = [0.4, 1.0, 0.4, 2.0, -1.0, 0.4, 2.0]


GOLD = [1.0, -2.0, 0.5, 3.0, 0.0, 7.0, -4.0]


def over_subsets(proxy: list[float], gold: list[float], n: int) -> float:
    """The mean, over all n-subsets, of the gold of the best by proxy, ties averaged."""
    values = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        values.append(np.mean([gold[i] for i in subset if proxy[i] == best]))
    return float(np.mean(values))
