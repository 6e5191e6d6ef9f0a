"""Estimates from samples: quantiles, Best-of-n rewards, win rates. Ties always count half.

Arrays end with the samples of one prompt: `(k,)` or `(prompts, k)`. Several numbers that would
each need fresh draws (Best-of-n for every n, say) come unbiased from the same k samples, as
averages over all their subsets of size n, in closed form.
"""

import math

import numpy as np
import numpy.typing as npt

from bond_core.intervals import (
    MeanEstimate,
    bootstrap_interval,
    bootstrap_interval_of,
    clustered_mean,
    mean_estimate,
    paired_difference,
)

__all__ = [
    "MeanEstimate",
    "best_of_n_reward",
    "best_of_n_weights",
    "bootstrap_interval",
    "bootstrap_interval_of",
    "clustered_mean",
    "mean_estimate",
    "paired_difference",
    "quantiles",
    "subset_shares",
    "win_rate",
    "win_rate_against_best_of_n",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


def quantiles(rewards: npt.ArrayLike, reference_rewards: npt.ArrayLike) -> FloatArray:
    """Share of reference samples that each reward beats, ties counted half.

    `(..., s)` against `(..., r)` of the same prompts gives `(..., s)`. Unbiased for the mean
    quantile; its logarithm is not unbiased for the log-quantile.
    """
    worse, not_better = _ranks(_finite(rewards), _finite(reference_rewards))
    num_references = np.asarray(reference_rewards).shape[-1]
    return (worse + not_better) / (2 * num_references)


def subset_shares(k: int, n: int) -> FloatArray:
    """Share of the n-subsets of k samples that lie within i given samples, for i = 0..k.

    This is C(i, n) / C(k, n), in exact integers before the division.
    """
    if not 1 <= n <= k:
        raise ValueError(f"Best-of-n from k samples needs 1 <= n <= k, not n = {n}, k = {k}")
    total = math.comb(k, n)
    return np.array([math.comb(i, n) / total for i in range(k + 1)])


def best_of_n_weights(selecting: npt.ArrayLike, n: int) -> FloatArray:
    """Probability that each of k samples is the best of a random n-subset, ties shared evenly.

    `(..., k)` to `(..., k)`, each row summing to one. In ascending order the i-th has
    C(i - 1, n - 1) / C(k, n); a tie class shares what its members have together.
    """
    scores = _finite(selecting)
    shares = subset_shares(scores.shape[-1], n)
    worse, not_better = _ranks(scores, scores)
    return (shares[not_better] - shares[worse]) / (not_better - worse)


def best_of_n_reward(
    selecting: npt.ArrayLike, n: int, reported: npt.ArrayLike | None = None
) -> FloatArray:
    """Unbiased estimate of the expected reward of Best-of-n, from k >= n samples per prompt.

    `selecting` ranks, `reported` is what is averaged (another reward of the same samples); by
    default the same. `(..., k)` to `(...)`. The variance grows as n nears k.
    """
    values = _finite(selecting if reported is None else reported)
    weights = best_of_n_weights(selecting, n)
    if weights.shape != values.shape:
        raise ValueError(f"scores {weights.shape} and values {values.shape} differ in shape")
    return np.asarray((weights * values).sum(axis=-1), dtype=np.float64)


def win_rate(rewards: npt.ArrayLike, opponent_rewards: npt.ArrayLike) -> FloatArray:
    """Per prompt, the share of all pairs that the first side wins, ties counted half.

    `(..., s)` against `(..., r)` gives `(...)`; `clustered_mean` of it has the interval.
    """
    return np.asarray(quantiles(rewards, opponent_rewards).mean(axis=-1), dtype=np.float64)


def win_rate_against_best_of_n(
    rewards: npt.ArrayLike, reference_rewards: npt.ArrayLike, n: int
) -> FloatArray:
    """Per prompt, how often one sample beats Best-of-n of the reference, ties counted half.

    Averaged over all n-subsets of the k reference samples, hence unbiased. `(..., s)` against
    `(..., k)` gives `(...)`. A sample of Best-of-n's own law has 1/2.
    """
    references = _finite(reference_rewards)
    shares = subset_shares(references.shape[-1], n)
    worse, not_better = _ranks(_finite(rewards), references)
    return np.asarray(((shares[worse] + shares[not_better]) / 2).mean(axis=-1), dtype=np.float64)


def _finite(values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"expected at least one sample in the last axis, not shape {array.shape}")
    if not np.isfinite(array).all():
        position = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(f"the reward at {position} is not a finite number")
    return array


def _ranks(rewards: FloatArray, references: FloatArray) -> tuple[IntArray, IntArray]:
    """How many references are worse, and how many not better, than each reward."""
    if rewards.shape[:-1] != references.shape[:-1]:
        raise ValueError(
            f"rewards {rewards.shape} and references {references.shape} are of other prompts"
        )
    ours, theirs = rewards[..., :, None], references[..., None, :]
    return (theirs < ours).sum(axis=-1), (theirs <= ours).sum(axis=-1)
