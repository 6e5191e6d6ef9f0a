"""Means with their uncertainty. Prompts are the independent units, answers to one are not.

So whatever has several samples per prompt is first averaged inside the prompt, and the interval
is over prompts. Intervals are Student's t; `bootstrap_interval` asks less of the distribution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]  # it has none

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean over independent units, with the standard error of that mean."""

    mean: float
    standard_error: float
    num_units: int
    skewness: float = 0.0
    """Third standardised moment of the units."""

    def lower(self, alpha: float) -> float:
        """One-sided lower bound: below the true mean with probability 1 - alpha."""
        return self.mean - self._margin(alpha)

    def cautious_lower(self, alpha: float) -> float:
        """A lower bound that keeps its promise for small alpha and rare large losses too.

        Student's t is exact for normal units and conservative for heavy symmetric tails. Units
        skewed to the left, many small gains and a few great losses, make it pass too often, ever
        more as alpha falls. The quantile is then widened by twice the Edgeworth term of a mean's
        t statistic, skewness * (2 t^2 + 1) / (6 sqrt(n)) (Hall, The Bootstrap and Edgeworth
        Expansion, 1992, section 2.6): twice, since the skewness of a sample that has seen few of
        the losses is itself too small. Never above `lower`.
        """
        if self.num_units < 2 or self.standard_error == 0:
            return self.mean
        t = self._margin(alpha) / self.standard_error
        edgeworth = max(0.0, -self.skewness) * (2 * t * t + 1) / (6 * math.sqrt(self.num_units))
        return self.mean - self.standard_error * (t + 2 * edgeworth)

    def upper(self, alpha: float) -> float:
        """One-sided upper bound: above the true mean with probability 1 - alpha."""
        return self.mean + self._margin(alpha)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Two-sided interval that covers the true mean with this probability."""
        alpha = (1 - confidence) / 2
        return self.lower(alpha), self.upper(alpha)

    def _margin(self, alpha: float) -> float:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is between 0 and 1, not {alpha}")
        return self.standard_error * float(stdtrit(self.num_units - 1, 1 - alpha))


def mean_estimate(values: npt.ArrayLike) -> MeanEstimate:
    """Mean of at least two independent values."""
    units = np.asarray(values, dtype=np.float64)
    if units.ndim != 1 or units.size < 2:
        raise ValueError(f"an interval needs a list of at least 2 values, not shape {units.shape}")
    if not np.isfinite(units).all():
        raise ValueError(f"value {int(np.argmin(np.isfinite(units)))} is not a finite number")
    deviation = float(units.std(ddof=1))
    mean = float(units.mean())
    skewness = float(np.mean((units - mean) ** 3)) / deviation**3 if deviation else 0.0
    return MeanEstimate(mean, deviation / math.sqrt(units.size), units.size, skewness)


def clustered_mean(values_PS: npt.ArrayLike) -> MeanEstimate:
    """Mean over prompts (rows) of the mean over their samples (columns)."""
    return mean_estimate(_prompt_means(values_PS))


def paired_difference(ours_PS: npt.ArrayLike, theirs_PR: npt.ArrayLike) -> MeanEstimate:
    """Mean of ours - theirs, paired by prompt: row i of both answers prompt i.

    The numbers of samples per prompt may differ. Pairing removes what is common to a prompt,
    usually the largest part of a reward's variance.
    """
    ours, theirs = _prompt_means(ours_PS), _prompt_means(theirs_PR)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"pairing needs the same prompts on both sides, not {ours.size} and {theirs.size}"
        )
    return mean_estimate(ours - theirs)


def bootstrap_interval(
    values_PS: npt.ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean, by drawing whole prompts (rows) with replacement.

    For a paired difference, pass the per-prompt differences.
    """
    means = _prompt_means(values_PS)
    if means.size < 2:
        raise ValueError("an interval needs at least 2 prompts")
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, means.size, size=(num_resamples, means.size))
    alpha = (1 - confidence) / 2
    low, high = np.quantile(means[draws].mean(axis=1), [alpha, 1 - alpha])
    return float(low), float(high)


def bootstrap_interval_of(
    statistic: Callable[[FloatArray], FloatArray],
    *columns_PS: npt.ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a function of several means, whole prompts drawn with replacement.

    Each column has a row for the same prompts, and a draw takes the same prompts from all of
    them. `statistic` maps their means, `(columns, resamples)`, to values, `(resamples,)`; an
    infinite value counts as larger than every other.
    """
    means_XP = np.stack([_prompt_means(column) for column in columns_PS])
    num_prompts = means_XP.shape[1]
    if num_prompts < 2:
        raise ValueError("an interval needs at least 2 prompts")
    generator = np.random.default_rng(seed)
    picks_RP = generator.integers(0, num_prompts, size=(num_resamples, num_prompts))
    counts_RP = np.zeros((num_resamples, num_prompts))
    np.add.at(counts_RP, (np.arange(num_resamples)[:, None], picks_RP), 1)
    values = statistic(means_XP @ counts_RP.T / num_prompts)
    alpha = (1 - confidence) / 2
    low, high = np.quantile(values, [alpha, 1 - alpha], method="closest_observation")
    return float(low), float(high)


def _prompt_means(values_PS: npt.ArrayLike) -> FloatArray:
    values = np.asarray(values_PS, dtype=np.float64)
    if values.ndim == 1:
        return values
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"expected (prompts,) or (prompts, samples), not shape {values.shape}")
    return np.asarray(values.mean(axis=1), dtype=np.float64)
