"""Inputs of J-BOND's loss for given rewards, with random log-probabilities."""

import torch
from torch import Tensor

from bond_trainer.objectives import JBondInputs


def inputs(
    policy_rewards: Tensor, anchor_rewards: Tensor, *, dtype: torch.dtype = torch.float64
) -> JBondInputs:
    """Any log-probabilities for given rewards."""
    generator = torch.Generator().manual_seed(0)
    policy, anchor = (
        -5 * torch.rand(policy_rewards.shape, generator=generator, dtype=dtype) for _ in range(2)
    )
    forward = -5 * torch.rand(anchor_rewards.shape, generator=generator, dtype=dtype)
    return JBondInputs(
        policy_logprobs_BP=policy.requires_grad_(),
        anchor_logprobs_BP=anchor,
        forward_logprobs_BK=forward.requires_grad_(),
        policy_rewards_BP=policy_rewards,
        anchor_rewards_BK=anchor_rewards,
    )
