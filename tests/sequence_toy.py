"""A world small enough to enumerate: three tokens, answers of two, one prompt.

A policy is tabular and autoregressive, a law of the first token and one of the second for each
first. Its nine answers are all there is, so that every expectation of the objectives over samples
of policy and anchor is a finite sum, exact in float64.
"""

import itertools
import math
from types import ModuleType

import torch
from torch import Tensor

from bond_core.best_of_n_law import best_of_n_probabilities, reward_quantiles
from bond_core.config import JBondConfig
from bond_trainer.objectives.jbond import JBondInputs

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


def expected_gradient(
    jbond: ModuleType,
    logits: Tensor,
    anchor_logits: Tensor,
    rewards: Tensor,
    config: JBondConfig,
    num_anchor_samples: int,
) -> Tensor:
    """The expectation, over one policy sample and k anchor samples, of the gradient of a loss.

    All (9^(k + 1)) draws are one batch of the implementation; without a baseline they do not
    touch each other, so that the gradient with respect to the log-probabilities is per draw.
    """
    policy, anchor = answer_logprobs(logits), answer_logprobs(anchor_logits).detach()
    draws = torch.cartesian_prod(*[torch.arange(len(ANSWERS))] * (1 + num_anchor_samples))
    y_B1, anchors_BK = draws[:, :1], draws[:, 1:]
    drawn_B1 = policy.detach()[y_B1].requires_grad_()
    forward_BK = policy.detach()[anchors_BK].requires_grad_()
    inputs = jbond.JBondInputs(
        policy_logprobs_BP=drawn_B1,
        anchor_logprobs_BP=anchor[y_B1],
        forward_logprobs_BK=forward_BK,
        policy_rewards_BP=rewards[y_B1],
        anchor_rewards_BK=rewards[anchors_BK],
    )
    jbond.jbond_loss(inputs, config).loss.backward()
    probability_B = (policy.detach()[y_B1].sum(-1) + anchor[anchors_BK].sum(-1)).exp()
    coefficients = torch.zeros_like(policy)
    for grads, answers in ((drawn_B1.grad, y_B1), (forward_BK.grad, anchors_BK)):
        if grads is not None:
            per_draw = grads * len(draws) * probability_B.unsqueeze(-1)
            coefficients.index_add_(0, answers.flatten(), per_draw.flatten())
    return torch.autograd.grad(policy, logits, grad_outputs=coefficients)[0]


def toy_jbond_inputs(
    policy: Tensor, anchor: Tensor, rewards: Tensor, y_BP: Tensor, anchors_BK: Tensor
) -> JBondInputs:
    """Inputs of J-BOND's loss for drawn answers, by index into laws over all answers."""
    return JBondInputs(
        policy_logprobs_BP=policy[y_BP],
        anchor_logprobs_BP=anchor[y_BP],
        forward_logprobs_BK=policy[anchors_BK],
        policy_rewards_BP=rewards[y_BP],
        anchor_rewards_BK=rewards[anchors_BK],
    )
