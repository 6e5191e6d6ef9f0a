"""J-BOND: distil Best-of-2 of a moving anchor into the policy, step by step.

BOND (arXiv 2407.14622), Algorithm 2. Per prompt, with policy samples y ~ pi and anchor samples
y' ~ anchor, and lr(y) = log pi(y) - log anchor(y), the loss that is minimised is

    (1 - beta) * forward + beta * backward + gamma * regulariser

    forward     -log pi(best of two y')                    gradient of KL(Best-of-2 || pi)
    backward    -sg[r_J(y) - lr(y) - baseline] * log pi(y) gradient of KL(pi || q_B)
    regulariser  sg[lr(y) - baseline] * log pi(y)          gradient of KL(pi || anchor)

where sg stops the gradient, r_J is -log 16 if y is strictly worse than both of two anchor samples
and else 0, and q_B ~ anchor * 16^-((1 - p_le)^2) is what that reward makes of Best-of-2. The terms
in lr are gradients of KL(pi || anchor); `objectives.anchored` has them in three estimates.

Three readings of the paper are settled here. Its regulariser is printed with the opposite sign,
which would climb KL(pi || anchor). The comparison is strict, which equation 24 needs when rewards
tie. And with k > 2 anchor samples, forward term and r_J are averaged over all their pairs: the
same mean at less variance. Only comparisons of rewards enter, so that any strictly increasing
transform of the rewards leaves every bit of the loss as it was.

Assumes that log-probabilities are sums over all completion tokens, the end of sequence included,
at the temperature of sampling, and that the policy samples come from the policy as it is, or carry
their ratio to the law that drew them.
"""

import math

import torch
from torch import Tensor

from bond_core.config import JBondConfig
from bond_trainer.objectives.anchored import (
    RolloutInputs,
    anchor_terms,
    check_inputs,
    policy_terms,
    rollout_metrics,
)
from bond_trainer.objectives.base import ObjectiveOutput
from bond_trainer.objectives.ranks import ranks, subset_shares

PENALTY = -math.log(16)
"""r_J of a sample that is worse than both anchor samples: with it the mean of r_J crosses
log p_le at the median, alpha * (1 - 1/2)^2 = log 1/2 (appendix A.4)."""


def jbond_loss(inputs: RolloutInputs, config: JBondConfig) -> ObjectiveOutput:
    """The mean J-BOND loss over prompts, whose gradient is an unbiased estimate.

    Raises `ScoringError` for a reward that is NaN or infinite, `ValueError` for shapes that do
    not belong together or a setting that the batch cannot serve.
    """
    check_inputs(inputs, forward=config.beta < 1)
    reward_BP = penalised_reward(
        inputs.policy_rewards_BP, inputs.anchor_rewards_BK, inputs.policy_logprobs_BPT.dtype
    )
    backward, regulariser = policy_terms(inputs, reward_BP, config.kl, config.baseline)
    loss = config.beta * backward + config.gamma * regulariser
    metrics = rollout_metrics(inputs)
    metrics["penalty_rate"] = float(reward_BP.mean()) / PENALTY
    if "log_ratio_mean" in metrics:
        metrics["return_mean"] = float(reward_BP.mean()) - metrics["log_ratio_mean"]
    if config.beta < 1:
        forward = anchor_terms(inputs, 2, config.kl)
        loss = loss + (1 - config.beta) * forward
        metrics["loss_forward"] = float(forward.detach())
    metrics["loss_backward"] = float(backward.detach())
    metrics["loss_regulariser"] = float(regulariser.detach())
    metrics["loss"] = float(loss.detach())
    return ObjectiveOutput(loss, metrics)


def penalised_reward(
    policy_rewards_BP: Tensor, anchor_rewards_BK: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """r_J of equation 17, averaged over all pairs of the k anchor samples.

    -log 16 * C(m, 2) / C(k, 2), with m the number of anchor samples that are strictly better; its
    mean is -log 16 * (1 - p_le)^2 for every k.
    """
    k = anchor_rewards_BK.shape[-1]
    if k < 2:
        raise ValueError(f"r_J needs at least 2 anchor samples per prompt, not {k}")
    _, not_better = ranks(policy_rewards_BP, anchor_rewards_BK)
    shares = subset_shares(k, 2, anchor_rewards_BK.device)
    return (PENALTY * shares[k - not_better]).to(dtype)
