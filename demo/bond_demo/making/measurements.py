"""What the demo world is worth: the properties that its tests check and its model card reports."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from bond_core.statistics import best_of_n_reward

BEST_OF = (1, 2, 4, 8, 16, 32, 64)
DISTINCT_AMONG = 16

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoredSamples:
    """Answers of the reference, k to each of p prompts, and all that is known of them.

    The arrays have shape (p, k).
    """

    texts: list[list[str]]
    tokens: npt.NDArray[np.int64]
    proxy: FloatArray
    judge: FloatArray
    gold: FloatArray
    flaws: npt.NDArray[np.int64]
    template_held_out: npt.NDArray[np.bool_]
    """Shape (p,)."""

    def of_prompts(self, chosen: npt.NDArray[np.bool_]) -> "ScoredSamples":
        """The samples of some of the prompts."""
        texts = [row for row, is_chosen in zip(self.texts, chosen, strict=True) if is_chosen]
        return ScoredSamples(
            texts, self.tokens[chosen], self.proxy[chosen], self.judge[chosen],
            self.gold[chosen], self.flaws[chosen], self.template_held_out[chosen],
        )  # fmt: skip


def measure(samples: ScoredSamples) -> dict[str, Any]:
    """All figures, ready for JSON; prompts with seen and with held-out templates also apart."""
    held_out = samples.template_held_out
    return {
        **_figures(samples),
        "seen_templates": _figures(samples.of_prompts(~held_out)),
        "held_out_templates": _figures(samples.of_prompts(held_out)),
    }


def best_of_n_curve(samples: ScoredSamples) -> dict[str, dict[str, Any]]:
    """Mean rewards of Best-of-n selected by the proxy, with standard errors over prompts, for
    every n that there are samples for."""
    rewards = {"proxy": samples.proxy, "judge": samples.judge, "gold": samples.gold}
    return {
        str(n): {
            name: _mean_and_error(best_of_n_reward(samples.proxy, n, reported))
            for name, reported in rewards.items()
        }
        for n in BEST_OF
        if n <= samples.proxy.shape[1]
    }


def within_prompt_correlation(first: FloatArray, second: FloatArray) -> float:
    """Spearman's rank correlation within each prompt, averaged over prompts."""
    return float(np.mean([rank_correlation(a, b) for a, b in zip(first, second, strict=True)]))


def rank_correlation(first: FloatArray, second: FloatArray) -> float:
    """Spearman's: the correlation of the ranks, ties sharing theirs."""
    ranks = rankdata(first.ravel()), rankdata(second.ravel())
    return float(np.corrcoef(*ranks)[0, 1])


def tied_share(scores: FloatArray) -> float:
    """Share of pairs of answers to one prompt with equal scores."""
    k = scores.shape[1]
    equal = (scores[:, :, None] == scores[:, None, :]).sum() - scores.size
    return float(equal / (scores.shape[0] * k * (k - 1)))


def distinct_share(texts: list[list[str]], among: int = DISTINCT_AMONG) -> float:
    """Mean share of different texts among the first answers to each prompt."""
    return float(np.mean([len(set(row[:among])) / among for row in texts]))


def _figures(samples: ScoredSamples) -> dict[str, Any]:
    proxy, judge, gold = samples.proxy, samples.judge, samples.gold
    flawed = samples.flaws > 0
    return {
        "prompts": int(proxy.shape[0]),
        "samples_per_prompt": int(proxy.shape[1]),
        "best_of": best_of_n_curve(samples),
        "standard_deviation_within_prompt": {
            "proxy": _spread(proxy), "judge": _spread(judge), "gold": _spread(gold),
        },
        "rank_correlation_within_prompt": {
            "proxy_gold": within_prompt_correlation(proxy, gold),
            "judge_gold": within_prompt_correlation(judge, gold),
            "proxy_judge": within_prompt_correlation(proxy, judge),
        },
        "rank_correlation_pooled": {
            "proxy_gold": rank_correlation(proxy, gold),
            "judge_gold": rank_correlation(judge, gold),
        },
        "tied_share": {"proxy": tied_share(proxy), "judge": tied_share(judge)},
        "distinct_share_of_16": distinct_share(samples.texts),
        "mean_answer_tokens": float(samples.tokens.mean()),
        "longest_answer_tokens": int(samples.tokens.max()),
        "flaw": {
            "share_of_answers": float(flawed.mean()),
            **_with_and_without("proxy", proxy, flawed),
            **_with_and_without("judge", judge, flawed),
            **_with_and_without("gold", gold, flawed),
        },
    }  # fmt: skip


def _with_and_without(
    name: str, rewards: FloatArray, flawed: npt.NDArray[np.bool_]
) -> dict[str, float | None]:
    return {f"{name}_with": _mean(rewards[flawed]), f"{name}_without": _mean(rewards[~flawed])}


def _mean(rewards: FloatArray) -> float | None:
    return float(rewards.mean()) if rewards.size else None


def _spread(rewards: FloatArray) -> float:
    return float(rewards.std(axis=1, ddof=1).mean())


def _mean_and_error(per_prompt: FloatArray) -> dict[str, float]:
    error = per_prompt.std(ddof=1) / np.sqrt(len(per_prompt))
    return {"mean": float(per_prompt.mean()), "standard_error": float(error)}
