"""The terms of the objectives that compare a policy with an anchor: J-BOND, and BOND at fixed N.

Both minimise divergences to a law that is made of the anchor and of comparisons of rewards. The KL
between policy and anchor can be estimated in three ways, of one mean gradient and falling noise:

    sequence  by the log-ratio of the whole answer, as in the paper
    to_go     per token, by the log-ratio of that token and all later ones: what came before does
              not depend on it
    exact     per token over the whole vocabulary, on the sampled prefixes; the forward term is
              then split into a comparison among the anchor's samples and an exact KL
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bond_trainer.objectives.base import check_rewards, leave_one_out_mean, to_go
from bond_trainer.objectives.ranks import forward_loss, ranks

KlEstimate = Literal["sequence", "to_go", "exact"]
Baseline = Literal["none", "batch", "group"]


@dataclass(frozen=True, slots=True)
class RolloutInputs:
    """One batch: _B prompts, _K anchor samples and _P policy samples of each, _T tokens.

    Rows shorter than _T are filled up with zeros; a row may also stand as one sum, with _T = 1.
    """

    policy_logprobs_BPT: Tensor
    """log pi of the policy samples' tokens, nats; carries the gradient of backward and
    regulariser."""
    anchor_logprobs_BPT: Tensor | None
    """log anchor of the same tokens; no gradient. None only where the KL is exact."""
    forward_logprobs_BK: Tensor | None
    """log pi of the anchor samples, summed; carries the gradient of the forward term. Entries
    whose weight is 0 are not read. None only if beta is 1."""
    policy_rewards_BP: Tensor
    anchor_rewards_BK: Tensor
    policy_kl_BP: Tensor | None = None
    """For `kl: exact`: a quantity of each policy sample, of which the mean gradient is that of
    KL(pi || anchor) (`bond_trainer.exact_kl`)."""
    anchor_kl_BK: Tensor | None = None
    """For `kl: exact`: KL(anchor || pi) at the tokens of each anchor sample, summed."""
    policy_ratio_BP: Tensor | None = None
    """Of policy samples that another law mu drew: pi(y) / mu(y), truncated or not, by which what
    each says is multiplied; no gradient. None where pi itself drew them."""

    @property
    def log_ratio_BPT(self) -> Tensor:
        """log pi - log anchor of the policy samples' tokens, without gradient.

        Raises `ValueError` without the anchor's.
        """
        if self.anchor_logprobs_BPT is None:
            raise ValueError("kl 'sequence' and 'to_go' need the anchor's log-probabilities")
        return (self.policy_logprobs_BPT - self.anchor_logprobs_BPT).detach()

    def mean_under_policy(self, values_BP: Tensor) -> Tensor:
        """Of a quantity of the policy samples, the mean over them as pi would have drawn them."""
        ratio_BP = self.policy_ratio_BP
        return (values_BP if ratio_BP is None else ratio_BP * values_BP).mean()


def policy_terms(
    inputs: RolloutInputs,
    reward_BP: Tensor,
    kl: KlEstimate,
    baseline: Baseline,
) -> tuple[Tensor, Tensor]:
    """What the policy's own samples y say: of gradient -E[reward(y) grad log pi(y)] + grad KL(pi
    || anchor), and of gradient grad KL(pi || anchor) alone.

    Baselines are means of unweighted returns: that of the other samples does not depend on a
    sample, whoever drew it, and E over mu of (pi / mu) grad log pi is zero.

    `reward_BP` carries no gradient. Raises `ValueError` if `kl` needs what the batch lacks.
    """
    logprobs_BPT = inputs.policy_logprobs_BPT
    if kl == "exact":
        if inputs.policy_kl_BP is None:
            raise ValueError("kl 'exact' needs policy_kl_BP")
        advantage_BP = reward_BP - leave_one_out_mean(reward_BP, baseline)
        regulariser = inputs.mean_under_policy(inputs.policy_kl_BP)
        reward_term = inputs.mean_under_policy(advantage_BP * logprobs_BPT.sum(dim=-1))
        return regulariser - reward_term, regulariser
    log_ratio_BPT = inputs.log_ratio_BPT
    log_ratio_BP = log_ratio_BPT.sum(dim=-1)
    if kl == "to_go":
        later_BPT = to_go(log_ratio_BPT)
    else:
        later_BPT = log_ratio_BP.unsqueeze(-1).expand_as(log_ratio_BPT)
    baseline_BP1 = leave_one_out_mean(reward_BP - log_ratio_BP, baseline).unsqueeze(-1)
    advantage_BPT = reward_BP.unsqueeze(-1) - later_BPT - baseline_BP1
    drift_BPT = later_BPT - leave_one_out_mean(log_ratio_BP, baseline).unsqueeze(-1)
    backward = -inputs.mean_under_policy((advantage_BPT * logprobs_BPT).sum(dim=-1))
    return backward, inputs.mean_under_policy((drift_BPT * logprobs_BPT).sum(dim=-1))


def anchor_terms(inputs: RolloutInputs, n: int, kl: KlEstimate) -> Tensor:
    """What the anchor's samples say: of gradient grad KL(Best-of-n of the anchor || pi).

    Raises `ValueError` if the batch lacks what `kl` needs, or has fewer than n samples.
    """
    if inputs.forward_logprobs_BK is None:
        raise ValueError("the forward term needs the policy's log-probabilities of the anchor's")
    exact = kl == "exact"
    forward = forward_loss(inputs.forward_logprobs_BK, inputs.anchor_rewards_BK, n, control=exact)
    if not exact:
        return forward
    if inputs.anchor_kl_BK is None:
        raise ValueError("kl 'exact' needs anchor_kl_BK")
    return forward + inputs.anchor_kl_BK.mean()


def rollout_metrics(inputs: RolloutInputs) -> dict[str, float]:
    """What every objective with an anchor reports of a batch."""
    worse, not_better = ranks(inputs.policy_rewards_BP, inputs.anchor_rewards_BK)
    k = inputs.anchor_rewards_BK.shape[-1]
    found: dict[str, float] = {}
    if inputs.anchor_logprobs_BPT is not None:
        log_ratio_BP = inputs.log_ratio_BPT.sum(dim=-1)
        found["log_ratio_mean"] = float(log_ratio_BP.mean())
        found["log_ratio_abs_max"] = float(log_ratio_BP.abs().max())
    return found | {
        "tie_rate": float((not_better - worse).double().mean()) / k,
        "quantile_mean": float((not_better + worse).double().mean()) / (2 * k),
        "reward_policy_mean": float(inputs.policy_rewards_BP.double().mean()),
        "reward_anchor_mean": float(inputs.anchor_rewards_BK.double().mean()),
    }


def check_inputs(inputs: RolloutInputs, *, forward: bool) -> None:
    """Raise `ValueError` for shapes that do not belong together, `ScoringError` for a reward that
    is not finite."""
    shape_BPT, shape_BK = inputs.policy_logprobs_BPT.shape, inputs.anchor_rewards_BK.shape
    anchor = inputs.anchor_logprobs_BPT
    same = (
        anchor is None or anchor.shape == shape_BPT
    ) and inputs.policy_rewards_BP.shape == shape_BPT[:2]
    if len(shape_BPT) != 3 or len(shape_BK) != 2 or shape_BPT[0] != shape_BK[0] or not same:
        raise ValueError(
            f"policy log-probabilities {tuple(shape_BPT)}, their anchor log-probabilities "
            f"{None if anchor is None else tuple(anchor.shape)}, policy rewards "
            f"{tuple(inputs.policy_rewards_BP.shape)} and anchor rewards {tuple(shape_BK)} must "
            "be (prompts, samples, tokens) or (prompts, samples) of the same prompts"
        )
    if 0 in shape_BPT:
        raise ValueError("the batch holds no policy sample")
    logprobs = inputs.forward_logprobs_BK
    if forward and (logprobs is None or logprobs.shape != shape_BK):
        raise ValueError(
            "with beta below 1 the forward term needs the policy's log-probabilities of the anchor "
            f"samples, of shape {tuple(shape_BK)}, "
            f"not {None if logprobs is None else tuple(logprobs.shape)}"
        )
    check_rewards(inputs.policy_rewards_BP, "policy")
    check_rewards(inputs.anchor_rewards_BK, "anchor")
