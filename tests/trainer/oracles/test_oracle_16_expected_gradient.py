"""Oracles 16, 17 and 20: what J-BOND's loss descends, by enumeration of every draw.

And the test of these tests: each likely error, made on purpose, is noticed.
"""

import itertools
from contextlib import AbstractContextManager
from dataclasses import fields
from types import ModuleType

import pytest
import torch
from mutants import mutant_seen_by
from sequence_toy import (
    REWARDS,
    TIED,
    LossOf,
    answer_logprobs,
    backward_target,
    exact_gradient,
    exact_objective,
    expected_gradient,
    kl,
    parameters,
)
from torch import Tensor

from bond_core.config import JBondConfig, KlEstimate
from bond_trainer.objectives import ObjectiveOutput, RolloutInputs, anchored, jbond, ranks

ALL_REWARDS = pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS.keys())
PRINTED_SIGN = (
    jbond,
    "config.beta * backward + config.gamma * regulariser",
    "config.beta * backward - config.gamma * regulariser",
)
ESTIMATES = pytest.mark.parametrize("kl_estimate", ["sequence", "to_go", "exact"])


def loss_of(
    beta: float, gamma: float, kl_estimate: KlEstimate = "sequence", module: ModuleType = jbond
) -> LossOf:
    config = JBondConfig(kl=kl_estimate, beta=beta, gamma=gamma, baseline="none")

    def loss(inputs: RolloutInputs) -> ObjectiveOutput:
        own = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
        return module.jbond_loss(module.RolloutInputs(**own), config)

    return loss


@ALL_REWARDS
@ESTIMATES
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_oracle_16_expected_gradient(
    rewards: Tensor, kl_estimate: KlEstimate, beta: float, gamma: float
):
    logits, anchor = parameters(1), parameters(2)
    gradient = expected_gradient(loss_of(beta, gamma, kl_estimate), logits, anchor, rewards, 2)
    exact = exact_gradient(logits, anchor, rewards, beta, gamma)
    torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-10)


@ESTIMATES
@pytest.mark.parametrize("num_anchor_samples", [3, 4])
@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 0.7), (0.5, 0.7), (1.0, 0.0)])
def test_oracle_16_expected_gradient_from_more_anchors(
    kl_estimate: KlEstimate, num_anchor_samples: int, beta: float, gamma: float
):
    """The target stays Best-of-2, whatever the number of anchor samples; ties included."""
    logits, anchor = parameters(1), parameters(2)
    gradient = expected_gradient(
        loss_of(beta, gamma, kl_estimate), logits, anchor, TIED, num_anchor_samples
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
    config = JBondConfig(
        kl="sequence", beta=0.5, gamma=0.7, baseline=baseline, num_policy_samples=num_samples
    )
    kept = [0, 2, 3]  # three of the nine answers, renormalised, keep the sum short
    policy = answer_logprobs(logits)[kept].log_softmax(dim=0)
    anchor = answer_logprobs(parameters(2)).detach()[kept].log_softmax(dim=0)
    rewards = TIED[kept]
    total = torch.zeros_like(logits)
    for drawn in itertools.product(range(3), repeat=num_prompts * (num_samples + 2)):
        drawn_B = torch.tensor(drawn).reshape(num_prompts, num_samples + 2)
        y_BP, anchors_BK = drawn_B[:, :num_samples], drawn_B[:, num_samples:]
        inputs = RolloutInputs(
            policy_logprobs_BPT=policy[y_BP].unsqueeze(-1),
            anchor_logprobs_BPT=anchor[y_BP].unsqueeze(-1),
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


MUTATIONS = {
    "printed sign of the regulariser": PRINTED_SIGN,
    "comparison not strict": (
        jbond,
        "_, not_better = ranks(policy_rewards_BP",
        "not_better, _ = ranks(policy_rewards_BP",
    ),
    "gradient not stopped": (
        anchored,
        "(self.policy_logprobs_BPT - self.anchor_logprobs_BPT).detach()",
        "(self.policy_logprobs_BPT - self.anchor_logprobs_BPT)",
    ),
    "weights of forward and backward swapped": (
        jbond,
        "(1 - config.beta) * forward",
        "config.beta * forward",
    ),
    "other penalty": (jbond, "-math.log(16)", "-math.log(4)"),
    "worst instead of best": (
        ranks,
        "shares[not_better] - shares[worse]",
        "shares[k - worse] - shares[k - not_better]",
    ),
    "log-ratio rewarded": (
        anchored,
        "reward_BP.unsqueeze(-1) - later_BPT",
        "reward_BP.unsqueeze(-1) + later_BPT",
    ),
    "forward term ascends": (ranks, "return -(weights_BK", "return (weights_BK"),
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
def test_oracle_16_notices_errors(mutation: tuple[ModuleType, str, str]):
    logits, anchor = parameters(1), parameters(2)
    exact = exact_gradient(logits, anchor, TIED, 0.25, 0.7)
    sound = expected_gradient(loss_of(0.25, 0.7), logits, anchor, TIED, 2)
    torch.testing.assert_close(sound, exact, rtol=0, atol=1e-10)
    with mutated(*mutation) as wrong:
        gradient = expected_gradient(loss_of(0.25, 0.7, module=wrong), logits, anchor, TIED, 2)
    assert float((gradient - exact).abs().max()) > 1e-3


EXACT_MUTATIONS = {
    "control variate without its KL": (
        anchored,
        "return forward + inputs.anchor_kl_BK.mean()",
        "return forward",
    ),
    "control variate of another weight": (ranks, "weights_BK - 1 /", "weights_BK - 2 /"),
    "KL to the anchor forgotten": (
        anchored,
        "return regulariser - reward_term",
        "return -reward_term",
    ),
}


@pytest.mark.parametrize("mutation", EXACT_MUTATIONS.values(), ids=EXACT_MUTATIONS.keys())
def test_oracle_16_notices_errors_of_the_exact_kl(mutation: tuple[ModuleType, str, str]):
    logits, anchor = parameters(1), parameters(2)
    exact = exact_gradient(logits, anchor, TIED, 0.25, 0.7)
    with mutated(*mutation) as wrong:
        gradient = expected_gradient(loss_of(0.25, 0.7, "exact", wrong), logits, anchor, TIED, 2)
    assert float((gradient - exact).abs().max()) > 1e-3


def mutated(
    module: ModuleType, original: str, replacement: str
) -> AbstractContextManager[ModuleType]:
    """`jbond` with an error in it, or in what it is made of."""
    chain = [ranks, anchored, jbond]
    return mutant_seen_by(module, original, replacement, chain[chain.index(module) + 1 :])


def regulariser_step(module: ModuleType, rewards: Tensor) -> tuple[float, float]:
    """KL(pi || anchor) before and after a small descent step along the gamma term alone."""
    logits, anchor_logits = parameters(1), parameters(2)
    with_gamma, without = (
        expected_gradient(loss_of(1.0, gamma, module=module), logits, anchor_logits, rewards, 2)
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
    with mutated(*PRINTED_SIGN) as printed:
        before, after = regulariser_step(printed, rewards)
    assert after > before + 1e-5


@ALL_REWARDS
def test_oracle_20_backward_alone_rests_at_its_target(rewards: Tensor):
    """With beta = 1 nothing moves at pi = q_B, which is not Best-of-2."""
    anchor_logits = parameters(2)
    log_q = backward_target(answer_logprobs(anchor_logits), rewards).reshape(3, 3)
    first = log_q.logsumexp(dim=1)
    at_target = torch.cat([first[None], log_q]).requires_grad_()
    gradient = expected_gradient(loss_of(1.0, 0.0), at_target, anchor_logits, rewards, 2)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)
