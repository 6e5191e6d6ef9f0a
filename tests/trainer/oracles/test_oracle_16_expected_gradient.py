"""Oracles 16, 17 and 20: what J-BOND's loss descends, by enumeration of every draw.

And the test of these tests: each likely error, made on purpose, is noticed.
"""

import itertools

import pytest
import torch
from mutants import mutant
from sequence_toy import (
    REWARDS,
    TIED,
    answer_logprobs,
    backward_target,
    exact_gradient,
    exact_objective,
    expected_gradient,
    kl,
    parameters,
)
from torch import Tensor

from bond_core.config import JBondConfig
from bond_trainer.objectives import jbond

ALL_REWARDS = pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS.keys())
PRINTED_SIGN = ("regulariser = (drift_BP", "regulariser = -(drift_BP")


def settings(beta: float, gamma: float) -> JBondConfig:
    return JBondConfig(beta=beta, gamma=gamma, baseline="none")


@ALL_REWARDS
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_oracle_16_expected_gradient(rewards: Tensor, beta: float, gamma: float):
    logits, anchor = parameters(1), parameters(2)
    gradient = expected_gradient(jbond, logits, anchor, rewards, settings(beta, gamma), 2)
    exact = exact_gradient(logits, anchor, rewards, beta, gamma)
    torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_anchor_samples", [3, 4])
@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 0.7), (0.5, 0.7), (1.0, 0.0)])
def test_oracle_16_expected_gradient_from_more_anchors(
    num_anchor_samples: int, beta: float, gamma: float
):
    """The target stays Best-of-2, whatever the number of anchor samples; ties included."""
    logits, anchor = parameters(1), parameters(2)
    gradient = expected_gradient(
        jbond, logits, anchor, TIED, settings(beta, gamma), num_anchor_samples
    )
    exact = exact_gradient(logits, anchor, TIED, beta, gamma)
    torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("baseline", "num_prompts", "num_samples"), [("batch", 2, 1), ("group", 1, 2)]
)
def test_oracle_16_expected_gradient_with_baseline(
    baseline: str, num_prompts: int, num_samples: int
):
    """Draws now touch each other through the baseline, so that each is a batch of its own."""
    logits = parameters(1)
    config = JBondConfig(beta=0.5, gamma=0.7, baseline=baseline, num_policy_samples=num_samples)
    kept = [0, 2, 3]  # three of the nine answers, renormalised, keep the sum short
    policy = answer_logprobs(logits)[kept].log_softmax(dim=0)
    anchor = answer_logprobs(parameters(2)).detach()[kept].log_softmax(dim=0)
    rewards = TIED[kept]
    total = torch.zeros_like(logits)
    for drawn in itertools.product(range(3), repeat=num_prompts * (num_samples + 2)):
        drawn_B = torch.tensor(drawn).reshape(num_prompts, num_samples + 2)
        y_BP, anchors_BK = drawn_B[:, :num_samples], drawn_B[:, num_samples:]
        inputs = jbond.JBondInputs(
            policy_logprobs_BP=policy[y_BP],
            anchor_logprobs_BP=anchor[y_BP],
            forward_logprobs_BK=policy[anchors_BK],
            policy_rewards_BP=rewards[y_BP],
            anchor_rewards_BK=rewards[anchors_BK],
        )
        loss = jbond.jbond_loss(inputs, config).loss
        probability = (policy[y_BP].sum() + anchor[anchors_BK].sum()).exp().detach()
        total += probability * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    objective = exact_objective(policy, anchor, rewards, config.beta, config.gamma)
    exact = torch.autograd.grad(objective, logits)[0]
    torch.testing.assert_close(total, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("original", "replacement"),
    [
        PRINTED_SIGN,
        ("_, not_better = _ranks(policy_rewards_BP", "not_better, _ = _ranks(policy_rewards_BP"),
        ("inputs.anchor_logprobs_BP).detach()", "inputs.anchor_logprobs_BP)"),
        ("(1 - config.beta) * forward", "config.beta * forward"),
        ("-math.log(16)", "-math.log(4)"),
        ("shares[not_better] - shares[worse]", "shares[k - worse] - shares[k - not_better]"),
        ("return_BP = reward_BP - log_ratio_BP", "return_BP = reward_BP + log_ratio_BP"),
        ("return -(weights_BK", "return (weights_BK"),
    ],
    ids=[
        "printed sign of the regulariser",
        "comparison not strict",
        "gradient not stopped",
        "weights of forward and backward swapped",
        "other penalty",
        "worst instead of best",
        "log-ratio rewarded",
        "forward term ascends",
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
def test_oracle_16_notices_errors(original: str, replacement: str):
    logits, anchor = parameters(1), parameters(2)
    exact = exact_gradient(logits, anchor, TIED, 0.25, 0.7)
    sound = expected_gradient(jbond, logits, anchor, TIED, settings(0.25, 0.7), 2)
    torch.testing.assert_close(sound, exact, rtol=0, atol=1e-10)
    with mutant(jbond, original, replacement) as wrong:
        gradient = expected_gradient(wrong, logits, anchor, TIED, settings(0.25, 0.7), 2)
    assert float((gradient - exact).abs().max()) > 1e-3


def regulariser_step(module: object, rewards: Tensor) -> tuple[float, float]:
    """KL(pi || anchor) before and after a small descent step along the gamma term alone."""
    logits, anchor_logits = parameters(1), parameters(2)
    with_gamma, without = (
        expected_gradient(module, logits, anchor_logits, rewards, settings(1.0, gamma), 2)
        for gamma in (1.0, 0.0)
    )
    anchor = answer_logprobs(anchor_logits).detach()
    stepped = logits.detach() - 1e-3 * (with_gamma - without)
    before, after = (kl(answer_logprobs(x).detach(), anchor) for x in (logits, stepped))
    return float(before), float(after)


@ALL_REWARDS
def test_oracle_17_regulariser_descends_towards_the_anchor(rewards: Tensor):
    before, after = regulariser_step(jbond, rewards)
    assert after < before - 1e-5
    with mutant(jbond, *PRINTED_SIGN) as printed:
        before, after = regulariser_step(printed, rewards)
    assert after > before + 1e-5


@ALL_REWARDS
def test_oracle_20_backward_alone_rests_at_its_target(rewards: Tensor):
    """With beta = 1 nothing moves at pi = q_B, which is not Best-of-2."""
    anchor_logits = parameters(2)
    log_q = backward_target(answer_logprobs(anchor_logits), rewards).reshape(3, 3)
    first = log_q.logsumexp(dim=1)
    at_target = torch.cat([first[None], log_q]).requires_grad_()
    gradient = expected_gradient(jbond, at_target, anchor_logits, rewards, settings(1.0, 0.0), 2)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)
