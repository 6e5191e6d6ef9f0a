"""The exact law of Best-of-N, and what it implies: reward, KL, win rate, effective N.

Everything follows from two probabilities under the reference, for a fixed prompt:
`p_lt(y) = P[r(y') < r(y)]` and `p_le(y) = P[r(y') <= r(y)]`, y' ~ reference. The formulas hold
with tied rewards too, where the mass `p_le - p_lt` of a tie class takes the place of the
probability of one completion. Sources: BOND, arXiv 2407.14622 (Theorem 1, equations 4 and 8);
the KL bound and its plug-in estimate, arXiv 2401.01879. Logarithms are natural.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_SUM_TOLERANCE = 1e-9
"""How far a law may be from summing to one; past it, it is not a law."""


class LogFactors(NamedTuple):
    """Theorem 1 in logarithms: best_of_n(y) = reference(y) * A(y) * B(y)."""

    log_a: FloatArray
    """(n - 1) * log p_le, at most 0: how rarely the other n - 1 draws beat y."""
    log_b: FloatArray
    """In [0, log n]: the correction for draws that tie with y, or are y itself."""


class RewardQuantiles(NamedTuple):
    """Reference probabilities of drawing a worse, and a not better, reward."""

    p_lt: FloatArray
    p_le: FloatArray

    @property
    def middle(self) -> FloatArray:
        """The quantile u with ties counted half; its mean under the reference is 1/2."""
        return (self.p_lt + self.p_le) / 2


def reward_quantiles(reference_probs: npt.ArrayLike, rewards: npt.ArrayLike) -> RewardQuantiles:
    """`p_lt` and `p_le` of each completion; equal rewards get equal values.

    Raises `ValueError` unless both are 1-D of one length, the first a law, the second finite.
    """
    return _tie_classes(reference_probs, rewards)[0]


def log_factors(reference_probs: npt.ArrayLike, rewards: npt.ArrayLike, n: int) -> LogFactors:
    """Factors A and B of Theorem 1, without cancellation for any tie mass or n.

    With d the share of the tie class in `p_le`, the ratio t = p_lt / p_le is 1 - d, and
    B = (1 - t^n) / d. Completions that the reference cannot draw have log_b = log n.
    """
    _check_n(n)
    (_, p_le), mass = _tie_classes(reference_probs, rewards)
    possible = p_le > 0
    log_p_le = np.log(p_le, out=np.full_like(p_le, -np.inf), where=possible)
    log_a = (n - 1) * log_p_le if n > 1 else np.zeros_like(p_le)
    share = np.divide(mass, p_le, out=np.zeros_like(p_le), where=possible)
    log_b = np.full_like(p_le, math.log(n))
    drawn = share > 0
    with np.errstate(divide="ignore"):  # share 1: log 0 is -inf, and B is 1
        log_power = n * np.log1p(-np.minimum(share[drawn], 1.0))
    log_b[drawn] = np.log(-np.expm1(log_power)) - np.log(share[drawn])
    return LogFactors(log_a, log_b)


def best_of_n_probabilities(
    reference_probs: npt.ArrayLike, rewards: npt.ArrayLike, n: int
) -> FloatArray:
    """Law of the best of n independent draws, ties broken evenly or by order of drawing."""
    factors = log_factors(reference_probs, rewards, n)
    return np.asarray(reference_probs, dtype=np.float64) * np.exp(factors.log_a + factors.log_b)


def r_bond(reference_probs: npt.ArrayLike, rewards: npt.ArrayLike, n: int) -> FloatArray:
    """The reward whose KL-regularised optimum, at strength 1 / (n - 1), is Best-of-n (equation 8).

    It depends on the ranks of the rewards alone. Raises `ValueError` for n = 1, where the
    optimum is the reference for every reward.
    """
    if n < 2:
        raise ValueError(f"r_bond needs n of at least 2, not {n}: Best-of-1 is the reference")
    factors = log_factors(reference_probs, rewards, n)
    return (factors.log_a + factors.log_b) / (n - 1)


def best_of_n_kl(reference_probs: npt.ArrayLike, rewards: npt.ArrayLike, n: int) -> float:
    """Exact KL(Best-of-n || reference) in nats."""
    factors = log_factors(reference_probs, rewards, n)
    probs = best_of_n_probabilities(reference_probs, rewards, n)
    drawn = probs > 0
    return float(np.sum(probs[drawn] * (factors.log_a + factors.log_b)[drawn]))


def best_of_n_win_rate(reference_probs: npt.ArrayLike, rewards: npt.ArrayLike, n: int) -> float:
    """Exact probability that Best-of-n beats one reference draw, ties counted half.

    At most n / (n + 1), which continuous rewards reach.
    """
    probs = best_of_n_probabilities(reference_probs, rewards, n)
    return float(probs @ reward_quantiles(reference_probs, rewards).middle)


def kl_best_of_n_bound(n: float) -> float:
    """Upper bound log n - (n - 1) / n on KL(Best-of-n || reference), in nats.

    Continuous rewards reach it; ties and likely completions stay below.
    """
    if not n >= 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return math.log(n) - (n - 1) / n


def kl_best_of_n_plug_in(selected_logprob: float, n: int) -> float:
    """Estimate of KL(Best-of-n || reference) from the selected completion's log-probability.

    Between 0 (the reference can draw nothing else) and the bound (it is unlikely to be drawn
    twice). `selected_logprob` is in nats under the reference, summed over tokens. Its mean over
    selections is conjectured to be an upper bound (arXiv 2401.01879, conjecture 4.4).
    """
    _check_n(n)
    if not selected_logprob <= 0:
        raise ValueError(f"a log-probability is at most 0, not {selected_logprob}")
    probability = math.exp(selected_logprob)
    if probability == 1 or n == 1:
        return 0.0
    if probability == 0:  # below the smallest double: the limit
        return kl_best_of_n_bound(n)
    log_missed = n * math.log1p(-probability)  # none of n draws is this completion
    missed, hit = math.exp(log_missed), -math.expm1(log_missed)
    when_missed = math.log(n) + (n - 1) * math.log1p(-probability) - (n - 1) / n
    return missed * when_missed + hit * (math.log(hit) - selected_logprob)


def effective_n_from_quantile(quantile: float) -> float:
    """N_q: the N whose Best-of-N has this mean reference quantile, u / (1 - u).

    1 for the reference itself (u = 1/2); infinite at u = 1.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"a quantile is between 0 and 1, not {quantile}")
    return math.inf if quantile == 1 else quantile / (1 - quantile)


def effective_n_from_kl(kl_nats: float) -> float:
    """N_KL: the N at which `kl_best_of_n_bound` is this KL; an estimate of at most 0 gives 1.

    Newton's method on s = log n: s + exp(-s) - 1 - kl is convex and grows, so that from the
    right, s = 1 + kl, the iterates fall monotonically to the root. Infinite past 1e308.
    """
    if math.isnan(kl_nats):
        raise ValueError("the KL is not a number")
    if kl_nats <= 0:
        return 1.0
    if kl_nats > 700:  # exp overflows a double near 709
        return math.inf
    log_n = 1 + kl_nats
    for _ in range(100):
        step = (log_n + math.expm1(-log_n) - kl_nats) / -math.expm1(-log_n)
        log_n -= step
        if abs(step) <= 1e-15 * log_n:
            break
    return math.exp(log_n)


def _check_n(n: int) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")


def _tie_classes(
    reference_probs: npt.ArrayLike, rewards: npt.ArrayLike
) -> tuple[RewardQuantiles, FloatArray]:
    """The quantiles, and the mass of each completion's tie class, of checked inputs."""
    probs = np.asarray(reference_probs, dtype=np.float64)
    values = np.asarray(rewards, dtype=np.float64)
    if probs.ndim != 1 or probs.shape != values.shape or probs.size == 0:
        raise ValueError(
            f"probabilities {probs.shape} and rewards {values.shape} must be 1-D, of one length"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"reward {int(np.argmin(np.isfinite(values)))} is not a finite number")
    if not (probs >= 0).all() or abs(float(probs.sum()) - 1) > _SUM_TOLERANCE:
        raise ValueError(f"the reference law must be >= 0 and sum to 1, not to {probs.sum()}")
    tie_class = np.unique(values, return_inverse=True)[1]
    class_mass = np.bincount(tie_class, weights=probs).astype(np.float64)
    class_le = np.minimum(np.cumsum(class_mass), 1.0)
    class_lt = np.concatenate((np.zeros(1), class_le[:-1]))
    return RewardQuantiles(class_lt[tie_class], class_le[tie_class]), class_mass[tie_class]
