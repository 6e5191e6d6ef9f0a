"""RLOO: KL-regularised policy gradient with a leave-one-out baseline.

The baseline method of BOND's paper (arXiv 2407.14622, section 6), REINFORCE as in Ahmadian et al.
(arXiv 2402.14740): of P >= 2 policy samples of a prompt, each is compared with the mean of the
others, on the reward less the KL coefficient times its log-ratio to the reference,

    R(y) = r(y) - c * (log pi(y) - log reference(y)),    -(R(y_i) - mean of R(y_j), j != i) * log pi

whose mean is the gradient of -(E[r] - c * KL(pi || reference)). Unlike BOND it uses the size of
rewards, not their order: c has to fit their scale, and stays what it is throughout the run.
"""

from dataclasses import dataclass

from torch import Tensor

from bond_core.config import RlooConfig
from bond_trainer.objectives.base import ObjectiveOutput, check_rewards, leave_one_out_mean


@dataclass(frozen=True, slots=True)
class RlooInputs:
    """One batch: _B prompts, _P policy samples of each."""

    policy_logprobs_BP: Tensor
    """log pi, nats; carries the gradient."""
    reference_logprobs_BP: Tensor
    policy_rewards_BP: Tensor
    policy_ratio_BP: Tensor | None = None
    """As that of `RolloutInputs`."""


def rloo_loss(inputs: RlooInputs, config: RlooConfig) -> ObjectiveOutput:
    """The mean loss over samples, whose gradient is an unbiased estimate.

    Raises `ScoringError` for a reward that is NaN or infinite, `ValueError` for fewer than two
    samples per prompt.
    """
    check_rewards(inputs.policy_rewards_BP, "policy")
    logprobs_BP = inputs.policy_logprobs_BP
    if logprobs_BP.ndim != 2 or logprobs_BP.shape[-1] < 2:
        raise ValueError(
            f"leave-one-out needs at least 2 policy samples per prompt, not shape "
            f"{tuple(logprobs_BP.shape)}: raise num_policy_samples"
        )
    log_ratio_BP = (logprobs_BP - inputs.reference_logprobs_BP).detach()
    # in float64 until the baseline is off: rewards may be large and their differences small
    return_BP = inputs.policy_rewards_BP.double() - config.kl_coefficient * log_ratio_BP
    advantage_BP = (return_BP - leave_one_out_mean(return_BP, "group")).to(logprobs_BP)
    term_BP = advantage_BP * logprobs_BP
    ratio_BP = inputs.policy_ratio_BP
    loss = -(term_BP if ratio_BP is None else ratio_BP * term_BP).mean()
    return ObjectiveOutput(
        loss,
        {
            "loss": float(loss.detach()),
            "return_mean": float(return_BP.mean()),
            "advantage_abs_mean": float(advantage_BP.abs().mean()),
            "log_ratio_mean": float(log_ratio_BP.mean()),
            "log_ratio_abs_max": float(log_ratio_BP.abs().max()),
            "reward_policy_mean": float(inputs.policy_rewards_BP.double().mean()),
        },
    )
