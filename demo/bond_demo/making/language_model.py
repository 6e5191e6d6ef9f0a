"""The reference policy: a small Llama that learns to answer as the grammar does, good and bad."""

import logging
import time
from pathlib import Path
from random import Random

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bond_demo.answers import draw_answer
from bond_demo.making.tokenizer import (
    BOS,
    CONTEXT_TOKENS,
    EOS,
    PAD,
    encode_answer,
    encode_prompt,
    save_tokenizer,
    special_token_id,
)
from bond_demo.making.training_batches import (
    NO_LOSS,
    batches_of_similar_length,
    one_cycle,
    pad_right,
)
from bond_demo.questions import Question

_LOG = logging.getLogger(__name__)

BATCH_SIZE = 64
PEAK_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.01


def small_llama_config(tokenizer: PreTrainedTokenizerFast, layers: int = 4) -> LlamaConfig:
    """The shape of all models of the demo world: about 1.1 million parameters.

    The head size is 32, the smallest that vLLM's attention takes.
    """
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=special_token_id(tokenizer, BOS),
        eos_token_id=special_token_id(tokenizer, EOS),
        pad_token_id=special_token_id(tokenizer, PAD),
        dtype="float32",
    )


def train_language_model(
    tokenizer: PreTrainedTokenizerFast, questions: list[Question], epochs: int, seed: int
) -> LlamaForCausalLM:
    """Maximum likelihood of grammar answers, a fresh one for each question in each epoch."""
    torch.manual_seed(seed)
    rng = Random(seed)
    model = LlamaForCausalLM(small_llama_config(tokenizer))
    model.set_attn_implementation("eager")  # faster than the fused kernel at this size
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY
    )
    prompts = [encode_prompt(tokenizer, question.messages) for question in questions]
    steps_per_epoch = -(-len(questions) // BATCH_SIZE)
    step, started = 0, time.monotonic()
    for _ in range(epochs):
        answers = [encode_answer(tokenizer, draw_answer(rng, question)) for question in questions]
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        for batch in batches_of_similar_length(lengths, BATCH_SIZE, rng):
            _set_rate(optimizer, one_cycle(step, steps_per_epoch * epochs, PEAK_LEARNING_RATE))
            with torch.autocast("cpu", torch.bfloat16):
                loss = _answer_loss(model, [prompts[i] for i in batch], [answers[i] for i in batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 100 == 0:
                _LOG.info(
                    "language model: step %d of %d, loss %.4f nats per token, %.0f s",
                    step, steps_per_epoch * epochs, loss.item(), time.monotonic() - started,
                )  # fmt: skip
    return model.eval()


def save_policy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the policy's folder; its generation settings name the special tokens and no more, so
    that a server that reads them samples from the plain distribution."""
    model.generation_config = GenerationConfig(
        bos_token_id=special_token_id(tokenizer, BOS),
        eos_token_id=special_token_id(tokenizer, EOS),
        pad_token_id=special_token_id(tokenizer, PAD),
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )
    model.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(tokenizer, folder)


def _answer_loss(
    model: LlamaForCausalLM, prompts: list[list[int]], answers: list[list[int]]
) -> torch.Tensor:
    """Mean negative log-likelihood of the answers' tokens, end of sequence included.

    Rows are padded on the right, where causal attention never looks back from, so no mask is
    needed; the final layer is applied at the answers' places alone.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    labels = [
        [*[NO_LOSS] * len(prompt), *answer] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    tokens_BT = pad_right(rows, 0)
    targets_BT = pad_right(labels, NO_LOSS)[:, 1:]
    hidden_BTD = model.model(input_ids=tokens_BT, use_cache=False).last_hidden_state[:, :-1]
    learned_BT = targets_BT != NO_LOSS
    logits = model.lm_head(hidden_BTD[learned_BT])
    return torch.nn.functional.cross_entropy(logits.float(), targets_BT[learned_BT])


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
