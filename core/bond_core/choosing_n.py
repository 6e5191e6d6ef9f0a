"""Which N to serve: where a reward that was not optimised peaks, and what fits a token budget.

From k scored samples per prompt the reward of Best-of-n is known without bias for every n up to k
(`statistics.best_of_n_reward`), for the proxy that selects and for any other reward of the same
samples. The recommendation rests on these estimates. Gao's curve (`over_optimisation`) is fitted
beside them: it says how far beyond the samples a peak may lie, and a fit that disagrees with the
estimates is said to.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bond_core.best_of_n_law import kl_best_of_n_bound
from bond_core.intervals import mean_estimate
from bond_core.over_optimisation import (
    RewardCurve,
    best_of_n_peak,
    fit_best_of_n_curve,
    n_of_distance,
)
from bond_core.statistics import best_of_n_reward

FloatArray = npt.NDArray[np.float64]
BOOTSTRAP = 500
FIT_POINTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""The n that a curve is fitted on and compared at, up to half the samples: near k an estimate rests
on a few best answers."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Where a reward is highest over n."""

    n: int
    """By the unbiased estimates."""
    interval: tuple[float, float]
    """95 %, by resampling prompts."""
    at_the_end: bool
    """Whether it is the largest n looked at, so that the true peak may lie beyond."""
    curve: RewardCurve
    fitted_n: float | None
    """By Gao's curve; None if that never falls, or falls beyond any n of use."""
    fitted_interval: tuple[float | None, float | None]

    @property
    def disagree(self) -> bool:
        """Whether the fitted peak lies outside the interval of the estimated one."""
        low, high = self.interval
        if self.fitted_n is None:
            return not self.at_the_end
        return not low <= self.fitted_n <= high and not (self.at_the_end and self.fitted_n > high)


@dataclass(frozen=True, slots=True)
class ChoiceOfN:
    """The curve, the peaks, and the recommendation."""

    points: tuple[int, ...]
    kl_nats: tuple[float, ...]
    """Of each n, by the bound that continuous rewards reach."""
    tokens: tuple[float, ...]
    """Mean completion tokens of one request at each n, all candidates counted."""
    means: Mapping[str, tuple[float, ...]]
    half_widths: Mapping[str, tuple[float, ...]]
    """Of the 95 % intervals."""
    peaks: Mapping[str, Peak]
    decided_by: str
    recommended: int
    reason: str


def choose_n(
    proxy_PK: npt.ArrayLike,
    others: Mapping[str, npt.ArrayLike],
    tokens_per_answer: float,
    budget_tokens: float | None = None,
    seed: int = 0,
) -> ChoiceOfN:
    """Look at every n of `FIT_POINTS` up to half of the k samples of each prompt.

    `others` are rewards of the same samples that did not select, the one to decide first; without
    any the proxy decides, which can only say where it stops gaining. The smallest n is recommended
    whose mean is not significantly below the best within the budget (paired by prompt, 5 % shared
    among the points).
    Raises `ValueError` for fewer than 8 samples or 2 prompts, or a budget below one answer.
    """
    proxy = np.asarray(proxy_PK, dtype=np.float64)
    if proxy.ndim != 2 or proxy.shape[1] < 8 or proxy.shape[0] < 2:
        raise ValueError(
            f"choosing N needs at least 8 samples of at least 2 prompts, not shape {proxy.shape}"
        )
    points = tuple(n for n in FIT_POINTS if n <= proxy.shape[1] // 2)
    rewards: dict[str, FloatArray] = {
        name: np.asarray(values, dtype=np.float64) for name, values in others.items()
    }
    rewards["proxy"] = proxy
    gains = {
        name: np.stack([best_of_n_reward(proxy, n, values) for n in (1, *points)], axis=1)
        for name, values in rewards.items()
    }
    decider = next(iter(rewards))
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(proxy), (BOOTSTRAP, len(proxy)))
    recommended, reason = _recommend(gains[decider], points, tokens_per_answer, budget_tokens)
    return ChoiceOfN(
        points=(1, *points),
        kl_nats=tuple(kl_best_of_n_bound(n) for n in (1, *points)),
        tokens=tuple(n * tokens_per_answer for n in (1, *points)),
        means={name: tuple(map(float, g.mean(axis=0))) for name, g in gains.items()},
        half_widths={name: _half_widths(g) for name, g in gains.items()},
        peaks={name: _peak(g, points, picks) for name, g in gains.items()},
        decided_by=decider,
        recommended=recommended,
        reason=f"by {decider}: {reason}",
    )


def _half_widths(gains_PN: FloatArray) -> tuple[float, ...]:
    estimates = [mean_estimate(column) for column in gains_PN.T]
    return tuple((e.interval()[1] - e.interval()[0]) / 2 for e in estimates)


def _peak(gains_PN: FloatArray, points: tuple[int, ...], picks: npt.NDArray[np.int64]) -> Peak:
    d = np.sqrt([kl_best_of_n_bound(n) for n in points])
    all_points = np.array((1, *points))

    def fitted(means_N: FloatArray) -> tuple[RewardCurve, float | None]:
        curve = fit_best_of_n_curve(d, means_N[1:] - means_N[0])
        peak = best_of_n_peak(curve)
        return curve, None if peak is None else n_of_distance(peak)

    means_N = gains_PN.mean(axis=0)
    resampled = np.stack([gains_PN[pick].mean(axis=0) for pick in picks])
    best = int(all_points[means_N.argmax()])
    low, high = np.percentile(all_points[resampled.argmax(axis=1)], [2.5, 97.5])
    curve, n = fitted(means_N)
    fits = np.array([np.inf if f is None else f for f in (fitted(row)[1] for row in resampled)])
    bounds = np.quantile(fits, [0.025, 0.975], method="nearest")
    ends = [float(bound) if np.isfinite(bound) else None for bound in bounds]
    at_the_end = best == points[-1]
    return Peak(best, (float(low), float(high)), at_the_end, curve, n, (ends[0], ends[1]))


def _recommend(
    gains_PN: FloatArray,
    points: tuple[int, ...],
    tokens_per_answer: float,
    budget_tokens: float | None,
) -> tuple[int, str]:
    allowed = [
        i
        for i, n in enumerate((1, *points))
        if budget_tokens is None or n * tokens_per_answer <= budget_tokens
    ]
    if not allowed:
        raise ValueError(
            f"a budget of {budget_tokens:g} tokens is less than one answer's mean of "
            f"{tokens_per_answer:.1f}: raise it"
        )
    means_N = gains_PN.mean(axis=0)
    best = max(allowed, key=lambda i: means_N[i])
    level = 0.05 / len(points)  # the best was picked among them, which flatters it
    for i in allowed:
        if i == best or mean_estimate(gains_PN[:, best] - gains_PN[:, i]).lower(level) <= 0:
            n, top = (1, *points)[i], (1, *points)[best]
            within = "" if budget_tokens is None else f" within {budget_tokens:g} tokens"
            if i == best:
                return n, f"the best{within}, and significantly better than every smaller n"
            return n, f"the smallest that is not significantly below the best{within}, n = {top}"
    raise AssertionError("the best is among the allowed")
