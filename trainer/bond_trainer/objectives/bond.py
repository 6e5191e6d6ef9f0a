"""BOND at a fixed N: distil Best-of-N of the anchor into the policy.

BOND (arXiv 2407.14622), sections 3 and 4. The Jeffreys divergence to Best-of-N of the anchor,

    (1 - beta) * KL(Best-of-N || pi) + beta * KL(pi || Best-of-N),

has the gradients (equations 13 and 15)

    forward     -E over winners of grad log pi(y)
    backward    -(N - 1) * E over y ~ pi of (r_BOND(y) - lr(y) / (N - 1)) * grad log pi(y)

with lr(y) = log pi(y) - log anchor(y). The factor N - 1 belongs to the backward term: without it
the weights of the two are not those that beta names (it is 1 at N = 2). With k >= N anchor samples
the forward term is averaged over all N-subsets; r_BOND is estimated from the same k samples
(`objectives.quantile_reward`), with a bias that falls with k.

The anchor is the reference at first, so that logged Best-of-N answers serve as its samples; hard
updates of the anchor make it Algorithm 1, iterated BOND. Assumptions as for J-BOND.
"""

from bond_core.config import FixedBondConfig
from bond_trainer.objectives.anchored import (
    RolloutInputs,
    anchor_terms,
    check_inputs,
    policy_terms,
    rollout_metrics,
)
from bond_trainer.objectives.base import ObjectiveOutput
from bond_trainer.objectives.quantile_reward import quantile_reward_of


def bond_loss(inputs: RolloutInputs, config: FixedBondConfig) -> ObjectiveOutput:
    """The mean loss over prompts. Raises as `jbond_loss` does."""
    check_inputs(inputs, forward=config.beta < 1)
    reward_BP = quantile_reward_of(
        inputs.policy_rewards_BP, inputs.anchor_rewards_BK, config.n, config.ties
    ).to(inputs.policy_logprobs_BPT.dtype)
    backward, _ = policy_terms(inputs, (config.n - 1) * reward_BP, config.kl, config.baseline)
    loss = config.beta * backward
    metrics = rollout_metrics(inputs)
    metrics["r_bond_mean"] = float(reward_BP.mean())
    if config.beta < 1:
        forward = anchor_terms(inputs, config.n, config.kl)
        loss = loss + (1 - config.beta) * forward
        metrics["loss_forward"] = float(forward.detach())
    metrics["loss_backward"] = float(backward.detach())
    metrics["loss"] = float(loss.detach())
    return ObjectiveOutput(loss, metrics)
