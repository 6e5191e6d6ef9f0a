"""The average of adapters is the average of the weights that they make."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bond_core.config import LoraConfig
from bond_core.errors import AdapterError
from bond_trainer.averaging import average_adapters
from bond_trainer.lora import POLICY, LoraPair


def random_pair(model: Path, rank: int, seed: int) -> LoraPair:
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    pair = LoraPair(base, LoraConfig(rank=rank, alpha=2 * rank))
    with torch.no_grad():
        for factor in pair.factors(POLICY).values():
            factor.normal_(std=0.1)
    return pair


def test_merged_weights_are_the_mean_of_merged_weights(tiny_policy_path: Path) -> None:
    pairs = [random_pair(tiny_policy_path, 4, seed) for seed in (1, 2, 3)]
    together = random_pair(tiny_policy_path, 12, seed=4)
    together.load_tensors(POLICY, average_adapters([pair.tensors(POLICY) for pair in pairs]))
    merged = [pair.merged_weights(POLICY) for pair in pairs]
    for name, weight in together.merged_weights(POLICY).items():
        mean = torch.stack([own[name] for own in merged]).mean(dim=0)
        torch.testing.assert_close(weight, mean, rtol=0, atol=1e-6)
        assert not torch.allclose(weight, merged[0][name], atol=1e-2)


def test_adapters_of_other_modules_do_not_average(tiny_policy_path: Path) -> None:
    tensors = random_pair(tiny_policy_path, 4, 0).tensors(POLICY)
    fewer = dict(list(tensors.items())[2:])
    with pytest.raises(AdapterError, match=r"q_proj.*is in one"):
        average_adapters([tensors, fewer])
