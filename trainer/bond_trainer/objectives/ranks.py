"""Comparisons of rewards within a prompt: ranks, and Best-of-n weights by order statistics."""

import math

import torch
from torch import Tensor

from bond_trainer.objectives.base import check_rewards


def ranks(rewards_BS: Tensor, anchor_rewards_BK: Tensor) -> tuple[Tensor, Tensor]:
    """How many anchor samples of the prompt are worse, and how many not better."""
    ours, theirs = rewards_BS.unsqueeze(-1), anchor_rewards_BK.unsqueeze(-2)
    return (theirs < ours).sum(dim=-1), (theirs <= ours).sum(dim=-1)


def subset_shares(k: int, n: int, device: torch.device) -> Tensor:
    """C(i, n) / C(k, n) for i = 0..k: how many n-subsets lie among i given samples of k."""
    total = math.comb(k, n)
    shares = [math.comb(i, n) / total for i in range(k + 1)]
    return torch.tensor(shares, dtype=torch.float64, device=device)


def forward_weights(rewards_BK: Tensor, n: int = 2) -> Tensor:
    """Probability of each anchor sample to be the best of a random n-subset, float64.

    In ascending order the i-th has C(i - 1, n - 1) / C(k, n); ties share evenly. Rows of weight
    0 (the worst n - 1 samples, always) need no forward pass of the policy.
    """
    check_rewards(rewards_BK, "anchor")
    k = rewards_BK.shape[-1]
    if not 1 <= n <= k:
        raise ValueError(f"Best-of-{n} needs at least {n} anchor samples per prompt, not {k}")
    shares = subset_shares(k, n, rewards_BK.device)
    worse, not_better = ranks(rewards_BK, rewards_BK)
    return (shares[not_better] - shares[worse]) / (not_better - worse)


def forward_loss(
    forward_logprobs_BK: Tensor, anchor_rewards_BK: Tensor, n: int = 2, *, control: bool = False
) -> Tensor:
    """Mean of -log pi over Best-of-n winners among the k anchor samples, all subsets at once.

    With `control`, 1/k is taken from every weight. What that takes from the gradient is in mean
    the gradient of KL(anchor || pi), to be added where it is known exactly: the noise of ordinary
    maximum likelihood on the anchor's own samples is then gone.
    """
    weights_BK = forward_weights(anchor_rewards_BK, n)
    if control:
        weights_BK = weights_BK - 1 / weights_BK.shape[-1]
    used_BK = torch.where(weights_BK != 0, forward_logprobs_BK, 0)  # skipped: may hold anything
    return -(weights_BK.to(used_BK.dtype) * used_BK).sum(dim=-1).mean()
