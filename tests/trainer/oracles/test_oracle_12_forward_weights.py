"""Oracle 12: the forward weights are those of the Best-of-n estimator."""

import pytest
import torch

from bond_core.statistics import best_of_n_weights
from bond_trainer.objectives import (
    forward_weights,
)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_oracle_12_forward_weights_are_those_of_the_estimator(n: int):
    rewards = torch.tensor([[0.4, 1.0, 0.4, 2.0, -1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    weights = forward_weights(rewards, n)
    expected = torch.from_numpy(best_of_n_weights(rewards.numpy(), n))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2).double(), rtol=0, atol=1e-12)
