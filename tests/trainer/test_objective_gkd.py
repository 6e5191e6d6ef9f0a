"""GKD: the divergence by hand and at its ends, and the learner's gradient against one graph."""

import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bond_core.config import LoraConfig, SamplingConfig, TrainerConfig
from bond_core.errors import ConfigError
from bond_trainer.learner import Learner
from bond_trainer.lora import POLICY, LoraPair
from bond_trainer.objectives import GkdInputs, gkd_loss
from bond_trainer.objectives.token_divergences import generalised_jsd, kl
from bond_trainer.rollouts import Rollout, RolloutGroup

PROMPT = (3, 40, 41, 42, 1, 4)
ANSWERS = ((50, 51, 52, 1), (60, 61, 1))


def laws(seed: int, tokens: int = 5, vocabulary: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


def test_divergence_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[0.9, 0.1]]).double()
    m = 0.25 * p + 0.75 * q
    expected = 0.25 * (p * (p / m).log()).sum() + 0.75 * (q * (q / m).log()).sum()
    assert float(generalised_jsd(p.log(), q.log(), 0.25)) == pytest.approx(float(expected))
    assert float(kl(p.log(), q.log())) == pytest.approx(0.5 * math.log(0.5 / 0.9 * 0.5 / 0.1))
    assert float(kl(torch.tensor([[0.0, -math.inf]]), p.log())) == pytest.approx(math.log(2))


@pytest.mark.parametrize("beta", [1e-6, 1 - 1e-6])
def test_the_ends_are_the_limits(beta: float):
    """Scaled by what makes it vanish there, the divergence tends to the KL of that end."""
    p, q = laws(1), laws(2)
    scaled = generalised_jsd(p, q, beta) / min(beta, 1 - beta)
    torch.testing.assert_close(scaled, generalised_jsd(p, q, round(beta)), rtol=1e-4, atol=1e-6)
    forward, reverse = kl(p, q), kl(q, p)
    assert torch.equal(generalised_jsd(p, q, 0), forward)
    assert torch.equal(generalised_jsd(p, q, 1), reverse)
    assert float((forward - reverse).abs().max()) > 0.01


def test_every_token_weighs_the_same():
    output = gkd_loss(GkdInputs(torch.tensor([3.0, 1.0]), torch.tensor([6, 2])))
    assert float(output.loss) == 0.5
    assert output.metrics["divergence_per_answer"] == 2.0


def load(path: Path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def learner_of(path: Path, teacher: torch.nn.Module, beta: float) -> Learner:
    @contextmanager
    def using():
        yield teacher

    config = TrainerConfig.model_validate(
        {
            "lora": {"rank": 4, "alpha": 8},
            "learning_rate": 0.02,
            "warmup_steps": 0,
            "max_grad_norm": 1e9,
            "objective": {"type": "gkd", "teacher": str(path), "beta": beta},
        }
    )
    torch.manual_seed(0)
    return Learner(LoraPair(load(path), config.lora), config, SamplingConfig(), using)


def altered(path: Path) -> torch.nn.Module:
    """Another model of the same vocabulary."""
    model = load(path)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.requires_grad_(False)


def law(model: torch.nn.Module, answer: tuple[int, ...]) -> Tensor:
    logits = model(torch.tensor([[*PROMPT, *answer]])).logits[0]
    return logits[len(PROMPT) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_the_update_follows_the_gradient_and_learns(tiny_policy_path: Path, beta: float) -> None:
    teacher = altered(tiny_policy_path)
    learner = learner_of(tiny_policy_path, teacher, beta)
    rollouts = tuple(Rollout(a, (-1.0,) * len(a), 0.0, "") for a in ANSWERS)
    group = RolloutGroup(PROMPT, rollouts, ())

    def divergence() -> Tensor:
        with learner.pair.using(POLICY) as model:
            per_answer = [
                generalised_jsd(law(teacher, answer), law(model, answer), beta).sum()
                for answer in ANSWERS
            ]
        return torch.stack(per_answer).sum() / sum(map(len, ANSWERS))

    factors = list(learner.pair.factors(POLICY).values())
    before = divergence()
    expected = torch.autograd.grad(before, factors)
    report = learner.learn_from_rollouts([group])
    for factor, gradient in zip(factors, expected, strict=True):
        assert factor.grad is not None
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-3, atol=1e-5)
    assert report.metrics["loss"] == pytest.approx(float(before.detach()), rel=1e-3)
    for _ in range(20):
        learner.learn_from_rollouts([group])
    assert float(divergence().detach()) < 0.5 * float(before.detach())


def test_a_teacher_is_needed(tiny_policy_path: Path) -> None:
    config = TrainerConfig.model_validate({"objective": {"type": "gkd"}})
    pair = LoraPair(load(tiny_policy_path), LoraConfig(rank=4))
    with pytest.raises(ConfigError, match="'gkd' needs a teacher"):
        Learner(pair, config, SamplingConfig())
