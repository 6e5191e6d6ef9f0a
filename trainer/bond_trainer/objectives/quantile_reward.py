"""The quantile reward: what BOND's backward term rewards, from k samples of the reference.

BOND (arXiv 2407.14622), equation 8: Best-of-N is the optimum, at KL strength 1 / (N - 1), of

    r_bond(y) = log p_le(y) + log B(y) / (N - 1)
              = log[(p_le^N - p_lt^N) / (p_le - p_lt)] / (N - 1)

with p_lt and p_le the reference's probabilities of a lower, and of a not higher, reward. The paper
estimates p_le by the share m / k of k reference samples that are not better, and drops B. Here:

*Continuous scores*: psi(m + 1) - psi(k + 1) = -(H_k - H_m), with H the harmonic numbers. It is
finite at m = 0, and its mean is exactly the first k terms of log p_le = -sum_j (1 - p_le)^j / j.
B is N then, a constant, which a policy gradient does not see.

*Tied scores* (binary, rounded): B differs between tie classes however unlikely each completion is.
log p_le is estimated as above; B = sum_{i<N} (p_lt / p_le)^i from the counts. Two cases that counts
leave open: a completion whose reward no reference sample has is taken as rare, B = N; one that no
sample is worse than or level with (m = 0) as the worst of all, B = 1. Both keep it finite.

Both are biased at small k; `docs/bond.md` tabulates by how much. Assumes that the k samples come
from the reference (or anchor) at the temperature of training, apart from the sample rewarded.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Ties = Literal["auto", "continuous", "tied"]


def quantile_reward(num_not_better_BP: Tensor, k: int) -> Tensor:
    """psi(m + 1) - psi(k + 1) for m = `num_not_better_BP` of k reference samples; float64.

    0 at m = k, and never below -H_k = -(1 + 1/2 + ... + 1/k). Raises `ValueError` for counts
    outside 0..k.
    """
    _check_counts(num_not_better_BP, k)
    numbers = torch.arange(1, k + 1, dtype=torch.float64, device=num_not_better_BP.device)
    harmonic = torch.cat([numbers.new_zeros(1), numbers.reciprocal().cumsum(0)])
    return harmonic[num_not_better_BP.long()] - harmonic[k]


def tied_quantile_reward(num_worse_BP: Tensor, num_not_better_BP: Tensor, k: int, n: int) -> Tensor:
    """`quantile_reward` plus log B / (n - 1), B from the counts; float64.

    Differs from `quantile_reward` by a constant, log n / (n - 1), if no sample ties. Raises
    `ValueError` for n below 2 or counts that are not 0 <= worse <= not better <= k.
    """
    if n < 2:
        raise ValueError(f"the quantile reward needs n of at least 2, not {n}")
    _check_counts(num_worse_BP, k)
    if bool((num_worse_BP > num_not_better_BP).any()):
        raise ValueError("more samples are worse than are not better: the counts are swapped")
    log_p_le = quantile_reward(num_not_better_BP, k)
    not_better = num_not_better_BP.double().clamp(min=1)  # at 0, `worse` is 0 too: B = 1
    ratio = num_worse_BP.double() / not_better
    factor_b = sum((ratio**i for i in range(1, n)), torch.ones_like(ratio))
    return log_p_le + factor_b.log() / (n - 1)


def quantile_reward_of(
    policy_rewards_BP: Tensor, reference_rewards_BK: Tensor, n: int, ties: Ties = "auto"
) -> Tensor:
    """The reward of each policy sample among the reference samples of its prompt; float64.

    `continuous` is `quantile_reward`, `tied` is `tied_quantile_reward`. `auto` is the latter less
    log n / (n - 1): the same reward for a sample that ties with no reference sample as `continuous`
    gives, and B's for one that does, whatever else the batch holds. A choice by the batch would pay
    a sample for tying.
    """
    ours, theirs = policy_rewards_BP.unsqueeze(-1), reference_rewards_BK.unsqueeze(-2)
    worse, not_better = (theirs < ours).sum(dim=-1), (theirs <= ours).sum(dim=-1)
    k = reference_rewards_BK.shape[-1]
    if ties == "continuous":
        return quantile_reward(not_better, k)
    tied = tied_quantile_reward(worse, not_better, k, n)
    if ties == "tied":
        return tied
    untied = quantile_reward(not_better, k)
    return torch.where(worse == not_better, untied, tied - math.log(n) / (n - 1))


def quantile_reward_floor(k: int) -> float:
    """-H_k, the least that `quantile_reward` gives: what a sample worse than all k gets."""
    return -math.fsum(1 / i for i in range(1, k + 1))


def _check_counts(counts: Tensor, k: int) -> None:
    if k < 1:
        raise ValueError(f"the quantile reward needs at least 1 reference sample, not {k}")
    if counts.numel() and not 0 <= int(counts.min()) <= int(counts.max()) <= k:
        raise ValueError(
            f"counts among {k} reference samples are between 0 and {k}, not "
            f"{int(counts.min())} to {int(counts.max())}"
        )
