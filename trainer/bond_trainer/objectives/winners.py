"""The forward term on logged winners: supervised learning on what Best-of-N returned.

KL(Best-of-N || pi) has the gradient -E[grad log pi(y)] over y ~ Best-of-N (BOND, arXiv 2407.14622,
equation 13), and the winners of logged Best-of-N requests are such y. Log-probabilities are sums
over the completion's tokens: a mean over tokens would weigh short answers more, and its optimum
would not be Best-of-N. Assumes that all N candidates were drawn from the reference at standard
sampling and that all of them competed.
"""

import torch
from torch import Tensor

from bond_trainer.objectives.base import ObjectiveOutput


def winners_loss(policy_logprobs_R: Tensor) -> ObjectiveOutput:
    """Mean negative log-probability of _R winners, in nats per answer."""
    if policy_logprobs_R.ndim != 1 or policy_logprobs_R.numel() == 0:
        raise ValueError(
            f"expected the log-probabilities of at least one winner, "
            f"not shape {tuple(policy_logprobs_R.shape)}"
        )
    loss = -policy_logprobs_R.mean()
    return ObjectiveOutput(loss, {"loss_forward": float(loss.detach())})


def winner_indices(rewards_RN: Tensor) -> Tensor:
    """The winning candidate of each row, ties to the lowest index, as the gateway selects."""
    best_R1 = rewards_RN.max(dim=-1, keepdim=True).values
    positions_N = torch.arange(rewards_RN.shape[-1], device=rewards_RN.device)
    return torch.where(rewards_RN == best_R1, positions_N, rewards_RN.shape[-1]).min(dim=-1).values
