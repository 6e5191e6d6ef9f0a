"""What is reported of a policy: reward, KL, quantile, effective N, win rates, each with error.

All numbers are over the held-out prompts, compared with samples of the reference on the same
prompts. The prompts are the independent units of every interval.
"""

import math
from typing import Any

import numpy as np

from bond_core.best_of_n_law import (
    effective_n_from_kl,
    effective_n_from_quantile,
    kl_best_of_n_bound,
)
from bond_core.statistics import (
    MeanEstimate,
    best_of_n_reward,
    clustered_mean,
    mean_estimate,
    quantiles,
    win_rate,
    win_rate_against_best_of_n,
)
from bond_trainer.draws import Draws, FloatArray

CURVE = (1, 2, 4, 8, 16, 32, 64)
"""Sizes N at which the reference's Best-of-N curve is reported."""


def policy_metrics(
    draws: Draws, reference: Draws, kl_PS: FloatArray | None, best_of: int
) -> dict[str, Any]:
    """The numbers of one policy; JSON values, an infinite effective N as None.

    `kl_PS` is the KL to the reference (nats per answer) on the sampled prefixes. The win rate
    against Best-of-N is left out if there are fewer than `best_of` reference samples.
    """
    quantiles_PS = quantiles(draws.rewards_PS, reference.rewards_PS)
    found: dict[str, Any] = {
        "prompts": int(draws.rewards_PS.shape[0]),
        "samples": int(draws.rewards_PS.size),
        **_estimate("reward", clustered_mean(draws.rewards_PS)),
        **_estimate("quantile", clustered_mean(quantiles_PS)),
        "n_q": _finite(effective_n_from_quantile(float(quantiles_PS.mean()))),
        **_estimate(
            "win_rate_vs_reference",
            mean_estimate(win_rate(draws.rewards_PS, reference.rewards_PS)),
        ),
        "best_of": best_of,
        "tokens_per_answer": float(draws.num_tokens_PS.mean()),
        "length_ratio": float(draws.num_tokens_PS.mean() / reference.num_tokens_PS.mean()),
        "distinct_share": draws.distinct_share,
        "truncated_share": draws.truncated_share,
    }
    if best_of <= reference.rewards_PS.shape[1]:
        against = win_rate_against_best_of_n(draws.rewards_PS, reference.rewards_PS, best_of)
        found |= _estimate("win_rate_vs_best_of_n", mean_estimate(against))
    if draws.judge_PS is not None:
        found |= _estimate("judge", clustered_mean(draws.judge_PS))
    if draws.gold_PS is not None:
        found |= _estimate("gold", clustered_mean(draws.gold_PS))
    if kl_PS is not None:
        found |= _kl_metrics(kl_PS, found["n_q"])
    return found


def best_of_n_metrics(reference: Draws, n: int) -> dict[str, Any]:
    """Best-of-n of the reference, unbiased from its samples; the KL is the bound, which
    continuous rewards reach."""
    found: dict[str, Any] = {
        "n": n,
        **_estimate("reward", mean_estimate(best_of_n_reward(reference.rewards_PS, n))),
        "kl_nats": kl_best_of_n_bound(n),
    }
    for name, reported in (("judge", reference.judge_PS), ("gold", reference.gold_PS)):
        if reported is not None:
            values = best_of_n_reward(reference.rewards_PS, n, reported)
            found |= _estimate(name, mean_estimate(values))
    return found


def best_of_n_curve(reference: Draws) -> dict[str, dict[str, Any]]:
    """`best_of_n_metrics` for every N of `CURVE` that the number of samples allows."""
    num_samples = reference.rewards_PS.shape[1]
    return {str(n): best_of_n_metrics(reference, n) for n in CURVE if n <= num_samples}


def _kl_metrics(kl_PS: FloatArray, n_q: float | None) -> dict[str, Any]:
    estimate = clustered_mean(kl_PS)
    n_kl = _finite(effective_n_from_kl(estimate.mean))
    return {
        "kl_nats": estimate.mean,
        "kl_se": estimate.standard_error,
        "kl_ci95": list(estimate.interval()),
        "n_kl": n_kl,
        "kl_efficiency": n_q / n_kl if n_q is not None and n_kl is not None else None,
    }


def _estimate(name: str, estimate: MeanEstimate) -> dict[str, Any]:
    key = name if name.startswith("win_rate") else f"{name}_mean"
    return {
        key: estimate.mean,
        f"{name}_se": estimate.standard_error,
        f"{name}_ci95": list(estimate.interval()),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) and not np.isnan(value) else None
