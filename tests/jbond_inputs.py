"""Inputs of J-BOND's loss for given rewards, with random log-probabilities."""

import torch
from torch import Tensor

from bond_trainer.objectives import RolloutInputs


def inputs(
    policy_rewards: Tensor, anchor_rewards: Tensor, *, dtype: torch.dtype = torch.float64
) -> RolloutInputs:
    """Any log-probabilities for given rewards."""
    generator = torch.Generator().manual_seed(0)
    policy, anchor = (
        -5 * torch.rand(policy_rewards.shape, generator=generator, dtype=dtype) for _ in range(2)
    )
    forward = -5 * torch.rand(anchor_rewards.shape, generator=generator, dtype=dtype)
    return RolloutInputs(
        policy_logprobs_BPT=policy.unsqueeze(-1).requires_grad_(),
        anchor_logprobs_BPT=anchor.unsqueeze(-1),
        forward_logprobs_BK=forward.requires_grad_(),
        policy_rewards_BP=policy_rewards,
        anchor_rewards_BK=anchor_rewards,
    )
