"""Training from models in memory: they train, go on, and are told from one another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import make_policy, make_reward
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from bond_core.errors import ConfigError
from bond_core.fingerprints import model_digest
from bond_trainer import TrainingResult, train
from bond_trainer.loaded_models import kept_copy

PROMPTS = [f"question {number}" for number in range(200)]
SETTINGS: dict[str, Any] = {
    "prompts_per_step": 4,
    "nice": 0,
    "lora": {"rank": 4, "alpha": 8},
    "evaluation": {"num_prompts": 8, "min_prompts": 4, "reference_samples_per_prompt": 4},
    "sampling": {"max_tokens": 8},
}


def loaded(path: Path, auto_class: Any = AutoModelForCausalLM, **options: Any) -> tuple[Any, Any]:
    return auto_class.from_pretrained(path, **options), AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def reward_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reward(tmp_path_factory.mktemp("reward") / "tiny-reward")


def trained(model: Any, tokenizer: Any, reward: Any, out: Path, steps: int) -> TrainingResult:
    return train(
        model, reward, PROMPTS, tokenizer=tokenizer, out_dir=out, max_steps=steps,
        progress=False, **SETTINGS,
    )  # fmt: skip


def losses_of(result: TrainingResult) -> list[float]:
    return [row["train/loss"] for row in result.metrics if "train/loss" in row]


def test_loaded_models_train_as_their_folders_do_and_go_on(
    tiny_policy_path: Path, reward_path: Path, tmp_path: Path
) -> None:
    model, tokenizer = loaded(tiny_policy_path)
    reward = loaded(reward_path, AutoModelForSequenceClassification)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained(model, tokenizer, reward, tmp_path / "memory", 2)
    copies = {file: file.stat().st_mtime_ns for file in (tmp_path / "memory/given").rglob("*")}
    assert len(list((tmp_path / "memory/given").iterdir())) == 2
    result = trained(model, tokenizer, reward, tmp_path / "memory", 3)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "memory/given").rglob("*")} == copies
    from_folders = train(
        tiny_policy_path, reward_path, PROMPTS, out_dir=tmp_path / "folders", max_steps=3,
        progress=False, **SETTINGS,
    )  # fmt: skip
    assert len(losses_of(result)) == 3
    assert losses_of(result) == losses_of(from_folders)
    assert result.evaluation["reward_mean"] == from_folders.evaluation["reward_mean"]
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_another_model_is_refused_in_the_same_folder(
    tiny_policy_path: Path, reward_path: Path, tmp_path: Path
) -> None:
    model, tokenizer = loaded(tiny_policy_path)
    trained(model, tokenizer, reward_path, tmp_path / "out", 1)
    other, _ = loaded(make_policy(tmp_path / "other", seed=5))
    with pytest.raises(ConfigError, match="model"):
        trained(other, tokenizer, reward_path, tmp_path / "out", 2)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    with pytest.raises(ConfigError, match="model"):
        trained(model, tokenizer, reward_path, tmp_path / "out", 2)
    with torch.no_grad():
        model.load_state_dict(loaded(tiny_policy_path)[0].state_dict())
    result = trained(model, tokenizer, reward_path, tmp_path / "out", 2)
    assert [r["step"] for r in result.metrics if "train/loss" in r] == [1, 2]


def test_the_copy_keeps_weights_and_their_type(tiny_policy_path: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(tiny_policy_path, dtype=torch.bfloat16)
    copy = kept_copy(model, tokenizer, tmp_path, "model")
    assert (copy.dtype, copy.name) == ("bfloat16", "tiny-policy")
    read = AutoModelForCausalLM.from_pretrained(copy.path, dtype="auto")
    assert read.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name]), name
    digest = model_digest(copy.path)
    assert kept_copy(model, tokenizer, tmp_path, "model") == copy
    assert model_digest(copy.path) == digest
    assert list(tmp_path.iterdir()) == [copy.path]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_what_cannot_be_used_is_refused_by_name(
    tiny_policy_path: Path, reward_path: Path, tmp_path: Path
) -> None:
    model, tokenizer = loaded(tiny_policy_path)
    reward, its_tokenizer = loaded(reward_path, AutoModelForSequenceClassification)

    def refused(match: str, *given: Any, **options: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            train(*given, PROMPTS, out_dir=tmp_path, progress=False, **options)

    refused("a loaded model needs its tokenizer", model, reward_path)
    refused("leave it out", tiny_policy_path, reward_path, tokenizer=tokenizer)
    refused("a loaded scorer needs its tokenizer", tiny_policy_path, reward)
    refused("a loaded scorer needs its tokenizer", tiny_policy_path, (reward, None))
    refused("model is a Linear", torch.nn.Linear(1, 1), reward_path, tokenizer=tokenizer)
    model.config.quantization_config = {"quant_method": "fp8"}
    refused("is quantised", model, reward_path, tokenizer=tokenizer)
    del model.config.quantization_config
    with pytest.raises(ConfigError, match="float64: use one of float32"):
        kept_copy(loaded(tiny_policy_path, dtype=torch.float64)[0], tokenizer, tmp_path, "model")
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    refused("carries PEFT adapters", wrapped, reward_path, tokenizer=tokenizer)
    assert its_tokenizer.chat_template
    assert not (tmp_path / "given").exists()
