"""Oracle 11: the mean of r_J is -log 16 (1 - p_le)^2, and a third is penalised at the start."""

import itertools
import math

import pytest
import torch

from bond_core.best_of_n_law import reward_quantiles
from bond_trainer.objectives.jbond import penalised_reward

LOG_16 = math.log(16)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_oracle_11_mean_penalty_is_the_squared_share_of_better_answers(k: int):
    probs = torch.tensor([0.4, 0.25, 0.2, 0.15], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    draws = torch.cartesian_prod(*[torch.arange(4)] * k)
    weights = probs[draws].prod(dim=-1)
    p_le = torch.from_numpy(reward_quantiles(probs.numpy(), rewards.numpy()).p_le)
    for answer in range(4):
        own = rewards[answer].expand(len(draws), 1)
        mean = float((penalised_reward(own, rewards[draws]).squeeze(-1) * weights).sum())
        assert mean == pytest.approx(float(-LOG_16 * (1 - p_le[answer]) ** 2), abs=1e-10)


def test_oracle_11_penalty_from_pairs_of_anchors():
    anchors = torch.tensor([[1.0, 2.0, 3.0, 3.0]])
    own = torch.tensor([[0.0, 1.0, 1.5, 2.0, 3.0, 4.0]])
    shares = penalised_reward(own, anchors) / -LOG_16
    expected = torch.tensor([[1.0, 3 / 6, 3 / 6, 1 / 6, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-12)


def test_oracle_11_a_third_is_penalised_at_the_start():
    """Policy and anchor alike, continuous rewards: of three, the first is the worst."""
    orders = torch.tensor(list(itertools.permutations([0.0, 1.0, 2.0])))
    rate = penalised_reward(orders[:, :1], orders[:, 1:]).mean() / -LOG_16
    assert float(rate) == pytest.approx(1 / 3, abs=1e-12)
