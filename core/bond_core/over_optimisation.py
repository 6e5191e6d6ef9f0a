"""Over-optimisation: how a true reward rises and falls as a proxy is optimised.

Gao, Schulman and Hilton (arXiv 2210.10760) measure optimisation by d = sqrt(KL(policy ||
reference)) and find that the true reward, less the reference's, follows

    Best-of-n               R(d) = d * (alpha - beta * d)
    reinforcement learning  R(d) = d * (alpha - beta * log d)

Both are linear in alpha and beta once divided by d, hence fitted by least squares of R / d. KL
means different things in the two, so a curve of one does not predict the other.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bond_core.best_of_n_law import effective_n_from_kl

MAX_N = 10**9
"""Beyond it a peak is as good as none."""


@dataclass(frozen=True, slots=True)
class RewardCurve:
    """alpha, the first gain per unit of d, and beta, what optimisation costs."""

    alpha: float
    beta: float


def fit_best_of_n_curve(d: npt.ArrayLike, gain: npt.ArrayLike) -> RewardCurve:
    """Fit R / d = alpha - beta * d; `gain` is the reward less the reference's.

    Raises `ValueError` for fewer than two distinct d, or one that is not positive.
    """
    distances, ratios = _ratios(d, gain)
    return _line(distances, ratios)


def fit_rl_curve(d: npt.ArrayLike, gain: npt.ArrayLike) -> RewardCurve:
    """Fit R / d = alpha - beta * log d; raises as `fit_best_of_n_curve`."""
    distances, ratios = _ratios(d, gain)
    return _line(np.log(distances), ratios)


def best_of_n_peak(curve: RewardCurve) -> float | None:
    """d at which the Best-of-n curve is highest, alpha / (2 beta); None if it never falls, 0 if it
    never rises."""
    if curve.alpha <= 0:
        return 0.0
    return curve.alpha / (2 * curve.beta) if curve.beta > 0 else None


def rl_peak(curve: RewardCurve) -> float | None:
    """d at which the curve of reinforcement learning is highest, exp(alpha / beta - 1); None if it
    never falls."""
    return math.exp(curve.alpha / curve.beta - 1) if curve.beta > 0 else None


def n_of_distance(d: float) -> float | None:
    """The n whose Best-of-n of continuous rewards has KL d^2: log n - (n - 1) / n = d^2.

    Real, at least 1; None beyond `MAX_N`.
    """
    n = effective_n_from_kl(d * d)
    return n if n <= MAX_N else None


def _ratios(
    d: npt.ArrayLike, gain: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    distances = np.asarray(d, dtype=np.float64)
    gains = np.asarray(gain, dtype=np.float64)
    if distances.shape != gains.shape or distances.ndim != 1 or len(np.unique(distances)) < 2:
        raise ValueError(
            f"the curve needs the gain at two distances or more, not {distances.shape} distances "
            f"and {gains.shape} gains"
        )
    if not (distances > 0).all():
        raise ValueError("distances must be positive: leave the reference itself (n = 1) out")
    return distances, gains / distances


def _line(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> RewardCurve:
    """Least squares of y = alpha - beta * x."""
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    return RewardCurve(alpha=float(y.mean()) - slope * float(x.mean()), beta=-slope)
