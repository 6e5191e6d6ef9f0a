"""From fresh samples on the report half to the numbers that are published. Pure functions.

Arrays carry their dimensions: `_P` prompts, `_K` samples of the reference, `_S` samples of the
distilled policy. Intervals are over prompts, the independent units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bond_core.best_of_n_law import kl_best_of_n_bound
from bond_core.statistics import (
    MeanEstimate,
    best_of_n_reward,
    clustered_mean,
    paired_difference,
    quantiles,
    win_rate,
    win_rate_against_best_of_n,
)

FloatArray = npt.NDArray[np.float64]

CURVE_POINTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshSamples:
    """Scores of answers that were drawn for the evaluation, on the same prompts for both sides."""

    version: str
    """Who drew the distilled side; `v0000` is the reference itself."""
    reference_proxy_PK: FloatArray
    reference_gold_PK: FloatArray
    distilled_proxy_PS: FloatArray
    distilled_gold_PS: FloatArray
    distilled_kl_PS: FloatArray
    """KL to the reference along each distilled answer, exact per token, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmMeasures:
    """One arm on the report half."""

    samples: int
    """Answers drawn; for Best-of-N the reference samples that it is estimated from."""
    reward: MeanEstimate
    gold_mean: float
    kl_nats: float
    """To the reference. Measured for the distilled policy; for Best-of-n the analytic bound."""
    quantile_mean: float
    """Mean probability of beating one reference answer to the same prompt, ties counted half:
    the quantile u and the win rate are one number, estimated over all pairs."""
    win_rate_vs_reference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Best-of-n of the reference."""

    n: int
    reward_mean: float
    gold_mean: float
    kl_nats: float
    """The bound log n - (n - 1) / n, which continuous rewards reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The distilled policy's single answers against Best-of-n, paired by prompt."""

    n: int
    difference: MeanEstimate
    """Mean reward of the distilled policy minus Best-of-n's."""
    win_rate: float
    """How often one distilled answer beats the best of n reference answers."""

    @property
    def sentence(self) -> str:
        """What the 95 % interval of the difference says."""
        low, high = self.difference.interval()
        if high < 0:
            finding = "significantly below"
        elif low > 0:
            finding = "significantly above"
        else:
            finding = "not significantly different from"
        return (
            f"{finding} Best-of-{self.n}: reward {self.difference.mean:+.3f} "
            f"[{low:+.3f}, {high:+.3f}], wins {self.win_rate:.0%}"
        )


def measure_reference(samples: FreshSamples) -> ArmMeasures:
    """The reference against itself: each answer is compared with the others of its prompt."""
    proxy_PK = samples.reference_proxy_PK
    u = best_of_n_quantile(proxy_PK, 1)
    return ArmMeasures(
        samples=proxy_PK.size,
        reward=clustered_mean(proxy_PK),
        gold_mean=float(samples.reference_gold_PK.mean()),
        kl_nats=0.0,
        quantile_mean=u,
        win_rate_vs_reference=u,
    )


def measure_best_of_n(samples: FreshSamples, n: int) -> ArmMeasures:
    """Best-of-n, from all n-subsets of the reference answers."""
    proxy_PK = samples.reference_proxy_PK
    u = best_of_n_quantile(proxy_PK, n)
    return ArmMeasures(
        samples=proxy_PK.size,
        reward=clustered_mean(best_of_n_reward(proxy_PK, n)),
        gold_mean=float(best_of_n_reward(proxy_PK, n, samples.reference_gold_PK).mean()),
        kl_nats=kl_best_of_n_bound(n),
        quantile_mean=u,
        win_rate_vs_reference=u,
    )


def measure_distilled(samples: FreshSamples) -> ArmMeasures:
    """The distilled policy, one sample an answer."""
    proxy_PS, reference_PK = samples.distilled_proxy_PS, samples.reference_proxy_PK
    return ArmMeasures(
        samples=proxy_PS.size,
        reward=clustered_mean(proxy_PS),
        gold_mean=float(samples.distilled_gold_PS.mean()),
        kl_nats=float(samples.distilled_kl_PS.mean()),
        quantile_mean=float(quantiles(proxy_PS, reference_PK).mean()),
        win_rate_vs_reference=float(win_rate(proxy_PS, reference_PK).mean()),
    )


def best_of_n_quantile(proxy_PK: FloatArray, n: int) -> float:
    """Mean probability that Best-of-n beats one more reference answer, ties counted half.

    Each of the k answers in turn is that one more, and meets the best of every n-subset of the
    others: n / (n + 1) without ties. Needs more than n answers to a prompt.
    """
    num_samples = proxy_PK.shape[-1]
    lost_P = [
        win_rate_against_best_of_n(proxy_PK[:, [place]], np.delete(proxy_PK, place, axis=1), n)
        for place in range(num_samples)
    ]
    return float(1 - np.mean(lost_P))


def best_of_n_curve(
    samples: FreshSamples, points: Sequence[int] = CURVE_POINTS
) -> list[CurvePoint]:
    """Reward and gold against n, selected by the proxy."""
    return [
        CurvePoint(
            n=n,
            reward_mean=float(best_of_n_reward(samples.reference_proxy_PK, n).mean()),
            gold_mean=float(
                best_of_n_reward(samples.reference_proxy_PK, n, samples.reference_gold_PK).mean()
            ),
            kl_nats=kl_best_of_n_bound(n),
        )
        for n in points
    ]


def verdict(samples: FreshSamples, n: int) -> Verdict:
    """Compare single distilled answers with Best-of-n on the same prompts."""
    best_P = best_of_n_reward(samples.reference_proxy_PK, n)
    wins_P = win_rate_against_best_of_n(samples.distilled_proxy_PS, samples.reference_proxy_PK, n)
    return Verdict(
        n=n,
        difference=paired_difference(samples.distilled_proxy_PS, best_P),
        win_rate=float(wins_P.mean()),
    )
