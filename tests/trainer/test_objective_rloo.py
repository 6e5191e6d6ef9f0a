"""RLOO: the expected gradient by enumeration of every pair and triple of samples."""

import itertools

import pytest
import torch
from sequence_toy import STRICT, TIED, answer_logprobs, kl, parameters
from torch import Tensor

from bond_core.config import RlooConfig
from bond_core.errors import ScoringError
from bond_trainer.objectives import RlooInputs, rloo_loss


@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.3])
@pytest.mark.parametrize("rewards", [STRICT, TIED], ids=["strict", "tied"])
def test_expected_gradient(num_samples: int, kl_coefficient: float, rewards: Tensor):
    logits, reference = parameters(1), answer_logprobs(parameters(2)).detach()
    policy = answer_logprobs(logits)
    config = RlooConfig(type="rloo", kl_coefficient=kl_coefficient, num_policy_samples=num_samples)
    total = torch.zeros_like(logits)
    for drawn in itertools.product(range(9), repeat=num_samples):
        y_BP = torch.tensor([drawn])
        inputs = RlooInputs(policy[y_BP], reference[y_BP], rewards[y_BP])
        probability = policy[y_BP].sum().exp().detach()
        gradient = torch.autograd.grad(rloo_loss(inputs, config).loss, logits, retain_graph=True)
        total += probability * gradient[0]
    objective = -(policy.exp() * rewards).sum() + kl_coefficient * kl(policy, reference)
    exact = torch.autograd.grad(objective, logits)[0]
    torch.testing.assert_close(total, exact, rtol=0, atol=1e-10)


def test_loss_by_hand():
    inputs = RlooInputs(
        torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -2.0]]), torch.tensor([[3.0, 1.0]])
    )
    output = rloo_loss(inputs, RlooConfig(type="rloo", kl_coefficient=0.5))
    # returns 3 - .5 and 1: advantages 1.5 and -1.5
    assert float(output.loss) == pytest.approx(-(1.5 * -1.0 + -1.5 * -2.0) / 2)
    assert output.metrics["return_mean"] == pytest.approx(1.75)


def test_what_cannot_be_learned_from_is_refused():
    one = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="raise num_policy_samples"):
        rloo_loss(RlooInputs(one, one, one), RlooConfig(type="rloo"))
    two = torch.zeros(1, 2)
    with pytest.raises(ScoringError, match=r"policy sample at \[0, 1\] is nan"):
        rloo_loss(
            RlooInputs(two, two, torch.tensor([[0.0, float("nan")]])), RlooConfig(type="rloo")
        )


def test_large_rewards_keep_their_differences():
    """In float32, where log-probabilities are, 1e9 and 1e9 + 1 are one number."""
    logprobs = torch.tensor([[-1.0, -2.0]])
    rewards = torch.tensor([[1e9 + 1, 1e9]], dtype=torch.float64)
    output = rloo_loss(RlooInputs(logprobs, logprobs, rewards), RlooConfig(kl_coefficient=0.0))
    assert float(output.loss) == pytest.approx(-(1.0 * -1.0 + -1.0 * -2.0) / 2)
