"""What is held at once: never a whole batch of logits; and a bfloat16 base, fp32 factors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from bond_core.config import SamplingConfig, TrainerConfig
from bond_core.types import Completion, Generation
from bond_trainer import head
from bond_trainer.kl import kl_to_reference
from bond_trainer.learner import Learner
from bond_trainer.logprobs import TokenRow
from bond_trainer.lora import ANCHOR, POLICY, LoraPair
from bond_trainer.rollouts import Rollout, RolloutGroup

PROMPTS = [(3, 40 + i, 41, 42, 1, 4) for i in range(6)]
ANSWER = (50, 51, 52, 53, 54, 55, 56, 1)
POSITIONS = 5
"""That the head may be applied to at once here."""


def learner_of(path: Path, dtype: torch.dtype = torch.float32) -> Learner:
    config = TrainerConfig.model_validate(
        {"lora": {"rank": 4, "alpha": 8}, "learning_rate": 0.01, "warmup_steps": 0}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return Learner(LoraPair(model, config.lora), config, SamplingConfig())


def groups() -> list[RolloutGroup]:
    def rollout(reward: float) -> Rollout:
        return Rollout(ANSWER, (-6.0,) * len(ANSWER), reward, "")

    return [
        RolloutGroup(p, (rollout(0.5),), tuple(rollout(float(r)) for r in range(3)))
        for p in PROMPTS
    ]


class Widest(TorchDispatchMode):
    """Most rows of any tensor as wide as the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        of_weight = "aten.t." in str(func)  # the head's own weight, transposed
        wide = isinstance(result, torch.Tensor) and result.shape[-1:] == (self.vocabulary,)
        if wide and not of_weight:
            self.rows = max(self.rows, result.numel() // self.vocabulary)
        return result


def test_logits_of_a_whole_batch_are_never_held(
    tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(tiny_policy_path)
    vocabulary = learner.pair.base.config.vocab_size
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", POSITIONS * vocabulary)
    learner.logprobs(POLICY, [TokenRow(PROMPTS[0], ANSWER)])  # the head is tried out on two tokens
    rows = [TokenRow(prompt, ANSWER) for prompt in PROMPTS]
    completion = Completion("", ANSWER, (-6.0,) * len(ANSWER), "stop")
    with Widest(vocabulary) as widest:
        learner.learn_from_rollouts(groups())
        learner.learn_from_winners(rows)
        learner.logprobs(ANCHOR, rows)
        kl_to_reference(learner.pair, POLICY, [Generation(p, (completion,)) for p in PROMPTS], 1.0)
    assert 0 < widest.rows <= POSITIONS
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 10**9)
    with Widest(vocabulary) as widest:
        learner.logprobs(ANCHOR, rows)
    assert widest.rows == len(PROMPTS) * len(ANSWER)  # what it would have been


def test_chunks_change_nothing(tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the gradient: Adam's first step is one of signs, which rounding may turn."""
    found: list[list[torch.Tensor]] = []
    for positions in (1, 10**6):
        learner = learner_of(tiny_policy_path)
        size = positions * learner.pair.base.config.vocab_size
        monkeypatch.setattr(head, "CHUNK_ELEMENTS", size)
        learner.learn_from_rollouts(groups())
        gradients = [factor.grad for factor in learner.pair.factors(POLICY).values()]
        found.append([g for g in gradients if g is not None])
    assert len(found[0]) == len(found[1]) > 0
    for by_one, whole in zip(*found, strict=True):
        torch.testing.assert_close(by_one, whole, rtol=1e-3, atol=1e-5)


def test_a_bfloat16_base_has_float32_factors_that_learn(tiny_policy_path: Path) -> None:
    rows = [TokenRow(prompt, ANSWER) for prompt in PROMPTS]
    exact = learner_of(tiny_policy_path)
    half = learner_of(tiny_policy_path, torch.bfloat16)
    assert half.pair.base.dtype == torch.bfloat16
    assert half.logprobs(None, rows) == pytest.approx(exact.logprobs(None, rows), abs=0.5)
    before = half.logprobs(POLICY, rows)
    half.begin("winners", 10)
    for _ in range(5):
        half.learn_from_winners(rows)
    factors = half.pair.factors(POLICY).values()
    assert all(factor.dtype == torch.float32 for factor in factors)
    assert all(factor.grad is not None and factor.grad.dtype == torch.float32 for factor in factors)
    after = half.logprobs(POLICY, rows)
    assert min(a - b for a, b in zip(after, before, strict=True)) > 1.0
