"""An exported version loads in PEFT and in transformers, and answers as its probe says."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_training import config_of, prompts_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bond_core.adapters import Manifest, read_manifest
from bond_core.config import BondConfig
from bond_core.errors import AdapterError, ConfigError
from bond_trainer import run_training
from bond_trainer.export import export_adapter, export_merged

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@pytest.fixture
async def trained(tiny_policy_path: Path, tmp_path: Path) -> BondConfig:
    config = config_of(
        tmp_path,
        tiny_policy_path,
        lora={"rank": 8, "alpha": 16},
        evaluation={"every_steps": 4, "num_prompts": 8, "min_prompts": 8},
    )
    await run_training(config, prompts_file=prompts_file(tmp_path), max_steps=4)
    return config


def probed(model: torch.nn.Module, manifest: Manifest) -> list[float]:
    """log P of the probe's answers, by one plain forward each."""
    found: list[float] = []
    for case in manifest.probe:
        ids = torch.tensor([[*case.prompt_token_ids, *case.completion_token_ids]])
        with torch.no_grad():
            law = model(ids).logits[0].log_softmax(-1)
        start = len(case.prompt_token_ids) - 1
        found.append(
            sum(float(law[start + t, token]) for t, token in enumerate(case.completion_token_ids))
        )
    return found


def load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
async def test_both_forms_answer_as_the_probe_says(trained: BondConfig, tmp_path: Path):
    version = trained.adapters_dir / "v0001"
    expected = [case.this for case in read_manifest(version).probe]
    export_adapter(version, trained.model.path, tmp_path / "peft")
    adapted = PeftModel.from_pretrained(load(trained.model.path), str(tmp_path / "peft"))
    manifest = export_merged(version, trained.model.path, "float32", tmp_path / "merged")
    assert probed(adapted, manifest) == pytest.approx(expected, abs=1e-3)
    assert probed(load(tmp_path / "merged"), manifest) == pytest.approx(expected, abs=1e-3)
    reference = [case.reference for case in manifest.probe]
    assert probed(load(trained.model.path), manifest) == pytest.approx(reference, abs=1e-3)
    assert expected != pytest.approx(reference, abs=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert (
        tokenizer.chat_template == AutoTokenizer.from_pretrained(trained.model.path).chat_template
    )
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["r"] in VLLM_RANKS
    assert not settings["modules_to_save"]
    assert not settings["use_dora"]
    assert settings["bias"] == "none"
    card = (tmp_path / "peft" / "README.md").read_text()
    for fact in (manifest.weights_sha256, manifest.base_revision, "| `eta` | 0.1 |", "KL to the"):
        assert fact in card
    assert "library_name: transformers" in (tmp_path / "merged" / "README.md").read_text()


async def test_what_cannot_be_exported_is_refused(trained: BondConfig, tmp_path: Path):
    versions, base = trained.adapters_dir, trained.model.path
    with pytest.raises(AdapterError, match=r"no version v0009 in .*; it has v0001"):
        export_adapter(versions / "v0009", base, tmp_path / "out")
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_adapter(versions / "v0001", base, full)
    other = tmp_path / "other"
    load(base).apply(lambda m: None).save_pretrained(other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(AdapterError, match="made for another base model"):
        export_adapter(versions / "v0001", other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
