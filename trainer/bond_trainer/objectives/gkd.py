"""GKD: on-policy distillation of a teacher policy into the student.

Generalised knowledge distillation (Agarwal et al., arXiv 2306.13649): at every token of answers
that the student itself draws (or, for a share of the prompts, the teacher), the generalised
Jensen-Shannon divergence between the two next-token laws, over the whole vocabulary. No gradient
flows through the sampling, so that it is supervised learning on prefixes that the student meets.
beta goes from KL(teacher || student) at 0 to KL(student || teacher) at 1. No reward enters.
"""

from dataclasses import dataclass

from torch import Tensor

from bond_trainer.objectives.base import ObjectiveOutput


@dataclass(frozen=True, slots=True)
class GkdInputs:
    """One batch of _R answers."""

    divergence_R: Tensor
    """Divergence between teacher and student summed over the tokens of each answer, nats
    (`objectives.token_divergences.generalised_jsd`); carries the gradient."""
    num_tokens_R: Tensor


def gkd_loss(inputs: GkdInputs) -> ObjectiveOutput:
    """The mean divergence per token, every token of the batch weighing the same."""
    if inputs.divergence_R.ndim != 1 or inputs.divergence_R.numel() == 0:
        raise ValueError(
            f"expected the divergences of at least one answer, not shape "
            f"{tuple(inputs.divergence_R.shape)}"
        )
    loss = inputs.divergence_R.sum() / inputs.num_tokens_R.sum()
    return ObjectiveOutput(
        loss,
        {
            "loss": float(loss.detach()),
            "divergence_per_token": float(loss.detach()),
            "divergence_per_answer": float(inputs.divergence_R.detach().mean()),
        },
    )
