"""What every update works with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bond_trainer.logprobs import DEFAULT_BATCH_TOKENS, TokenRow, sequence_logprobs
from bond_trainer.lora import POLICY, AdapterName, LoraPair
from bond_trainer.rollouts import Rollout, RolloutGroup
from bond_trainer.shared_prompts import Other, RowTerm, RowValues, backward_shared_prompts


@dataclass(frozen=True, slots=True)
class UpdateContext:
    """The models, and how they are run."""

    pair: LoraPair
    temperature: float
    """Of sampling, and so of every log-probability."""
    teacher: Other | None = None
    """For distillation from another policy."""
    micro_batch_tokens: int = DEFAULT_BATCH_TOKENS
    max_importance_ratio: float | None = None
    """Of samples that a server drew (`updates.importance`); None where they were drawn from these
    very weights."""

    def logprobs(self, name: AdapterName | None, rows: Sequence[TokenRow]) -> Tensor:
        """log P of whole completions under an adapter or the reference (None), no gradient."""
        with torch.no_grad(), self.pair.using(name) as model:
            return sequence_logprobs(
                model,
                rows,
                temperature=self.temperature,
                max_batch_tokens=self.micro_batch_tokens,
            )

    def backward(
        self, rows: Sequence[TokenRow], terms: Sequence[RowTerm], other: Other | None = None
    ) -> RowValues:
        """Accumulate the gradient of the terms in the policy's factors."""
        with self.pair.using(POLICY) as model:
            return backward_shared_prompts(
                model,
                rows,
                terms,
                other=other,
                temperature=self.temperature,
                max_batch_tokens=self.micro_batch_tokens,
            )


def rows_of(group: RolloutGroup, rollouts: Sequence[Rollout]) -> list[TokenRow]:
    """Rollouts of one prompt as the learner reads them."""
    return [TokenRow(group.prompt_token_ids, rollout.token_ids) for rollout in rollouts]


def policy_rows(groups: Sequence[RolloutGroup]) -> list[TokenRow]:
    """The policy's samples, prompt after prompt."""
    return [row for group in groups for row in rows_of(group, group.policy)]


def policy_rewards(groups: Sequence[RolloutGroup]) -> Tensor:
    """`(prompts, samples)`, float64."""
    return torch.tensor([[r.reward for r in g.policy] for g in groups], dtype=torch.float64)


def sampled_logprobs(groups: Sequence[RolloutGroup]) -> Tensor:
    """log pi of the policy's samples as the engine drew them, `(prompts, samples)`, float32."""
    return torch.tensor([[r.logprob for r in g.policy] for g in groups], dtype=torch.float32)
