"""The best win rate that a KL buys, and how close Best-of-N comes to it.

With a continuous reward, of quantile u under the reference, no policy at the same KL wins more
often against one reference draw than the tilt `pi_c ~ reference * exp(c * u)`, c >= 0 (BoNBoN,
arXiv 2406.00832). Its win rate is its mean quantile. Best-of-Poisson is arXiv 2506.19248. KLs are
to the reference, in nats.
"""

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_SERIES_BELOW = 0.05
"""Under this c the closed forms cancel; the series' next terms are below 1e-15 there."""


def tilt_kl(c: float) -> float:
    """KL(c) = ((c - 1) e^c + 1) / (e^c - 1) - log((e^c - 1) / c); grows with c from 0."""
    _check_tilt(c)
    if c < _SERIES_BELOW:
        return c**2 / 24 - c**4 / 960 + c**6 / 36288
    small = math.exp(-c)
    return math.log(c) - 1 + c * small / -math.expm1(-c) - math.log1p(-small)


def tilt_win_rate(c: float) -> float:
    """WR(c) = ((c - 1) e^c + 1) / (c (e^c - 1)), from 1/2 at c = 0 towards 1."""
    _check_tilt(c)
    if c < _SERIES_BELOW:
        return 1 / 2 + c / 12 - c**3 / 720 + c**5 / 30240
    return -1 / math.expm1(-c) - 1 / c


def tilt_of_kl(kl_nats: float) -> float:
    """The c whose tilt has this KL.

    By bisection: KL(c) >= log c - 1 puts the root below exp(1 + kl). Raises `ValueError` for a KL
    that is negative, not a number, or above 700, where c leaves the doubles.
    """
    if not 0 <= kl_nats <= 700:
        raise ValueError(f"the KL of a tilt is solved for between 0 and 700 nats, not {kl_nats}")
    low, high = 0.0, math.exp(1 + kl_nats)
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return middle
        low, high = (middle, high) if tilt_kl(middle) < kl_nats else (low, middle)


def best_win_rate(kl_nats: float) -> float:
    """The frontier: the highest win rate against the reference at this KL."""
    return tilt_win_rate(tilt_of_kl(kl_nats))


def bonbon_margin(n: int) -> float:
    """(n - 1) H_(n-1): how much further apart, in log-ratio to the reference, Best-of-n puts the
    best and the worst of n samples, in the mean; the target of BoNBoN's squared loss."""
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return (n - 1) * math.fsum(1 / i for i in range(1, n))


def best_of_poisson_density(quantile: npt.ArrayLike, mu: float) -> FloatArray:
    """Density at quantile u of the best of 1 + Poisson(mu) draws: (mu u + 1) e^(mu (u - 1))."""
    if not mu >= 0:
        raise ValueError(f"the mean number of further draws is at least 0, not {mu}")
    u = np.asarray(quantile, dtype=np.float64)
    if not ((u >= 0) & (u <= 1)).all():
        raise ValueError("a quantile is between 0 and 1")
    return np.asarray((mu * u + 1) * np.exp(mu * (u - 1)), dtype=np.float64)


def _check_tilt(c: float) -> None:
    if not c >= 0:
        raise ValueError(f"the tilt c is at least 0, not {c}")
