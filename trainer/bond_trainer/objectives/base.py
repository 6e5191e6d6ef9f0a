"""What the objectives share: their result, the baseline, and what a reward must be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bond_core.errors import ScoringError


@dataclass(frozen=True, slots=True)
class ObjectiveOutput:
    """What a learner needs: a scalar to differentiate, and numbers to report."""

    loss: Tensor
    metrics: Mapping[str, float]


def leave_one_out_mean(values_BP: Tensor, over: Literal["none", "batch", "group"]) -> Tensor:
    """The baseline: for each sample the mean of the others, of the batch or of its own prompt.

    It does not depend on the sample itself, hence leaves the mean gradient as it is. 0 for
    `none`, and for a batch of one sample, which has no others.
    """
    if over == "none" or (over == "batch" and values_BP.numel() == 1):
        return torch.zeros_like(values_BP)
    if over == "batch":
        return (values_BP.sum() - values_BP) / (values_BP.numel() - 1)
    num_samples = values_BP.shape[-1]
    if num_samples < 2:
        raise ValueError(
            "baseline 'group' needs at least 2 policy samples per prompt: raise "
            "num_policy_samples, or take baseline 'batch'"
        )
    return (values_BP.sum(dim=-1, keepdim=True) - values_BP) / (num_samples - 1)


def to_go(values_BPT: Tensor) -> Tensor:
    """At each token the sum over it and all later ones; the whole row's sum at the first."""
    return values_BPT.flip(-1).cumsum(-1).flip(-1)


def check_rewards(rewards: Tensor, of: str) -> None:
    """Raise `ScoringError` for a reward that is NaN or infinite, naming whose and where."""
    finite = torch.isfinite(rewards)
    if not bool(finite.all()):
        position = (~finite).nonzero()[0].tolist()
        raise ScoringError(
            f"the reward of the {of} sample at {position} is {float(rewards[tuple(position)])}: "
            "rewards must be finite numbers; correct the scorer or leave the prompt out"
        )
