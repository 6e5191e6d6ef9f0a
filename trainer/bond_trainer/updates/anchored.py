"""The update of J-BOND and of BOND at fixed N."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bond_core.config import FixedBondConfig, JBondConfig
from bond_trainer.logprobs import TokenRow, token_logprobs
from bond_trainer.lora import ANCHOR
from bond_trainer.objectives.anchored import RolloutInputs
from bond_trainer.objectives.base import ObjectiveOutput
from bond_trainer.objectives.bond import bond_loss
from bond_trainer.objectives.jbond import jbond_loss
from bond_trainer.rollouts import RolloutGroup
from bond_trainer.shared_prompts import RowTerm, RowValues
from bond_trainer.updates.base import (
    UpdateContext,
    policy_rewards,
    policy_rows,
    rows_of,
    sampled_logprobs,
)
from bond_trainer.updates.importance import PolicySamples, policy_samples


def backward_anchored(
    context: UpdateContext,
    groups: Sequence[RolloutGroup],
    objective: JBondConfig | FixedBondConfig,
) -> Mapping[str, float]:
    """See `bond_trainer.updates.backward`.

    The policy's log-probabilities of its own samples are those of the engine if it sampled from
    these very weights (`updates.importance`); `logprob_mismatch` is the largest difference to the
    learner's own.
    """
    rows = policy_rows(groups)
    anchor_rows = [row for group in groups for row in rows_of(group, group.anchor)]
    samples = policy_samples(context, groups)
    inputs = _inputs(context, groups, rows, objective, samples)
    weights = _Weights.of(_loss(inputs, objective).loss, inputs)
    terms = weights.terms(rows)
    values = context.backward(
        [*rows, *anchor_rows],
        terms,
        other=(lambda: context.pair.using(ANCHOR)) if objective.kl == "exact" else None,
    )
    metrics = _metrics(inputs, values, samples.logprobs_BP, objective)
    own_BP = values.logprobs_R[: len(rows)].view_as(samples.logprobs_BP)
    off_BP = (own_BP - sampled_logprobs(groups)).abs()
    if bool((known_BP := off_BP.isfinite()).any()):
        metrics["logprob_mismatch"] = float(off_BP[known_BP].max())
    return {**metrics, **samples.metrics, "padding_share": values.padding_share}


def _loss(inputs: RolloutInputs, objective: JBondConfig | FixedBondConfig) -> ObjectiveOutput:
    if isinstance(objective, FixedBondConfig):
        return bond_loss(inputs, objective)
    return jbond_loss(inputs, objective)


def _inputs(
    context: UpdateContext,
    groups: Sequence[RolloutGroup],
    rows: Sequence[TokenRow],
    objective: JBondConfig | FixedBondConfig,
    samples: PolicySamples,
) -> RolloutInputs:
    """Leaves to differentiate by; quantities that enter linearly stand as zeros."""
    rewards_BK = torch.tensor([[r.reward for r in g.anchor] for g in groups], dtype=torch.float64)
    shape_BP = (len(groups), len(groups[0].policy))
    anchor_BPT = None
    if objective.kl != "exact":
        with torch.no_grad(), context.pair.using(ANCHOR) as model:
            anchor = token_logprobs(
                model,
                rows,
                temperature=context.temperature,
                max_batch_tokens=context.micro_batch_tokens,
            )
        anchor_BPT = pad_sequence(anchor, batch_first=True).unflatten(0, shape_BP).cpu()
    return RolloutInputs(
        policy_logprobs_BPT=samples.logprobs_BPT.requires_grad_(),
        anchor_logprobs_BPT=anchor_BPT,
        forward_logprobs_BK=torch.zeros(rewards_BK.shape, requires_grad=True),
        policy_rewards_BP=policy_rewards(groups),
        anchor_rewards_BK=rewards_BK,
        policy_kl_BP=torch.zeros(shape_BP, requires_grad=True),
        anchor_kl_BK=torch.zeros(rewards_BK.shape, requires_grad=True),
        policy_ratio_BP=samples.ratio_BP,
    )


@dataclass(frozen=True, slots=True)
class _Weights:
    """d loss / d quantity, for each quantity of the inputs."""

    policy_BPT: Tensor
    forward_BK: Tensor
    policy_kl_BP: Tensor
    anchor_kl_BK: Tensor

    @classmethod
    def of(cls, loss: Tensor, inputs: RolloutInputs) -> "_Weights":
        leaves = (
            inputs.policy_logprobs_BPT,
            inputs.forward_logprobs_BK,
            inputs.policy_kl_BP,
            inputs.anchor_kl_BK,
        )
        wanted = [leaf for leaf in leaves if leaf is not None]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        return cls(
            *(
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(wanted, found, strict=True)
            )
        )

    def terms(self, rows: Sequence[TokenRow]) -> list[RowTerm]:
        """For the policy's rows, then the anchor's."""
        policy = [
            RowTerm(weight_T[: len(row.completion_token_ids)], kl, beta=1.0, score=True)
            for row, weight_T, kl in zip(
                rows, self.policy_BPT.flatten(0, 1), self.policy_kl_BP.flatten().tolist(),
                strict=True,
            )
        ]  # fmt: skip
        anchor = [
            RowTerm(weight, kl, beta=0.0)
            for weight, kl in zip(
                self.forward_BK.flatten(), self.anchor_kl_BK.flatten().tolist(), strict=True
            )
        ]
        return policy + anchor


def _metrics(
    inputs: RolloutInputs,
    values: RowValues,
    before_BP: Tensor,
    objective: JBondConfig | FixedBondConfig,
) -> dict[str, float]:
    """The objective's metrics at the learner's own values; `before_BP` is log pi of the policy's
    samples as it was known before them."""
    num_policy = before_BP.numel()
    own_BP = values.logprobs_R[:num_policy].view_as(before_BP)
    known_BP = own_BP.where(own_BP.isfinite(), before_BP)
    divergence_BP = values.divergences_R[:num_policy].view_as(before_BP)
    kl_BP = divergence_BP.nan_to_num()
    shape_BK = inputs.anchor_rewards_BK.shape
    # whole answers are enough for metrics, and what a token's log-ratio was is spent by now
    anchor = inputs.anchor_logprobs_BPT
    final = replace(
        inputs,
        policy_logprobs_BPT=known_BP.unsqueeze(-1),
        anchor_logprobs_BPT=None if anchor is None else anchor.sum(dim=-1, keepdim=True),
        forward_logprobs_BK=values.logprobs_R[num_policy:].view(shape_BK).nan_to_num(),
        policy_kl_BP=kl_BP,
        anchor_kl_BK=values.divergences_R[num_policy:].view(shape_BK).nan_to_num(),
    )
    metrics = dict(_loss(final, objective).metrics)
    # rows without weight in the loss (at beta and gamma 0) were not computed: not a word of them
    own = own_BP.isfinite()
    if objective.kl == "exact" and bool(own.any()):
        metrics["kl_to_anchor"] = float(divergence_BP[own].mean())
    return metrics
