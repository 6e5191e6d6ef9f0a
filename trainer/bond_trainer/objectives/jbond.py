"""J-BOND: distil Best-of-2 of a moving anchor into the policy, step by step.

BOND (arXiv 2407.14622), Algorithm 2. Per prompt, with policy samples y ~ pi and anchor samples
y' ~ anchor, and lr(y) = log pi(y) - log anchor(y), the loss that is minimised is

    (1 - beta) * forward + beta * backward + gamma * regulariser

    forward     -log pi(best of two y')                    gradient of KL(Best-of-2 || pi)
    backward    -sg[r_J(y) - lr(y) - baseline] * log pi(y) gradient of KL(pi || q_B)
    regulariser  sg[lr(y) - baseline] * log pi(y)          gradient of KL(pi || anchor)

where sg stops the gradient, r_J is -log 16 if y is strictly worse than both of two anchor samples
and else 0, and q_B ~ anchor * 16^-((1 - p_le)^2) is what that reward makes of Best-of-2.

Three readings of the paper are settled here. Its regulariser is printed with the opposite sign,
which would climb KL(pi || anchor). The comparison is strict, which equation 24 needs when rewards
tie. And with k > 2 anchor samples, forward term and r_J are averaged over all their pairs: the
same mean at less variance. Only comparisons of rewards enter, so that any strictly increasing
transform of the rewards leaves every bit of the loss as it was.

Assumes that log-probabilities are sums over all completion tokens, the end of sequence included,
at the temperature of sampling, and that the policy samples come from the policy as it is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bond_core.config import JBondConfig
from bond_core.errors import ScoringError

PENALTY = -math.log(16)
"""r_J of a sample that is worse than both anchor samples: with it the mean of r_J crosses
log p_le at the median, alpha * (1 - 1/2)^2 = log 1/2 (appendix A.4)."""


@dataclass(frozen=True, slots=True)
class JBondInputs:
    """One batch: _B prompts, _K anchor samples and _P policy samples of each."""

    policy_logprobs_BP: Tensor
    """log pi of the policy samples, nats; carries the gradient of backward and regulariser."""
    anchor_logprobs_BP: Tensor
    """log anchor of the same samples; no gradient."""
    forward_logprobs_BK: Tensor | None
    """log pi of the anchor samples; carries the gradient of the forward term. Entries whose
    `forward_weights` is 0 are not read. None only if beta is 1."""
    policy_rewards_BP: Tensor
    anchor_rewards_BK: Tensor


@dataclass(frozen=True, slots=True)
class ObjectiveOutput:
    """What a learner needs: a scalar to differentiate, and numbers to report."""

    loss: Tensor
    metrics: Mapping[str, float]


def jbond_loss(inputs: JBondInputs, config: JBondConfig) -> ObjectiveOutput:
    """The mean J-BOND loss over prompts, whose gradient is an unbiased estimate.

    Raises `ScoringError` for a reward that is NaN or infinite, `ValueError` for shapes that do
    not belong together or a setting that the batch cannot serve.
    """
    _check(inputs, config)
    policy_logprobs_BP = inputs.policy_logprobs_BP
    log_ratio_BP = (policy_logprobs_BP - inputs.anchor_logprobs_BP).detach()
    reward_BP = penalised_reward(
        inputs.policy_rewards_BP, inputs.anchor_rewards_BK, policy_logprobs_BP.dtype
    )
    return_BP = reward_BP - log_ratio_BP
    advantage_BP = return_BP - leave_one_out_mean(return_BP, config.baseline)
    drift_BP = log_ratio_BP - leave_one_out_mean(log_ratio_BP, config.baseline)

    backward = -(advantage_BP * policy_logprobs_BP).mean()
    regulariser = (drift_BP * policy_logprobs_BP).mean()
    loss = config.beta * backward + config.gamma * regulariser
    metrics = _metrics(inputs, reward_BP, return_BP, log_ratio_BP)
    if config.beta < 1:
        assert inputs.forward_logprobs_BK is not None
        forward = forward_loss(inputs.forward_logprobs_BK, inputs.anchor_rewards_BK)
        loss = loss + (1 - config.beta) * forward
        metrics["loss_forward"] = float(forward.detach())
    metrics["loss_backward"] = float(backward.detach())
    metrics["loss_regulariser"] = float(regulariser.detach())
    metrics["loss"] = float(loss.detach())
    return ObjectiveOutput(loss, metrics)


def forward_loss(forward_logprobs_BK: Tensor, anchor_rewards_BK: Tensor, n: int = 2) -> Tensor:
    """Mean of -log pi over Best-of-n winners among the k anchor samples, all subsets at once."""
    weights_BK = forward_weights(anchor_rewards_BK, n)
    used_BK = torch.where(weights_BK > 0, forward_logprobs_BK, 0)  # skipped rows may hold anything
    return -(weights_BK.to(used_BK.dtype) * used_BK).sum(dim=-1).mean()


def forward_weights(rewards_BK: Tensor, n: int = 2) -> Tensor:
    """Probability of each anchor sample to be the best of a random n-subset, float64.

    In ascending order the i-th has C(i - 1, n - 1) / C(k, n); ties share evenly. Rows of weight
    0 (the worst sample, always) need no forward pass of the policy.
    """
    _check_rewards(rewards_BK, "anchor")
    k = rewards_BK.shape[-1]
    if not 1 <= n <= k:
        raise ValueError(f"Best-of-{n} needs at least {n} anchor samples per prompt, not {k}")
    shares = _subset_shares(k, n, rewards_BK.device)
    worse, not_better = _ranks(rewards_BK, rewards_BK)
    return (shares[not_better] - shares[worse]) / (not_better - worse)


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
    _, not_better = _ranks(policy_rewards_BP, anchor_rewards_BK)
    shares = _subset_shares(k, 2, anchor_rewards_BK.device)
    return (PENALTY * shares[k - not_better]).to(dtype)


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


def _metrics(
    inputs: JBondInputs, reward_BP: Tensor, return_BP: Tensor, log_ratio_BP: Tensor
) -> dict[str, float]:
    worse, not_better = _ranks(inputs.policy_rewards_BP, inputs.anchor_rewards_BK)
    k = inputs.anchor_rewards_BK.shape[-1]
    return {
        "penalty_rate": float(reward_BP.mean()) / PENALTY,
        "return_mean": float(return_BP.mean()),
        "log_ratio_mean": float(log_ratio_BP.mean()),
        "log_ratio_abs_max": float(log_ratio_BP.abs().max()),
        "tie_rate": float((not_better - worse).double().mean()) / k,
        "quantile_mean": float((not_better + worse).double().mean()) / (2 * k),
        "reward_policy_mean": float(inputs.policy_rewards_BP.double().mean()),
        "reward_anchor_mean": float(inputs.anchor_rewards_BK.double().mean()),
    }


def _ranks(rewards_BS: Tensor, anchor_rewards_BK: Tensor) -> tuple[Tensor, Tensor]:
    """How many anchor samples of the prompt are worse, and how many not better."""
    ours, theirs = rewards_BS.unsqueeze(-1), anchor_rewards_BK.unsqueeze(-2)
    return (theirs < ours).sum(dim=-1), (theirs <= ours).sum(dim=-1)


def _subset_shares(k: int, n: int, device: torch.device) -> Tensor:
    """C(i, n) / C(k, n) for i = 0..k."""
    total = math.comb(k, n)
    shares = [math.comb(i, n) / total for i in range(k + 1)]
    return torch.tensor(shares, dtype=torch.float64, device=device)


def _check(inputs: JBondInputs, config: JBondConfig) -> None:
    shape_BP, shape_BK = inputs.policy_logprobs_BP.shape, inputs.anchor_rewards_BK.shape
    same_BP = inputs.anchor_logprobs_BP.shape == inputs.policy_rewards_BP.shape == shape_BP
    if len(shape_BP) != 2 or len(shape_BK) != 2 or shape_BP[0] != shape_BK[0] or not same_BP:
        raise ValueError(
            f"policy log-probabilities {tuple(shape_BP)}, their anchor log-probabilities "
            f"{tuple(inputs.anchor_logprobs_BP.shape)}, policy rewards "
            f"{tuple(inputs.policy_rewards_BP.shape)} and anchor rewards {tuple(shape_BK)} must "
            "be (prompts, samples) of the same prompts"
        )
    if 0 in shape_BP:
        raise ValueError("the batch holds no policy sample")
    forward = inputs.forward_logprobs_BK
    if config.beta < 1 and (forward is None or forward.shape != shape_BK):
        raise ValueError(
            f"beta {config.beta} needs the policy's log-probabilities of the anchor samples, of "
            f"shape {tuple(shape_BK)}, not {None if forward is None else tuple(forward.shape)}"
        )
    _check_rewards(inputs.policy_rewards_BP, "policy")
    _check_rewards(inputs.anchor_rewards_BK, "anchor")


def _check_rewards(rewards: Tensor, of: str) -> None:
    finite = torch.isfinite(rewards)
    if not bool(finite.all()):
        position = (~finite).nonzero()[0].tolist()
        raise ScoringError(
            f"the reward of the {of} sample at {position} is {float(rewards[tuple(position)])}: "
            "rewards must be finite numbers; correct the scorer or leave the prompt out"
        )
