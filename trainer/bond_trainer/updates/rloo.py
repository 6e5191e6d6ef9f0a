"""The update of RLOO: log-ratios to the reference, then one backward pass."""

from collections.abc import Mapping, Sequence

import torch

from bond_core.config import RlooConfig
from bond_trainer.objectives.rloo import RlooInputs, rloo_loss
from bond_trainer.rollouts import RolloutGroup
from bond_trainer.shared_prompts import RowTerm
from bond_trainer.updates.base import UpdateContext, policy_rewards, policy_rows, sampled_logprobs
from bond_trainer.updates.importance import policy_samples


def backward_rloo(
    context: UpdateContext, groups: Sequence[RolloutGroup], objective: RlooConfig
) -> Mapping[str, float]:
    """See `bond_trainer.updates.backward`."""
    rows, sampled_BP = policy_rows(groups), sampled_logprobs(groups)
    samples = policy_samples(context, groups)
    inputs = RlooInputs(
        policy_logprobs_BP=samples.logprobs_BP.clone().requires_grad_(),
        reference_logprobs_BP=context.logprobs(None, rows).view_as(sampled_BP).to(sampled_BP),
        policy_rewards_BP=policy_rewards(groups),
        policy_ratio_BP=samples.ratio_BP,
    )
    output = rloo_loss(inputs, objective)
    (weights_BP,) = torch.autograd.grad(output.loss, [inputs.policy_logprobs_BP])
    values = context.backward(rows, [RowTerm(weight) for weight in weights_BP.flatten()])
    own_BP = values.logprobs_R.view_as(sampled_BP)
    known_BP = own_BP.where(own_BP.isfinite(), samples.logprobs_BP)
    mismatch = float((known_BP - sampled_BP).abs().max())
    return {
        **output.metrics,
        **samples.metrics,
        "logprob_mismatch": mismatch,
        "padding_share": values.padding_share,
    }
