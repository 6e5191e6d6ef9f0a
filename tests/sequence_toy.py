"""A world small enough to enumerate: three tokens, answers of two, one prompt.

A policy is tabular and autoregressive, a law of the first token and one of the second for each
first. Its nine answers are all there is, so that every expectation of the objectives over samples
of policy and anchor is a finite sum, exact in float64.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from bond_core.best_of_n_law import best_of_n_probabilities, reward_quantiles
from bond_trainer.objectives import ObjectiveOutput, RolloutInputs

NUM_TOKENS = 3
ANSWERS = list(itertools.product(range(NUM_TOKENS), repeat=2))
STRICT = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.9, 5.0, -2.0, 0.4, 0.2], dtype=torch.float64)
TIED = torch.tensor([1.0, 0.0, 1.0, 2.0, 0.0, 2.0, 1.0, 1.0, 0.0], dtype=torch.float64)
BINARY = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
REWARDS = {"strict": STRICT, "tied": TIED, "binary": BINARY}


def parameters(seed: int) -> Tensor:
    """Logits of a random policy, (1 + tokens, tokens): the first token's, then one row each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        1 + NUM_TOKENS, NUM_TOKENS, generator=generator, dtype=torch.float64
    ).requires_grad_()


def answer_logprobs(logits: Tensor) -> Tensor:
    """log pi of the nine answers: sums over both tokens."""
    log_law = logits.log_softmax(dim=-1)
    return torch.stack([log_law[0, a] + log_law[1 + a, b] for a, b in ANSWERS])


def best_of_2(anchor_logprobs: Tensor, rewards: Tensor) -> Tensor:
    """The exact law of Best-of-2 of the anchor, without gradient."""
    law = best_of_n_probabilities(anchor_logprobs.detach().exp().numpy(), rewards.numpy(), 2)
    return torch.from_numpy(law)


def backward_target(anchor_logprobs: Tensor, rewards: Tensor) -> Tensor:
    """log q_B: the normalised log of anchor * 16^-((1 - p_le)^2)."""
    anchor = anchor_logprobs.detach()
    p_le = torch.from_numpy(reward_quantiles(anchor.exp().numpy(), rewards.numpy()).p_le)
    return (anchor - math.log(16) * (1 - p_le) ** 2).log_softmax(dim=0)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats."""
    return (log_p.exp() * (log_p - log_q)).sum()


def exact_objective(
    policy: Tensor, anchor: Tensor, rewards: Tensor, beta: float, gamma: float
) -> Tensor:
    """(1-beta) KL(Best-of-2 || pi) + beta KL(pi || q_B) + gamma KL(pi || anchor), of log-laws."""
    return (
        (1 - beta) * kl(best_of_2(anchor, rewards).log(), policy)
        + beta * kl(policy, backward_target(anchor, rewards))
        + gamma * kl(policy, anchor)
    )


def exact_gradient(
    logits: Tensor, anchor_logits: Tensor, rewards: Tensor, beta: float, gamma: float
) -> Tensor:
    """Gradient of `exact_objective` with respect to the policy's logits."""
    anchor = answer_logprobs(anchor_logits).detach()
    objective = exact_objective(answer_logprobs(logits), anchor, rewards, beta, gamma)
    return torch.autograd.grad(objective, logits)[0]


def token_logprobs(logits: Tensor) -> Tensor:
    """log pi of both tokens of the nine answers, (9, 2)."""
    log_law = logits.log_softmax(dim=-1)
    return torch.stack([torch.stack([log_law[0, a], log_law[1 + a, b]]) for a, b in ANSWERS])


def token_kls(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of the next-token laws before both tokens of the nine answers, (9, 2)."""
    per_state = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return torch.stack([torch.stack([per_state[0], per_state[1 + a]]) for a, _ in ANSWERS])


def policy_kl(logits: Tensor, anchor_logits: Tensor) -> Tensor:
    """For each answer a quantity whose mean gradient under the policy is grad KL(pi || anchor)."""
    kls = token_kls(logits.log_softmax(dim=-1), anchor_logits.detach().log_softmax(dim=-1))
    return kls.sum(dim=1) + kls[:, 1].detach() * token_logprobs(logits)[:, 0]


def anchor_kl(logits: Tensor, anchor_logits: Tensor) -> Tensor:
    """KL(anchor || pi) at the tokens of each answer, summed, (9,)."""
    log_anchor = anchor_logits.detach().log_softmax(dim=-1)
    return token_kls(log_anchor, logits.log_softmax(dim=-1)).sum(dim=1)


LossOf = Callable[[RolloutInputs], ObjectiveOutput]


def expected_gradient(
    loss_of: LossOf,
    logits: Tensor,
    anchor_logits: Tensor,
    rewards: Tensor,
    num_anchor_samples: int,
    *,
    sampler: Tensor | None = None,
    max_ratio: float | None = None,
) -> Tensor:
    """The expectation, over one policy sample and k anchor samples, of the gradient of a loss.

    With `sampler`, the logits of another policy, that one draws the policy sample; with `max_ratio`
    the sample counts by pi / mu, truncated there.

    All (9^(k + 1)) draws are one batch of the implementation; without a baseline they do not
    touch each other, so that the gradient with respect to what a loss reads is per draw.
    """
    policy, anchor = answer_logprobs(logits), answer_logprobs(anchor_logits).detach()
    draws = torch.cartesian_prod(*[torch.arange(len(ANSWERS))] * (1 + num_anchor_samples))
    y_B1, anchors_BK = draws[:, :1], draws[:, 1:]
    drawn_by = answer_logprobs(logits if sampler is None else sampler).detach()
    probability_B1 = (drawn_by[y_B1].sum(-1) + anchor[anchors_BK].sum(-1)).exp()[:, None]
    ratio = (policy.detach() - drawn_by).exp()
    quantities = (
        (token_logprobs(logits), y_B1),
        (policy, anchors_BK),
        (policy_kl(logits, anchor_logits), y_B1),
        (anchor_kl(logits, anchor_logits), anchors_BK),
    )
    leaves = [q.detach()[answers].requires_grad_() for q, answers in quantities]
    inputs = RolloutInputs(
        policy_logprobs_BPT=leaves[0],
        anchor_logprobs_BPT=token_logprobs(anchor_logits).detach()[y_B1],
        forward_logprobs_BK=leaves[1],
        policy_rewards_BP=rewards[y_B1],
        anchor_rewards_BK=rewards[anchors_BK],
        policy_kl_BP=leaves[2],
        anchor_kl_BK=leaves[3],
        policy_ratio_BP=None if max_ratio is None else ratio.clamp(max=max_ratio)[y_B1],
    )
    loss_of(inputs).loss.backward()
    total = torch.zeros_like(logits)
    for (quantity, answers), leaf in zip(quantities, leaves, strict=True):
        if leaf.grad is not None:
            weights = probability_B1.expand(answers.shape).flatten() * len(draws)
            per_answer = leaf.grad.flatten(0, 1)
            per_draw = per_answer * weights.view(-1, *[1] * (per_answer.ndim - 1))
            coefficients = torch.zeros_like(quantity).index_add_(0, answers.flatten(), per_draw)
            total += torch.autograd.grad(
                quantity, logits, grad_outputs=coefficients, retain_graph=True
            )[0]
    return total


def toy_jbond_inputs(
    policy: Tensor, anchor: Tensor, rewards: Tensor, y_BP: Tensor, anchors_BK: Tensor
) -> RolloutInputs:
    """Inputs of J-BOND's loss for drawn answers, by index into laws over all answers."""
    return RolloutInputs(
        policy_logprobs_BPT=policy[y_BP].unsqueeze(-1),
        anchor_logprobs_BPT=anchor[y_BP].unsqueeze(-1),
        forward_logprobs_BK=policy[anchors_BK],
        policy_rewards_BP=rewards[y_BP],
        anchor_rewards_BK=rewards[anchors_BK],
    )
