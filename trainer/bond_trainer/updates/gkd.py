"""The update of GKD: the teacher's next-token laws on the student's own answers."""

from collections.abc import Mapping, Sequence

import torch

from bond_core.config import GkdConfig
from bond_trainer.objectives.gkd import GkdInputs, gkd_loss
from bond_trainer.rollouts import RolloutGroup
from bond_trainer.shared_prompts import RowTerm
from bond_trainer.updates.base import UpdateContext, policy_rewards, policy_rows
from bond_trainer.updates.importance import policy_samples


def backward_gkd(
    context: UpdateContext, groups: Sequence[RolloutGroup], objective: GkdConfig
) -> Mapping[str, float]:
    """See `bond_trainer.updates.backward`."""
    if context.teacher is None:
        raise ValueError("distillation needs a teacher")
    rows = policy_rows(groups)
    num_tokens_R = torch.tensor([len(row.completion_token_ids) for row in rows])
    leaf_R = torch.zeros(len(rows), requires_grad=True)
    loss = gkd_loss(GkdInputs(leaf_R, num_tokens_R)).loss
    (weights_R,) = torch.autograd.grad(loss, [leaf_R])
    nothing = torch.tensor(0.0)
    terms = [RowTerm(nothing, weight, objective.beta) for weight in weights_R.tolist()]
    values = context.backward(rows, terms, other=context.teacher)
    output = gkd_loss(GkdInputs(values.divergences_R, num_tokens_R))
    mismatch = policy_samples(context, groups).metrics
    return {
        **output.metrics,
        **mismatch,
        "reward_policy_mean": float(policy_rewards(groups).mean()),
    }
