"""A real Llama small enough to enumerate: five tokens, answers of four, 625 of them, with LoRA."""

import itertools

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bond_core.config import LoraConfig
from bond_trainer.lora import AdapterName, LoraPair

V, L = 5, 4
PROMPT = (0,)
ANSWERS = torch.tensor(list(itertools.product(range(V), repeat=L)))


def fresh_pair() -> LoraPair:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    return LoraPair(LlamaForCausalLM(config).eval(), LoraConfig(rank=4, alpha=8))


def token_logprobs(pair: LoraPair, name: AdapterName) -> Tensor:
    """Of every token of every answer, (625, L)."""
    ids = torch.cat([torch.tensor(PROMPT).expand(len(ANSWERS), 1), ANSWERS], dim=1)
    with pair.using(name) as model:
        laws = model(ids[:, :-1]).logits.double().log_softmax(-1)
    return laws.gather(-1, ANSWERS[..., None])[..., 0]
