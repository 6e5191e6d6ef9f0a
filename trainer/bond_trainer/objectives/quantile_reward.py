"""Estimates of r_BOND from k samples of the anchor: the reward of the backward term at fixed N.

r_BOND(y) = log p_le(y) + log B(y) / (N - 1) (BOND, arXiv 2407.14622, equation 8). For continuous
rewards B is N everywhere and drops out, and what is left is the logarithm of a probability that is
only known by m, the number of k anchor samples that are not better. Of m ~ Binomial(k, p)

    E[psi(m + 1) - psi(k + 1)] = - sum over j = 1..k of (1 - p)^j / j,

the series of log p cut after k terms: never infinite, and the least biased of the simple
estimators (docs/bond.md has the table). With ties it is wrong, because B then differs between
answers: there the plug-in of the whole of r_BOND is taken.
"""

from typing import Literal

import torch
from torch import Tensor

from bond_trainer.objectives.ranks import ranks

Ties = Literal["auto", "continuous", "tied"]


def quantile_reward(
    policy_rewards_BP: Tensor, anchor_rewards_BK: Tensor, n: int, ties: Ties = "auto"
) -> Tensor:
    """r_BOND of the policy samples, float64, up to a constant that every sample shares.

    `auto` takes the plug-in for prompts among whose anchor samples at least two are equal, which
    continuous rewards hardly ever give, and psi for the others.
    """
    worse_BP, not_better_BP = ranks(policy_rewards_BP, anchor_rewards_BK)
    k = anchor_rewards_BK.shape[-1]
    by_psi = continuous_quantile_reward(not_better_BP, k)
    if ties == "continuous":
        return by_psi
    plugged = tied_quantile_reward(worse_BP, not_better_BP, k, n)
    if ties == "tied":
        return plugged
    ordered_BK = anchor_rewards_BK.sort(dim=-1).values
    tied_B1 = (ordered_BK[:, 1:] == ordered_BK[:, :-1]).any(dim=-1, keepdim=True)
    return torch.where(tied_B1, plugged, by_psi)


def continuous_quantile_reward(num_not_better: Tensor, k: int) -> Tensor:
    """psi(m + 1) - psi(k + 1) = H_m - H_k, for m of k anchor samples not better; float64."""
    inverse = 1 / torch.arange(1, k + 1, dtype=torch.float64, device=num_not_better.device)
    harmonic = torch.cat([inverse.new_zeros(1), inverse.cumsum(0)])
    return harmonic[num_not_better] - harmonic[k]


def tied_quantile_reward(num_worse: Tensor, num_not_better: Tensor, k: int, n: int) -> Tensor:
    """The plug-in of log[(p_le^N - p_lt^N) / (p_le - p_lt)] / (N - 1), float64, less log(N)/(N-1).

    The sample itself is counted as one more draw of the anchor: p_lt = worse / (k + 1) and
    p_le = (not better + 1) / (k + 1). Its own class is then never empty, and the reward finite.
    The constant makes it comparable with `continuous_quantile_reward`: both are 0 at best.
    """
    if n < 2:
        raise ValueError(f"r_BOND is defined for N of at least 2, not {n}")
    p_lt = num_worse.double() / (k + 1)
    p_le = (num_not_better.double() + 1) / (k + 1)
    powers = torch.arange(n, dtype=torch.float64, device=p_lt.device)
    log_b = ((p_lt / p_le).unsqueeze(-1) ** powers).sum(dim=-1).log()
    return p_le.log() + (log_b - torch.tensor(n, dtype=torch.float64).log()) / (n - 1)
