"""Which models the local engine takes, and what it says of those it does not."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from bond_core.config import LocalEngineConfig, ModelConfig
from bond_core.engines import build_engine
from bond_core.engines.local import LocalEngine
from bond_core.engines.local.loading import end_token_ids
from bond_core.engines.rendering import render_prompt, tokenizer_sha256
from bond_core.errors import InvalidRequestError, ModelLoadError
from bond_core.types import Message, SamplingParams

tiny_policy_path = tiny_models.tiny_policy_path

PROMPT = [Message("user", "Where is my order?")]
SHAPE = {
    "vocab_size": tiny_models.VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "mistral with a window": MistralConfig(**SHAPE, sliding_window=48),
    "gemma": GemmaConfig(**SHAPE),
    "gpt2": GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=128),
    "gpt-neox": GPTNeoXConfig(**SHAPE),
}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose distributions are far from uniform, so that mistakes show."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 6
    return model


@pytest.mark.parametrize("name", CONFIGS)
async def test_architectures_are_computed_exactly(name: str) -> None:
    model = random_model(CONFIGS[name])
    engine = LocalEngine.over(
        model, tiny_models.make_tokenizer(), max_rows=4, max_context_tokens=128, name=name
    )
    await engine.start()
    params = SamplingParams(max_tokens=20, seed=2)
    generation = await engine.generate("v0000", PROMPT, params, n=6)
    for completion in generation.completions:
        tokens = torch.tensor([generation.prompt_token_ids + completion.token_ids])
        with torch.no_grad():
            logits = model(tokens).logits[0, len(generation.prompt_token_ids) - 1 : -1]
        targets = tokens[0, len(generation.prompt_token_ids) :, None]
        expected = logits.log_softmax(-1).gather(1, targets)[:, 0]
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    assert engine.info.max_context_tokens == (48 if "window" in name else 128)
    await engine.close()


async def test_an_architecture_that_reads_masks_otherwise_is_refused() -> None:
    model = random_model(BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4))
    engine = LocalEngine.over(
        model, tiny_models.make_tokenizer(), max_rows=4, max_context_tokens=128, name="bloom"
    )
    with pytest.raises(ModelLoadError, match="not supported by the local engine"):
        await engine.start()


async def test_a_model_with_another_state_than_keys_and_values_is_refused() -> None:
    model = random_model(MambaConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2))
    engine = LocalEngine.over(
        model, tiny_models.make_tokenizer(), max_rows=4, max_context_tokens=128, name="mamba"
    )
    with pytest.raises(ModelLoadError, match="attention"):
        await engine.start()


@pytest.fixture
def folder(tiny_policy_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny policy that a test may spoil."""
    return Path(shutil.copytree(tiny_policy_path, tmp_path / "model"))


async def start_error(path: Path) -> str:
    engine = build_engine(LocalEngineConfig(), ModelConfig(path=path))
    with pytest.raises(ModelLoadError) as caught:
        await engine.start()
    assert str(path) in str(caught.value)
    return str(caught.value)


async def test_what_is_missing_in_a_folder_is_named(folder: Path, tmp_path: Path) -> None:
    assert "does not exist" in await start_error(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "config.json" in await start_error(tmp_path / "empty")
    template = folder / "chat_template.jinja"
    template.rename(tmp_path / "aside")
    assert "chat_template.jinja" in await start_error(folder)
    (tmp_path / "aside").rename(template)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer" in await start_error(folder)
    (folder / "model.safetensors").unlink()
    assert "no weights" in await start_error(folder)


async def test_half_written_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "cannot be loaded as a causal language model" in await start_error(folder)


async def test_a_reward_model_is_no_policy(tmp_path: Path) -> None:
    """transformers would fill the missing output layer with random numbers."""
    path = tiny_models.make_reward(tmp_path / "reward")
    message = await start_error(path)
    assert "lm_head.weight" in message
    assert "LlamaForSequenceClassification" in message


async def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    assert "unheard-of" in await start_error(folder)


def test_every_end_token_ends(tiny_policy_path: Path) -> None:
    model = LlamaForCausalLM(AutoConfig.from_pretrained(tiny_policy_path))
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_path)
    assert end_token_ids(model, tokenizer) == {1}
    model.generation_config.eos_token_id = [7, 8]
    model.config.eos_token_id = 9
    assert end_token_ids(model, tokenizer) == {1, 7, 8, 9}


def test_prompts_are_what_the_chat_template_says(tiny_policy_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_path)
    conversation = [Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "a")]
    expected = tokenizer(
        "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>a<|end|><|assistant|>"
    )
    assert render_prompt(tokenizer, conversation) == expected["input_ids"]


def test_a_template_that_refuses_is_the_callers_mistake(tiny_policy_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_path)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        render_prompt(tokenizer, PROMPT)
    assert caught.value.param == "messages"


def test_the_tokenizers_hash_knows_the_template_and_forgets_padding(tiny_policy_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_path)
    before = tokenizer_sha256(tokenizer)
    tokenizer(["a", "long text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_sha256(tokenizer) == before
    assert tokenizer_sha256(tiny_models.make_tokenizer()) == before
    tokenizer.chat_template += " "
    assert tokenizer_sha256(tokenizer) != before
