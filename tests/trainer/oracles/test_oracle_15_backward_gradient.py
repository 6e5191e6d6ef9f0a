"""Oracle 15: the policy gradient of equation 15 is the gradient of KL(pi || Best-of-N)."""

import itertools

import pytest
import torch
from sequence_toy import REWARDS, answer_logprobs, kl, parameters
from torch import Tensor

from bond_core.best_of_n_law import best_of_n_probabilities, r_bond
from bond_trainer.objectives.base import leave_one_out_mean


def score_gradient(logits: Tensor, coefficients: Tensor) -> Tensor:
    """E over y ~ pi of coefficient(y) * grad log pi(y)."""
    policy = answer_logprobs(logits)
    weights = policy.detach().exp() * coefficients
    return torch.autograd.grad(policy, logits, grad_outputs=weights)[0]


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS.keys())
def test_oracle_15_policy_gradient_against_autograd(rewards: Tensor, n: int):
    logits, reference = parameters(1), answer_logprobs(parameters(2)).detach()
    law = best_of_n_probabilities(reference.exp().numpy(), rewards.numpy(), n)
    exact = kl(answer_logprobs(logits), torch.from_numpy(law).log())
    gradient = torch.autograd.grad(exact, logits)[0]

    reward = torch.from_numpy(r_bond(reference.exp().numpy(), rewards.numpy(), n))
    log_ratio = answer_logprobs(logits).detach() - reference
    by_samples = -(n - 1) * score_gradient(logits, reward - log_ratio / (n - 1))
    torch.testing.assert_close(by_samples, gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS.keys())
def test_oracle_15_autograd_against_finite_differences(rewards: Tensor):
    reference = answer_logprobs(parameters(2)).detach()
    law = torch.from_numpy(
        best_of_n_probabilities(reference.exp().numpy(), rewards.numpy(), 4)
    ).log()
    logits = parameters(1)
    assert torch.autograd.gradcheck(
        lambda values: kl(answer_logprobs(values), law), (logits,), eps=1e-6, atol=1e-8, rtol=0
    )


def test_oracle_15_score_has_mean_zero():
    zero = score_gradient(parameters(4), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-10)


@pytest.mark.parametrize("over", ["batch", "group"])
def test_oracle_15_baseline_leaves_the_mean_gradient_as_it_is(over: str):
    logits = parameters(1)
    policy = answer_logprobs(logits)
    returns = torch.linspace(-3, 1, 9, dtype=torch.float64)
    coefficients = torch.zeros(9, dtype=torch.float64)
    for drawn in itertools.product(range(9), repeat=3):
        return_BP = returns[list(drawn)].reshape(1, 3)
        advantage = return_BP - leave_one_out_mean(return_BP, over)
        probability = policy.detach()[list(drawn)].sum().exp()
        coefficients.index_add_(0, torch.tensor(drawn), probability * advantage.flatten() / 3)
    with_baseline = torch.autograd.grad(policy, logits, grad_outputs=coefficients)[0]
    without = score_gradient(logits, returns)
    torch.testing.assert_close(with_baseline, without, rtol=0, atol=1e-10)
