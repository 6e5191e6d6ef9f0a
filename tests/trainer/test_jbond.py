"""J-BOND's parts by hand, and what it refuses."""

import math

import pytest
import torch
from jbond_inputs import inputs

from bond_core.config import JBondConfig
from bond_trainer.objectives import (
    RolloutInputs,
    forward_weights,
    jbond_loss,
    winners_loss,
)
from bond_trainer.objectives.base import leave_one_out_mean
from bond_trainer.objectives.winners import winner_indices

LOG_16 = math.log(16)


def test_loss_and_metrics_by_hand():
    """Two prompts, one policy sample: the first is worse than both anchors, the second is not."""
    batch = RolloutInputs(
        policy_logprobs_BPT=torch.tensor([[-3.0], [-2.0]], dtype=torch.float64).unsqueeze(-1),
        anchor_logprobs_BPT=torch.tensor([[-2.5], [-4.0]], dtype=torch.float64).unsqueeze(-1),
        forward_logprobs_BK=torch.tensor([[-1.0, -7.0], [-6.0, -5.0]], dtype=torch.float64),
        policy_rewards_BP=torch.tensor([[0.0], [1.0]]),
        anchor_rewards_BK=torch.tensor([[2.0, 1.0], [1.0, 3.0]]),
    )
    output = jbond_loss(batch, JBondConfig(kl="sequence", beta=0.25, gamma=2.0, baseline="batch"))
    forward = (1.0 + 5.0) / 2  # winners are the first and the second anchor sample
    returns = [-LOG_16 + 0.5, 0.0 - 2.0]
    advantages = [returns[0] - returns[1], returns[1] - returns[0]]
    backward = -(advantages[0] * -3.0 + advantages[1] * -2.0) / 2
    drifts = [-0.5 - 2.0, 2.0 + 0.5]
    regulariser = (drifts[0] * -3.0 + drifts[1] * -2.0) / 2
    expected = 0.75 * forward + 0.25 * backward + 2.0 * regulariser
    assert float(output.loss) == pytest.approx(expected, abs=1e-12)
    assert output.metrics == pytest.approx(
        {
            "loss": expected,
            "loss_forward": forward,
            "loss_backward": backward,
            "loss_regulariser": regulariser,
            "penalty_rate": 0.5,
            "return_mean": sum(returns) / 2,
            "log_ratio_mean": 0.75,
            "log_ratio_abs_max": 2.0,
            "tie_rate": 0.25,
            "quantile_mean": 0.125,
            "reward_policy_mean": 0.5,
            "reward_anchor_mean": 1.75,
        },
        abs=1e-12,
    )


def test_rows_of_weight_zero_are_not_read():
    batch = inputs(torch.tensor([[0.0]]), torch.tensor([[1.0, 2.0, 0.5]]))
    assert forward_weights(batch.anchor_rewards_BK).tolist()[0][2] == 0
    assert batch.forward_logprobs_BK is not None
    forward = batch.forward_logprobs_BK.detach().clone()
    config = JBondConfig(kl="sequence", beta=0.5)
    full = jbond_loss(batch, config).loss
    forward[0, 2] = math.nan
    sparse_forward = forward.requires_grad_()
    sparse = RolloutInputs(
        policy_logprobs_BPT=batch.policy_logprobs_BPT,
        anchor_logprobs_BPT=batch.anchor_logprobs_BPT,
        forward_logprobs_BK=sparse_forward,
        policy_rewards_BP=batch.policy_rewards_BP,
        anchor_rewards_BK=batch.anchor_rewards_BK,
    )
    loss = jbond_loss(sparse, config).loss
    loss.backward()
    assert torch.equal(loss, full)
    assert sparse_forward.grad is not None
    assert sparse_forward.grad[0].tolist() == pytest.approx([-1 / 6, -2 / 6, 0])


def test_identical_answers_of_a_group_are_ties():
    output = jbond_loss(inputs(torch.ones(1, 1), torch.ones(1, 4)), JBondConfig(kl="sequence"))
    assert output.metrics["tie_rate"] == 1
    assert output.metrics["penalty_rate"] == 0
    assert forward_weights(torch.ones(1, 4)).tolist() == [[0.25] * 4]


def test_leave_one_out_means():
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert leave_one_out_mean(values, "none").tolist() == [[0, 0], [0, 0]]
    assert leave_one_out_mean(values, "group").tolist() == [[2, 1], [6, 3]]
    assert leave_one_out_mean(values, "batch").tolist() == [
        pytest.approx([11 / 3, 10 / 3]),
        pytest.approx([3, 2]),
    ]
    assert leave_one_out_mean(torch.tensor([[5.0]]), "batch").tolist() == [[0]]


def test_forward_pass_is_not_needed_for_beta_1():
    batch = inputs(torch.zeros(2, 1), torch.ones(2, 2))
    without = RolloutInputs(
        policy_logprobs_BPT=batch.policy_logprobs_BPT,
        anchor_logprobs_BPT=batch.anchor_logprobs_BPT,
        forward_logprobs_BK=None,
        policy_rewards_BP=batch.policy_rewards_BP,
        anchor_rewards_BK=batch.anchor_rewards_BK,
    )
    assert torch.equal(
        jbond_loss(without, JBondConfig(kl="sequence", beta=1)).loss,
        jbond_loss(batch, JBondConfig(kl="sequence", beta=1)).loss,
    )
    with pytest.raises(ValueError, match=r"beta below 1 .* not None"):
        jbond_loss(without, JBondConfig(kl="sequence", beta=0.5))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="of the same prompts"):
        jbond_loss(inputs(torch.zeros(2, 1), torch.zeros(3, 2)), JBondConfig(kl="sequence"))
    with pytest.raises(ValueError, match="at least 2 anchor samples"):
        jbond_loss(inputs(torch.zeros(2, 1), torch.zeros(2, 1)), JBondConfig(kl="sequence"))
    with pytest.raises(ValueError, match="raise num_policy_samples"):
        jbond_loss(
            inputs(torch.zeros(2, 1), torch.zeros(2, 2)),
            JBondConfig(kl="sequence", baseline="group"),
        )


def test_winners_loss_is_the_mean_of_sums():
    logprobs = torch.tensor([-10.0, -2.0, -6.0], requires_grad=True)
    output = winners_loss(logprobs)
    output.loss.backward()
    assert output.loss.item() == 6
    assert output.metrics == {"loss_forward": 6.0}
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1 / 3] * 3)
    with pytest.raises(ValueError, match="at least one winner"):
        winners_loss(torch.zeros(0))


def test_winner_is_the_first_of_the_best():
    rewards = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -1.0, 5.0]])
    assert winner_indices(rewards).tolist() == [1, 0, 2]
