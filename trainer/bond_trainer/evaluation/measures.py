"""From samples to the numbers of an evaluation: JSON values, every interval by paired bootstrap.

A resample draws whole prompts with replacement, the same for everything that an interval compares:
the answers to one prompt are not independent, and what is common to a prompt cancels in a
difference. Dimensions: `_P` prompts, `_S` samples of an adapter, `_K` samples of the reference.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bond_core.best_of_n_law import (
    effective_n_from_kl,
    effective_n_from_quantile,
    kl_best_of_n_bound,
    kl_best_of_n_plug_in,
)
from bond_core.statistics import (
    best_of_n_reward,
    bootstrap_interval,
    bootstrap_interval_of,
    quantiles,
    win_rate,
    win_rate_against_best_of_n,
)
from bond_trainer.draws import Draws, FloatArray
from bond_trainer.evaluation.drawn import DrawnPolicies, DrawnPolicy
from bond_trainer.variety import distinct_n

DISTINCT_N = (1, 2, 3, 4)


def evaluate(drawn: DrawnPolicies, best_of: int) -> dict[str, Any]:
    """Everything that is reported, keys in reading order.

    `best_of_n` has every n up to the number K of reference samples, unbiased from all n-subsets;
    near K the estimates vary most. `against` compares each adapter with the reference, with
    Best-of-`best_of` and with the other adapters. Raises `ValueError` for fewer than `best_of`
    reference samples or one prompt alone.
    """
    reference = drawn.reference.draws
    num_prompts, k = reference.rewards_PS.shape
    if best_of > k:
        raise ValueError(f"Best-of-{best_of} needs at least {best_of} reference samples, not {k}")
    everyone = {"reference": drawn.reference, **drawn.adapters}
    return {
        "prompts": num_prompts,
        "reference_samples": k,
        "best_of": best_of,
        "policies": {
            name: _policy(policy, reference, best_of) for name, policy in everyone.items()
        },
        "best_of_n": {str(n): _best_of_n(reference, n) for n in range(1, k + 1)},
        "against": {
            name: _against(name, everyone, best_of) for name in drawn.adapters
        },
    }  # fmt: skip


def _policy(policy: DrawnPolicy, reference: Draws, best_of: int) -> dict[str, Any]:
    draws = policy.draws
    found: dict[str, Any] = {"samples": int(draws.rewards_PS.size)}
    for name, values in _rewards(draws).items():
        found |= _mean(f"{name}_mean", values)
    if draws is not reference:
        found |= _distance(quantiles(draws.rewards_PS, reference.rewards_PS), policy.laws.kl_PS)
    texts = [[c.text for c in generation.completions] for generation in draws.generations]
    tokens_PS = draws.num_tokens_PS
    found |= _mean("tokens_per_answer", tokens_PS)
    found |= {
        "truncated_share": draws.truncated_share,
        **_of_means(
            "entropy_per_token",
            lambda means: means[0] / means[1],
            policy.laws.entropy_PS,
            tokens_PS,
        ),
        "distinct_n": {str(n): distinct_n(texts, n) for n in DISTINCT_N},
        "repeated_share": draws.variety.repeated_share,
        "identical_share": draws.variety.identical_share,
    }
    return found


def _distance(quantiles_PS: FloatArray, kl_PS: FloatArray) -> dict[str, Any]:
    """How far from the reference, in quantile and in KL, and how the two compare.

    `kl_excess_nats` is what was spent beyond the KL of the Best-of-N of the same mean quantile.
    """
    return {
        **_mean("quantile_mean", quantiles_PS),
        **_mean("kl_nats", kl_PS),
        **_of_means("n_q", lambda means: _n_q(means[0]), quantiles_PS),
        **_of_means("n_kl", lambda means: _n_kl(means[0]), kl_PS),
        **_of_means(
            "kl_efficiency", lambda means: _efficiency(means[0], means[1]), quantiles_PS, kl_PS
        ),
        **_of_means(
            "kl_excess_nats", lambda means: means[1] - _needed(means[0]), quantiles_PS, kl_PS
        ),
    }


def _best_of_n(reference: Draws, n: int) -> dict[str, Any]:
    """Best-of-n of the reference. The KL is the bound, which rewards without ties reach, and
    beside it the plug-in estimate from the probabilities of what was selected."""
    plug_in_PK = np.array(
        [
            [kl_best_of_n_plug_in(min(0.0, c.logprob), n) for c in generation.completions]
            for generation in reference.generations
        ]
    )
    selected_P = best_of_n_reward(reference.rewards_PS, n, plug_in_PK)
    found: dict[str, Any] = {
        "kl_nats": kl_best_of_n_bound(n),
        "kl_plug_in_nats": float(selected_P.mean()),
    }
    for name, values in _rewards(reference).items():
        found |= _mean(f"{name}_mean", best_of_n_reward(reference.rewards_PS, n, values))
    tokens_P = best_of_n_reward(reference.rewards_PS, n, reference.num_tokens_PS)
    return {**found, "tokens_per_answer": float(tokens_P.mean())}


def _against(name: str, everyone: Mapping[str, DrawnPolicy], best_of: int) -> dict[str, Any]:
    ours, reference = everyone[name].draws, everyone["reference"].draws
    found: dict[str, Any] = {}
    for other, policy in everyone.items():
        if other != name:
            theirs = {key: values.mean(axis=1) for key, values in _rewards(policy.draws).items()}
            wins_P = win_rate(ours.rewards_PS, policy.draws.rewards_PS)
            found[other] = _comparison(ours, theirs, wins_P)
    best = {
        key: best_of_n_reward(reference.rewards_PS, best_of, values)
        for key, values in _rewards(reference).items()
    }
    wins_P = win_rate_against_best_of_n(ours.rewards_PS, reference.rewards_PS, best_of)
    found[f"best_of_{best_of}"] = _comparison(ours, best, wins_P)
    return found


def _comparison(
    ours: Draws, theirs_P: Mapping[str, FloatArray], wins_P: FloatArray
) -> dict[str, Any]:
    """Differences of mean rewards, and how often ours wins by the scorer, ties at one half."""
    found: dict[str, Any] = {}
    for key, values_PS in _rewards(ours).items():
        if key in theirs_P:
            found |= _mean(f"{key}_difference", values_PS.mean(axis=1) - theirs_P[key])
    return {**found, **_mean("win_rate", wins_P)}


def _rewards(draws: Draws) -> dict[str, FloatArray]:
    found = {"reward": draws.rewards_PS, "judge": draws.judge_PS, "gold": draws.gold_PS}
    return {name: values for name, values in found.items() if values is not None}


def _mean(name: str, values: FloatArray) -> dict[str, Any]:
    return {name: float(values.mean()), f"{name}_ci95": list(bootstrap_interval(values))}


def _of_means(
    name: str, statistic: Callable[[FloatArray], FloatArray], *columns_PS: FloatArray
) -> dict[str, Any]:
    """A function of several means, with its interval; None where it is infinite."""
    means = np.array([[column.mean()] for column in columns_PS])
    low, high = bootstrap_interval_of(statistic, *columns_PS)
    value = float(statistic(means)[0])
    return {name: _finite(value), f"{name}_ci95": [_finite(low), _finite(high)]}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_n_q = np.vectorize(effective_n_from_quantile, otypes=[np.float64])
_n_kl = np.vectorize(effective_n_from_kl, otypes=[np.float64])


def _kl_of_quantile(quantile: float) -> float:
    """Of the Best-of-N of this mean quantile; none is needed to be no better than the reference."""
    n = effective_n_from_quantile(quantile)
    return kl_best_of_n_bound(max(n, 1.0)) if math.isfinite(n) else math.inf


_needed = np.vectorize(_kl_of_quantile, otypes=[np.float64])


def _efficiency(quantile: FloatArray, kl_nats: FloatArray) -> FloatArray:
    """N_q / N_KL; 0 where the KL is past any N."""
    n_kl = _n_kl(kl_nats)
    return np.where(np.isfinite(n_kl), _n_q(quantile) / n_kl, 0.0)
