"""Tiny real models for tests: a chat policy, a reward model and random LoRA adapters.

Everything is made from fixed seeds in a temporary folder, in the ordinary Hugging Face formats, so
that tests run the same code as deployments do, without downloads.

A policy has 2 layers of width 64, a byte-level vocabulary of 300 tokens and 256 positions. Its
answers are random characters; the end of the answer comes after a few dozen tokens.
"""

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 300
MAX_POSITIONS = 256
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
_CORPUS = "the order is late and the parcel was lost, please help me with the refund today " * 4


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly `VOCAB_SIZE` tokens with a chat template; EOS is `<|end|>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    if len(wrapped) != VOCAB_SIZE:
        raise AssertionError(f"tiny tokenizer has {len(wrapped)} tokens, not {VOCAB_SIZE}")
    return wrapped


def _config(tokenizer: PreTrainedTokenizerFast, **extra: object) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.15,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **extra,
    )


def make_policy(path: Path, seed: int = 0) -> Path:
    """Write a random causal language model with its tokenizer to `path`."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(tokenizer))
    with torch.no_grad():
        # Channel 0 is constant, so that its output weights act as a bias: an end of the answer at
        # a few per cent per token, letters often, other bytes seldom, other specials never.
        model.model.embed_tokens.weight[:, 0] = 6.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        bias = model.lm_head.weight[:, 0]
        bias.zero_()
        vocabulary = tokenizer.get_vocab()
        for token, index in vocabulary.items():
            if token in SPECIAL_TOKENS:
                bias[index] = -4.0
            elif not token.removeprefix("Ġ").isalpha() or not token.removeprefix("Ġ").isascii():
                bias[index] = -0.5
        bias[tokenizer.eos_token_id] = 0.6
    model.eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_reward(path: Path, seed: int = 1, num_labels: int = 1) -> Path:
    """Write a random sequence classifier with its tokenizer to `path`."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(_config(tokenizer, num_labels=num_labels))
    model.eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_adapter(path: Path, seed: int, rank: int = 4, scale: float = 0.05) -> Path:
    """Write a random LoRA of the tiny policy to `path`, as PEFT saves it; returns `path`.

    `scale` is the standard deviation of both factors' entries; the adapter's scaling is 2.
    """
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGET_MODULES)
    with warnings.catch_warnings():
        # PEFT asks transformers by a name that the latter has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        peft_model = get_peft_model(LlamaForCausalLM(_config(make_tokenizer())), config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=scale)
    peft_model.save_pretrained(path, save_embedding_layers=False)
    return path


@pytest.fixture(scope="session")
def tiny_policy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random tiny policy; shared by the session, so do not write into it."""
    return make_policy(tmp_path_factory.mktemp("tiny") / "tiny-policy")


@pytest.fixture(scope="session")
def tiny_reward_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random tiny reward model; shared by the session."""
    return make_reward(tmp_path_factory.mktemp("tiny") / "tiny-reward")
