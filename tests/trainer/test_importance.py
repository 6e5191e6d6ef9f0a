"""Policy samples of another law count by pi / mu: exactly on toys, and in the learner's own update.

What is compared with are sums over all answers. No correction where the laws are the same changes
no bit.
"""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from enumerable_model import ANSWERS, PROMPT, L, V, fresh_pair
from enumerable_model import token_logprobs as enumerated_logprobs
from sequence_toy import (
    STRICT,
    TIED,
    answer_logprobs,
    backward_target,
    expected_gradient,
    kl,
    parameters,
    toy_jbond_inputs,
)
from tiny_models import make_policy
from torch import Tensor
from transformers import AutoModelForCausalLM

from bond_core.config import (
    FixedBondConfig,
    JBondConfig,
    KlEstimate,
    RlooConfig,
    RolloutsConfig,
    SamplingConfig,
    TrainerConfig,
)
from bond_trainer.learner import Learner
from bond_trainer.logprobs import TokenRow, token_logprobs
from bond_trainer.lora import ANCHOR, POLICY, LoraPair
from bond_trainer.mismatch import mismatch_alarm
from bond_trainer.objectives import RlooInputs, bond_loss, jbond_loss, rloo_loss
from bond_trainer.objectives.jbond import penalised_reward
from bond_trainer.rollouts import Rollout, RolloutGroup
from bond_trainer.updates import UpdateContext, backward

KLS = pytest.mark.parametrize("kl_estimate", ["sequence", "to_go", "exact"])


@KLS
@pytest.mark.parametrize("rewards", [STRICT, TIED], ids=["strict", "tied"])
def test_jbonds_expected_gradient_is_that_of_its_own_samples(
    kl_estimate: KlEstimate, rewards: Tensor
) -> None:
    logits, anchor, sampler = parameters(1), parameters(2), parameters(3)
    config = JBondConfig(kl=kl_estimate, beta=0.5, gamma=0.3, baseline="none")

    def gradient(**given: Any) -> Tensor:
        return expected_gradient(
            lambda inputs: jbond_loss(inputs, config), logits, anchor, rewards, 2, **given
        )

    on_policy = gradient()
    corrected = gradient(sampler=sampler, max_ratio=math.inf)
    torch.testing.assert_close(corrected, on_policy, rtol=0, atol=1e-9)
    assert float((gradient(sampler=sampler) - on_policy).abs().max()) > 0.05
    assert torch.equal(gradient(sampler=logits, max_ratio=2.0), on_policy)


@KLS
def test_bonds_expected_gradient_is_that_of_its_own_samples(kl_estimate: KlEstimate) -> None:
    logits, anchor, sampler = parameters(1), parameters(2), parameters(3)
    config = FixedBondConfig(
        type="bond", n=3, num_anchor_samples=3, baseline="none", kl=kl_estimate
    )

    def gradient(**given: Any) -> Tensor:
        return expected_gradient(
            lambda inputs: bond_loss(inputs, config), logits, anchor, STRICT, 3, **given
        )

    on_policy = gradient()
    corrected = gradient(sampler=sampler, max_ratio=math.inf)
    torch.testing.assert_close(corrected, on_policy, rtol=0, atol=1e-9)
    assert float((gradient(sampler=sampler) - on_policy).abs().max()) > 0.05


def test_truncation_leaves_out_what_is_over_the_bound() -> None:
    """The mean is then over min(pi, bound * mu) in place of pi."""
    logits, anchor_logits, sampler = parameters(1), parameters(2), parameters(3)
    config = JBondConfig(kl="sequence", beta=1.0, baseline="none")
    bound = 1.5
    found = expected_gradient(
        lambda inputs: jbond_loss(inputs, config), logits, anchor_logits, STRICT, 2,
        sampler=sampler, max_ratio=bound,
    )  # fmt: skip
    policy, mu = answer_logprobs(logits), answer_logprobs(sampler).detach()
    anchor = answer_logprobs(anchor_logits).detach()
    measure = torch.minimum(policy.detach().exp(), bound * mu.exp())
    assert 0.3 < float(measure.sum()) < 0.95
    # log q_B and log pi differ from r_J - lr by a constant, which does not vanish under `measure`
    p_le = (STRICT[None, :] <= STRICT[:, None]).double() @ anchor.exp()
    advantage = -math.log(16) * (1 - p_le) ** 2 - (policy - anchor).detach()
    expected = torch.autograd.grad(-(measure * advantage * policy).sum(), logits)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    exact = kl(answer_logprobs(logits), backward_target(anchor, STRICT))
    off = found - torch.autograd.grad(exact, logits)[0]
    assert float(off.abs().max()) > 0.01


def test_a_baseline_of_unweighted_returns_does_not_bias() -> None:
    """Every pair of samples of another law, for J-BOND and RLOO."""
    logits, reference, sampler = parameters(1), parameters(2), parameters(3)
    policy, mu = answer_logprobs(logits), answer_logprobs(sampler).detach()
    before = answer_logprobs(reference).detach()
    ratio = (policy.detach() - mu).exp()
    config = RlooConfig(type="rloo", kl_coefficient=0.3, num_policy_samples=2)
    jbond = JBondConfig(kl="sequence", beta=1.0, baseline="batch")
    rewards = torch.stack([STRICT, STRICT])
    anchors = torch.tensor([[0.0, 0.35]], dtype=torch.float64)
    total, of_jbond = torch.zeros_like(logits), torch.zeros_like(logits)
    for drawn in itertools.product(range(9), repeat=2):
        y_BP = torch.tensor([drawn])
        probability = mu[y_BP].sum().exp()
        inputs = RlooInputs(policy[y_BP], before[y_BP], STRICT[y_BP], ratio[y_BP])
        loss = rloo_loss(inputs, config).loss
        total += probability * torch.autograd.grad(loss, logits, retain_graph=True)[0]
        toy = toy_jbond_inputs(policy, before, STRICT, y_BP, torch.tensor([[0, 1]]))
        toy = replace(toy, anchor_rewards_BK=anchors, policy_ratio_BP=ratio[y_BP])
        loss = jbond_loss(toy, jbond).loss
        of_jbond += probability * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    objective = -(policy.exp() * STRICT).sum() + 0.3 * kl(policy, before)
    exact = torch.autograd.grad(objective, logits, retain_graph=True)[0]
    torch.testing.assert_close(total, exact, rtol=0, atol=1e-9)
    reward = penalised_reward(rewards[:1], anchors)[0]
    objective = kl(policy, before) - (policy.exp() * reward).sum()
    exact = torch.autograd.grad(objective, logits)[0]
    torch.testing.assert_close(of_jbond, exact, rtol=0, atol=1e-9)


def moved_pair() -> tuple[LoraPair, Tensor]:
    """A policy that is not its anchor, over 625 answers, and rewards without ties."""
    pair = fresh_pair()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for factor in pair.factors(POLICY).values():
            factor.add_(0.2 * torch.randn(factor.shape, generator=generator))
    rewards = torch.randn(L, V, generator=generator).double()[torch.arange(L), ANSWERS].sum(-1)
    return pair, rewards


def all_answers(rewards: Tensor) -> RolloutGroup:
    """Every answer once: what a uniform law draws, exactly."""
    rollouts = tuple(
        Rollout(tuple(answer.tolist()), (-math.log(V),) * L, float(reward), "")
        for answer, reward in zip(ANSWERS, rewards, strict=True)
    )
    return RolloutGroup(PROMPT, rollouts, rollouts[100:103])


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "rloo", "kl_coefficient": 0.3, "num_policy_samples": 625},
        *(
            {"beta": 1.0, "gamma": 0.5, "baseline": "none", "kl": kl_estimate}
            for kl_estimate in ("sequence", "to_go", "exact")
        ),
    ],
    ids=lambda settings: settings.get("kl", "rloo"),
)
def test_the_learners_gradient_on_samples_of_a_uniform_law_is_the_exact_one(
    settings: dict[str, Any],
) -> None:
    pair, rewards = moved_pair()
    objective = TrainerConfig.model_validate({"objective": settings}).objective
    context = UpdateContext(pair, 1.0, max_importance_ratio=math.inf)
    group = all_answers(rewards)
    metrics = backward(context, [group], objective)
    factors = list(pair.factors(POLICY).values())
    found = [factor.grad.clone() for factor in factors if factor.grad is not None]
    policy = enumerated_logprobs(pair, POLICY).sum(-1)
    if isinstance(objective, RlooConfig):
        with torch.no_grad(), pair.model.disable_adapter():
            reference = enumerated_logprobs(fresh_pair(), ANCHOR).sum(-1)
        exact = 0.3 * kl(policy, reference) - (policy.exp() * rewards).sum()
        exact = exact * 625 / 624  # a sample compared with the mean of the others, and not of all
    else:
        with torch.no_grad():
            anchor = enumerated_logprobs(pair, ANCHOR).sum(-1)
        of_anchor = torch.tensor([[r.reward for r in group.anchor]], dtype=torch.float64)
        reward = penalised_reward(rewards[None], of_anchor)[0]
        exact = 1.5 * kl(policy, anchor) - (policy.exp() * reward).sum()
    expected = torch.autograd.grad(exact, factors)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for ours, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), gradient.double(), rtol=0, atol=2e-4 * largest)
    with torch.no_grad():
        from_uniform = float((-L * math.log(V) - policy).mean()) / L
    assert metrics["mismatch_kl"] == pytest.approx(from_uniform, rel=1e-4)
    assert metrics["mismatch_k3"] == pytest.approx(from_uniform, rel=1e-4)
    assert metrics["importance_ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert metrics["importance_truncated_share"] == 0


PROMPTS = ((3, 40, 41, 42, 1, 4), (3, 60, 1, 4))
SAMPLES = ((50, 51, 52, 1), (60, 61, 1), (70, 71, 72, 73, 1), (80, 1))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("importance") / "policy")


def learner_of(path: Path, objective: dict[str, Any], *, served: bool) -> Learner:
    torch.manual_seed(0)
    config = TrainerConfig.model_validate(
        {"lora": {"rank": 4, "alpha": 8}, "warmup_steps": 0, "objective": objective}
    )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return Learner(LoraPair(model, config.lora), config, SamplingConfig(), served_rollouts=served)


def drawn_groups(learner: Learner) -> list[RolloutGroup]:
    """With the learner's own log-probabilities, as an engine of the same numbers reports them."""
    rows = [TokenRow(prompt, answer) for prompt in PROMPTS for answer in SAMPLES[:2]]
    with torch.no_grad(), learner.pair.using(POLICY) as model:
        found = iter(token_logprobs(model, rows))
    groups: list[RolloutGroup] = []
    for prompt in PROMPTS:
        policy = [Rollout(a, tuple(next(found).tolist()), len(a) / 3, "") for a in SAMPLES[:2]]
        anchor = [Rollout(a, (-2.0,) * len(a), len(a) / 4, "") for a in SAMPLES]
        groups.append(RolloutGroup(prompt, tuple(policy), tuple(anchor)))
    return groups


@pytest.mark.parametrize(
    "objective",
    [
        {"kl": "exact", "gamma": 0.5},
        {"kl": "to_go"},
        {"type": "bond", "n": 2, "num_anchor_samples": 4, "kl": "sequence"},
        {"type": "rloo"},
    ],
    ids=["exact", "to_go", "bond", "rloo"],
)
def test_where_the_laws_are_the_same_no_bit_changes(
    model_path: Path, objective: dict[str, Any]
) -> None:
    own, served = (learner_of(model_path, objective, served=s) for s in (False, True))
    for _ in range(2):
        plain = own.learn_from_rollouts(drawn_groups(own)).metrics
        corrected = served.learn_from_rollouts(drawn_groups(served)).metrics
        assert {name: corrected[name] for name in plain} == plain
        assert corrected["importance_ratio_mean"] == 1
        assert corrected["mismatch_kl"] == corrected["mismatch_k3"] == 0
        for name, factor in own.pair.factors(POLICY).items():
            assert torch.equal(factor, served.pair.factors(POLICY)[name]), name


def test_distillation_takes_samples_as_they_are_and_reports_the_mismatch(
    model_path: Path,
) -> None:
    """Its loss is over prefixes, whoever drew them: not weighted."""
    settings = {"type": "gkd", "teacher": "active", "num_policy_samples": 2}
    torch.manual_seed(0)
    pair = learner_of(model_path, {}, served=True).pair
    for name, factor in pair.factors(ANCHOR).items():
        if name.endswith(".B"):
            factor.data.normal_(std=0.05)
    objective = TrainerConfig.model_validate({"objective": settings}).objective
    rollouts = tuple(Rollout(a, (-2.0,) * len(a), 0.0, "") for a in SAMPLES[:2])
    groups = [RolloutGroup(PROMPTS[0], rollouts, ())]
    found: list[list[Tensor]] = []
    for bound in (None, 2.0):
        context = UpdateContext(
            pair, 1.0, teacher=lambda: pair.using(ANCHOR), max_importance_ratio=bound
        )
        pair.model.zero_grad(set_to_none=True)
        metrics = backward(context, groups, objective)
        found.append([f.grad.clone() for f in pair.factors(POLICY).values() if f.grad is not None])
        assert ("mismatch_kl" in metrics) == (bound is not None)
    assert len(found[0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_alarm_names_the_limit_and_what_may_be_wrong() -> None:
    config = RolloutsConfig(mismatch_alarm_nats=0.01)
    assert mismatch_alarm({}, config, 0) is None
    assert mismatch_alarm({"mismatch_k3": 0.01}, config, 0) is None
    alarm = mismatch_alarm({"mismatch_k3": 0.02, "mismatch_kl": -0.1}, config, 0)
    assert alarm is not None
    assert "0.02 nats per token" in alarm
    assert "processed_logprobs" in alarm
    assert "max_staleness" not in alarm
    assert "3 updates old" in (mismatch_alarm({"mismatch_k3": 1.0}, config, 3) or "")
