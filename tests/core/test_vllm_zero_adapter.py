"""The adapter of zeros is a LoRA in PEFT's format, and changes nothing."""

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bond_core.engines.vllm.zero_adapter import write_zero_adapter
from bond_core.errors import ModelLoadError


def test_peft_reads_it_and_the_model_stays_the_same(tiny_policy_path: Path, tmp_path: Path) -> None:
    path = write_zero_adapter(tiny_policy_path, tmp_path / "adapters" / "v0000")
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    tokens = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad(), warnings.catch_warnings():
        # PEFT asks transformers by a name that the latter has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        before = base(input_ids=tokens).logits
        adapted = PeftModel.from_pretrained(base, path)
        assert [name for name, _ in adapted.named_parameters() if "lora_B" in name]
        assert torch.equal(adapted(input_ids=tokens).logits, before)


def test_it_is_written_once(tiny_policy_path: Path, tmp_path: Path) -> None:
    path = write_zero_adapter(tiny_policy_path, tmp_path / "v0000")
    written = (path / "adapter_model.safetensors").stat().st_mtime_ns
    assert write_zero_adapter(tiny_policy_path, path) == path
    assert (path / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert [p.name for p in tmp_path.iterdir()] == ["v0000"]


def test_a_model_without_a_known_layer_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="reference_as"):
        write_zero_adapter(tmp_path, tmp_path / "v0000")
