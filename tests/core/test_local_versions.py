"""Versions: merged adapters equal PEFT's, replaced ones never mix, wrong ones are refused."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from bond_core.config import LocalEngineConfig, ModelConfig
from bond_core.engines.local import LocalEngine
from bond_core.errors import AdapterError
from bond_core.types import Message, SamplingParams

tiny_policy_path = tiny_models.tiny_policy_path

PROMPT = [Message("user", "Where is my order?")]
SEEDED = SamplingParams(max_tokens=60, seed=3, logit_bias={1: -100.0})
PEFT_WARNING = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
async def engine(tiny_policy_path: Path) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(
        LocalEngineConfig(max_rows=16, max_adapters=2), ModelConfig(path=tiny_policy_path)
    )
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def adapter_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.tiny_adapter(tmp_path_factory.mktemp("adapters") / "one", seed=1)


@pytest.fixture
def altered(adapter_path: Path, tmp_path: Path) -> Path:
    """A copy of the adapter that a test may spoil."""
    return Path(shutil.copytree(adapter_path, tmp_path / "altered"))


def logprobs_of(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


def edit_config(path: Path, **values: object) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@PEFT_WARNING
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 5}},
    ],
)
async def test_a_merged_adapter_is_what_peft_computes(
    engine: LocalEngine, tiny_policy_path: Path, altered: Path, settings: dict[str, object]
) -> None:
    edit_config(altered, **settings)
    await engine.load_adapter("v0001", altered)
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    peft_model = PeftModel.from_pretrained(base, altered).eval()
    prompt, tokens = [5, 80, 90, 100], list(range(60, 90))
    expected = logprobs_of(peft_model, prompt, tokens)
    found = await engine.token_logprobs("v0001", prompt, [tokens])
    assert found[0] == pytest.approx(expected, abs=1e-4)
    reference = await engine.token_logprobs("v0000", prompt, [tokens])
    with peft_model.disable_adapter():
        assert reference[0] == pytest.approx(logprobs_of(peft_model, prompt, tokens), abs=1e-4)
    assert abs(sum(reference[0]) - sum(expected)) > 0.1


@PEFT_WARNING
async def test_transposed_weights_merge_too(tmp_path: Path) -> None:
    """GPT-2 stores its linear maps as [in, out]."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=2, n_positions=128)
    model = GPT2LMHeadModel(config).eval()
    engine = LocalEngine.over(
        model, tiny_models.make_tokenizer(), max_rows=4, max_context_tokens=128, name="gpt2"
    )
    lora = LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    peft_model = get_peft_model(model, lora).eval()
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    peft_model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    await engine.start()
    await engine.load_adapter("v0001", tmp_path / "adapter")
    prompt, tokens = [5, 80, 90], list(range(60, 80))
    found = await engine.token_logprobs("v0001", prompt, [tokens])
    assert found[0] == pytest.approx(logprobs_of(peft_model, prompt, tokens), abs=1e-4)
    await engine.close()


@PEFT_WARNING
async def test_an_engine_over_a_peft_model_serves_its_frozen_base(tiny_policy_path: Path) -> None:
    """The trainer's model: adapters injected, in training mode, sharing storage."""
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    prompt, tokens = [5, 80, 90], list(range(60, 80))
    expected = logprobs_of(base.eval(), prompt, tokens)
    peft_model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "up_proj"])).train()
    engine = LocalEngine.over(
        peft_model, tiny_models.make_tokenizer(), max_rows=4, max_context_tokens=128, name="tiny"
    )
    await engine.start()
    found = await engine.token_logprobs("v0000", prompt, [tokens])
    assert found[0] == pytest.approx(expected, abs=1e-4)

    merged: dict[str, Tensor] = {}
    state = dict(base.named_parameters())
    for name, parameter in state.items():
        if name.endswith("lora_A.default.weight"):
            other = state[name.replace("lora_A", "lora_B")]
            with torch.no_grad():
                other.normal_(std=0.1)
            module = name.removesuffix(".lora_A.default.weight")
            scaling = 8 / 2
            weight = state[f"{module}.base_layer.weight"]
            merged[f"{module}.weight"] = weight.detach() + scaling * (other @ parameter).detach()
    engine.publish("policy", merged)
    found = await engine.token_logprobs("policy", prompt, [tokens])
    assert found[0] == pytest.approx(logprobs_of(peft_model.eval(), prompt, tokens), abs=1e-4)
    await engine.close()


def one_layer(scale: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(int(scale * 10))
    noise = torch.randn(64, 64, generator=generator) * scale
    return {"model.layers.1.self_attn.q_proj.weight": noise}


async def test_running_rows_end_on_the_weights_they_started_with(engine: LocalEngine) -> None:
    engine.publish("policy", one_layer(0.3))
    old = await engine.generate("policy", PROMPT, SEEDED, n=2)
    running = asyncio.create_task(engine.generate("policy", PROMPT, SEEDED, n=2))
    async with asyncio.timeout(60):
        while engine.running_rows < 2:  # noqa: ASYNC110, it changes in another thread
            await asyncio.sleep(0.001)
    engine.publish("policy", one_layer(0.9))
    new, still_old = await asyncio.gather(engine.generate("policy", PROMPT, SEEDED, n=2), running)
    for one, other in zip(old.completions, still_old.completions, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert new.completions[0].token_ids != old.completions[0].token_ids
    again = await engine.generate("policy", PROMPT, SEEDED, n=2)
    assert again.completions[0].token_ids == new.completions[0].token_ids


async def test_a_dropped_version_ends_what_it_runs(engine: LocalEngine) -> None:
    engine.publish("policy", one_layer(0.3))
    expected = await engine.generate("policy", PROMPT, SEEDED)
    running = asyncio.create_task(engine.generate("policy", PROMPT, SEEDED))
    await asyncio.sleep(0)
    await engine.drop_adapter("policy")
    assert (await running).completions[0].token_ids == expected.completions[0].token_ids
    assert await engine.loaded_versions() == ["v0000"]


async def test_published_weights_are_copied(engine: LocalEngine) -> None:
    weights = one_layer(0.3)
    engine.publish("policy", weights)
    expected = await engine.generate("policy", PROMPT, SEEDED)
    next(iter(weights.values())).zero_()
    assert await engine.generate("policy", PROMPT, SEEDED) == expected


async def test_the_reference_is_back_after_other_versions(engine: LocalEngine) -> None:
    before = await engine.generate("v0000", PROMPT, SEEDED)
    engine.publish("policy", one_layer(0.5))
    await engine.generate("policy", PROMPT, SEEDED)
    after = await engine.generate("v0000", PROMPT, SEEDED)
    assert before == after


async def test_what_does_not_fit_is_not_published(engine: LocalEngine) -> None:
    with pytest.raises(AdapterError, match="nowhere"):
        engine.publish("policy", {"nowhere.weight": torch.zeros(1)})
    with pytest.raises(AdapterError, match="shape"):
        engine.publish("policy", {"model.norm.weight": torch.zeros(3)})
    with pytest.raises(AdapterError, match="finite"):
        engine.publish("policy", {"model.norm.weight": torch.full((64,), float("nan"))})
    with pytest.raises(AdapterError, match="reference"):
        engine.publish("v0000", {})
    assert await engine.loaded_versions() == ["v0000"]


async def test_no_more_adapters_than_configured(engine: LocalEngine, adapter_path: Path) -> None:
    await engine.load_adapter("v0001", adapter_path)
    await engine.load_adapter("v0002", adapter_path)
    with pytest.raises(AdapterError, match="max_adapters"):
        await engine.load_adapter("v0003", adapter_path)
    await engine.drop_adapter("v0001")
    await engine.load_adapter("v0003", adapter_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"peft_type": "IA3"}, "LoRA"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"alpha_pattern": {"q_proj(": 8}}, "is no pattern"),
    ],
)
async def test_other_kinds_of_adapter_are_refused(
    engine: LocalEngine, altered: Path, settings: dict[str, object], named: str
) -> None:
    edit_config(altered, **settings)
    with pytest.raises(AdapterError, match=named):
        await engine.load_adapter("v0001", altered)


async def test_damaged_adapters_are_refused(engine: LocalEngine, altered: Path) -> None:
    file = altered / "adapter_model.safetensors"
    tensors = load(file.read_bytes())
    whole = file.read_bytes()

    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="half written"):
        await engine.load_adapter("v0001", altered)

    some = next(key for key in tensors if "lora_A" in key)
    save_file({key: t for key, t in tensors.items() if key != some}, file)
    with pytest.raises(AdapterError, match="lacks one of the two"):
        await engine.load_adapter("v0001", altered)

    save_file(tensors | {some: tensors[some][:, :7].contiguous()}, file)
    with pytest.raises(AdapterError, match="another base model"):
        await engine.load_adapter("v0001", altered)

    save_file({key.replace("layers.1", "layers.9"): t for key, t in tensors.items()}, file)
    with pytest.raises(AdapterError, match=r"layers\.9"):
        await engine.load_adapter("v0001", altered)

    save_file(tensors | {some: torch.full_like(tensors[some], float("inf"))}, file)
    with pytest.raises(AdapterError, match="not finite"):
        await engine.load_adapter("v0001", altered)

    (altered / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="cannot be read"):
        await engine.load_adapter("v0001", altered)
    assert await engine.loaded_versions() == ["v0000"]
