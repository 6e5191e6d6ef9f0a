"""The estimate's counted parts are what the real objects take, and too much is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import config_of
from transformers import AutoModelForCausalLM

from bond_core.config import BondConfig, SamplingConfig
from bond_trainer.learner import Learner
from bond_trainer.logprobs import TokenRow
from bond_trainer.lora import ANCHOR, POLICY, LoraPair
from bond_trainer.memory import GIB, estimate_memory


def config(folder: Path, model: Path, **trainer: object) -> BondConfig:
    return config_of(folder, model, lora={"rank": 4, "alpha": 8, **trainer})


def size(tensors: list[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("freeze_a", [False, True])
def test_counted_parts_are_the_bytes_of_the_objects(
    tiny_policy_path: Path, tmp_path: Path, freeze_a: bool
) -> None:
    given = config(tmp_path, tiny_policy_path, freeze_a=freeze_a)
    parts = estimate_memory(given).parts
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path, dtype=torch.float32)
    assert parts["base"] == size(list(base.parameters()))
    pair = LoraPair(base, given.trainer.lora)
    both = [*pair.tensors(POLICY).values(), *pair.tensors(ANCHOR).values()]
    assert parts["policy and anchor"] == size(both)
    learner = Learner(pair, given.trainer, SamplingConfig())
    learner.begin("winners", 1)
    learner.learn_from_winners([TokenRow((3, 40), (50, 1))])
    factors = list(pair.factors(POLICY).values())
    moments = [
        tensor
        for state in learner.state()["optimizer"]["state"].values()
        for name, tensor in state.items()
        if name != "step"
    ]
    gradients = [f.grad for f in factors if f.grad is not None]
    assert parts["gradient and optimiser"] == size(gradients) + size(moments)
    assert parts["merged versions"] == 3 * size(list(pair.merged_weights(POLICY).values()))


def test_keys_and_values_by_hand(tiny_policy_path: Path, tmp_path: Path) -> None:
    given = config(tmp_path, tiny_policy_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    shape = model.config
    width = shape.hidden_size // shape.num_attention_heads
    # 160 rows of 512 prompt and 16 answer tokens, in float32
    expected = (
        160 * (512 + 16) * 2 * shape.num_key_value_heads * width * shape.num_hidden_layers * 4
    )
    assert estimate_memory(given).parts["keys and values"] == expected


def test_activations_grow_with_the_micro_batch(tiny_policy_path: Path, tmp_path: Path) -> None:
    given = config(tmp_path, tiny_policy_path)
    twice = given.model_copy(
        update={"trainer": given.trainer.model_copy(update={"micro_batch_tokens": 16384})}
    )
    one, two = (estimate_memory(c).parts["activations"] for c in (given, twice))
    assert two == 2 * one


def test_too_much_is_said_with_what_to_lower(tiny_policy_path: Path, tmp_path: Path) -> None:
    found = estimate_memory(config(tmp_path, tiny_policy_path))
    assert len(found.lines) == 1
    assert f"of {found.available / GIB:.2f} available" in found.lines[0]
    [_, warning] = replace(found, available=1).lines
    assert "trainer.micro_batch_tokens" in warning
