"""BOND at fixed N: the expected gradient of the loss as implemented, by enumeration."""

import pytest
import torch
from mutants import mutant
from pydantic import ValidationError
from sequence_toy import (
    STRICT,
    TIED,
    answer_logprobs,
    expected_gradient,
    kl,
    parameters,
)
from torch import Tensor

from bond_core.best_of_n_law import best_of_n_probabilities, reward_quantiles
from bond_core.config import FixedBondConfig, KlEstimate
from bond_trainer.objectives import bond, bond_loss


def config(n: int, beta: float, k: int, kl_estimate: KlEstimate) -> FixedBondConfig:
    return FixedBondConfig(
        type="bond",
        n=n,
        beta=beta,
        num_anchor_samples=k,
        kl=kl_estimate,
        baseline="none",
        ties="continuous",
    )


def exact_gradient(
    logits: Tensor, anchor_logits: Tensor, rewards: Tensor, n: int, beta: float, k: int
) -> Tensor:
    """Of (1 - beta) KL(Best-of-n || pi) + beta KL(pi || q), where q is what the mean of the
    estimated reward, the logarithm's series cut after k terms, makes of the anchor."""
    policy, anchor = answer_logprobs(logits), answer_logprobs(anchor_logits).detach()
    law = torch.from_numpy(best_of_n_probabilities(anchor.exp().numpy(), rewards.numpy(), n))
    p_le = torch.from_numpy(reward_quantiles(anchor.exp().numpy(), rewards.numpy()).p_le)
    reward = -sum(((1 - p_le) ** j / j for j in range(1, k + 1)), start=torch.zeros(()))
    target = (anchor + (n - 1) * reward).log_softmax(dim=0)
    objective = (1 - beta) * kl(law.log(), policy) + beta * kl(policy, target)
    return torch.autograd.grad(objective, logits)[0]


@pytest.mark.parametrize("kl_estimate", ["sequence", "to_go", "exact"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("n", "k"), [(2, 2), (3, 3), (2, 3)])
@pytest.mark.parametrize("rewards", [STRICT, TIED], ids=["strict", "tied"])
def test_expected_gradient(kl_estimate: KlEstimate, beta: float, n: int, k: int, rewards: Tensor):
    logits, anchor = parameters(1), parameters(2)
    settings = config(n, beta, k, kl_estimate)
    gradient = expected_gradient(
        lambda inputs: bond_loss(inputs, settings), logits, anchor, rewards, k
    )
    exact = exact_gradient(logits, anchor, rewards, n, beta, k)
    torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-10)


def test_the_factor_of_the_backward_term_is_noticed():
    logits, anchor = parameters(1), parameters(2)
    settings = config(3, 0.5, 3, "sequence")
    exact = exact_gradient(logits, anchor, STRICT, 3, 0.5, 3)
    with mutant(bond, "(config.n - 1) * reward_BP", "reward_BP") as wrong:
        gradient = expected_gradient(
            lambda inputs: wrong.bond_loss(inputs, settings), logits, anchor, STRICT, 3
        )
    assert float((gradient - exact).abs().max()) > 1e-3


def test_fewer_samples_than_n_are_refused():
    with pytest.raises(ValidationError, match="num_anchor_samples is 4, fewer than n 8"):
        FixedBondConfig(type="bond", n=8, num_anchor_samples=4)
