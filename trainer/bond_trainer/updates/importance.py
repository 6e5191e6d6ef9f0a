"""Policy samples that another law drew: the correction by importance, and how far the laws are.

A server samples from the adapter that was published last, with kernels and often weights in a type
of its own: from a law mu that is near the learner's pi and is not it. Each policy sample y then
counts by pi(y) / mu(y), with log mu(y) as the server reports it, so that the mean over mu is that
over pi; the ratio is cut at a bound, which trades a little bias for a variance that has a bound as
well (truncated importance sampling, Ionides 2008; for rollouts of another engine Yao et al., "Your
efficient RL framework secretly brings you off-policy RL training", 2025). The answer as a whole is
corrected, not each token, since the objectives are means over answers.

Not corrected: samples of the anchor, whose law as the server computes it is then what the objective
compares with; and distillation (`gkd`), which fits next-token laws on whatever prefixes it is given
and takes no gradient through how they were drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bond_trainer.logprobs import token_logprobs
from bond_trainer.lora import POLICY
from bond_trainer.rollouts import RolloutGroup
from bond_trainer.updates.base import UpdateContext, policy_rows, sampled_logprobs


@dataclass(frozen=True, slots=True)
class PolicySamples:
    """What is known of the policy's samples before any gradient."""

    logprobs_BPT: Tensor
    """log pi of their tokens, float32, filled up with zeros."""
    logprobs_BP: Tensor
    """log pi of the whole answers, float32."""
    ratio_BP: Tensor | None
    """The truncated pi / mu; None where the learner's own model drew them."""
    metrics: Mapping[str, float]
    """Of the mismatch; none where there can be none."""


def policy_samples(context: UpdateContext, groups: Sequence[RolloutGroup]) -> PolicySamples:
    """The policy's samples under the learner.

    Where they were drawn from these very weights, log pi is what the engine reported. Otherwise it
    is computed here, in one forward pass.
    """
    shape_BP = (len(groups), len(groups[0].policy))
    reported = [torch.tensor(r.logprobs) for g in groups for r in g.policy]
    if context.max_importance_ratio is None:
        tokens_BPT, _ = _by_prompt(reported, shape_BP)
        return PolicySamples(tokens_BPT, sampled_logprobs(groups), None, {})
    with torch.no_grad(), context.pair.using(POLICY) as model:
        own = token_logprobs(
            model,
            policy_rows(groups),
            temperature=context.temperature,
            max_batch_tokens=context.micro_batch_tokens,
        )
    own = [row.cpu().to(reported[0]) for row in own]
    log_ratios = [o.double() - m.double() for o, m in zip(own, reported, strict=True)]
    ratio_BP = torch.stack([row.sum() for row in log_ratios]).exp().view(shape_BP)
    return PolicySamples(
        *_by_prompt(own, shape_BP),
        ratio_BP.clamp(max=context.max_importance_ratio).to(reported[0]),
        mismatch_metrics(torch.cat(log_ratios), ratio_BP, context.max_importance_ratio),
    )


def mismatch_metrics(
    log_ratio_M: Tensor, ratio_BP: Tensor, max_importance_ratio: float
) -> dict[str, float]:
    """KL(mu || pi) per token of mu's samples, and what the correction does.

    Of log(pi / mu) of all tokens, `mismatch_kl` is the mean of its negative, and `mismatch_k3` that
    of pi / mu - 1 - log(pi / mu): the same mean over mu, no value below zero and less noise
    (Schulman, "Approximating KL divergence", 2020). What is reported wrongly can only raise the
    second, and may lower the first.
    """
    k3_M = log_ratio_M.expm1() - log_ratio_M
    return {
        "mismatch_kl": -float(log_ratio_M.mean()),
        "mismatch_k3": float(k3_M.mean()),
        "importance_ratio_mean": float(ratio_BP.mean()),
        "importance_truncated_share": float((ratio_BP > max_importance_ratio).double().mean()),
    }


def _by_prompt(rows: Sequence[Tensor], shape_BP: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of tokens, filled up with zeros, and of whole answers (summed as `Rollout.logprob` is)."""
    tokens_BPT = pad_sequence(list(rows), batch_first=True).unflatten(0, shape_BP)
    return tokens_BPT, torch.tensor([sum(row.tolist()) for row in rows]).view(shape_BP)
