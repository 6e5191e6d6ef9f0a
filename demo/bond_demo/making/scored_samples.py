"""Answers of the reference policy as text, and their scores: what several stages need."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from bond_core.types import Conversation
from bond_demo.making.reward_models import score_rows
from bond_demo.making.sampler import Drawn, sample_answers
from bond_demo.making.tokenizer import decode_answer, encode_answered, encode_prompt


@dataclass(frozen=True, slots=True)
class Samples:
    """Answers to several prompts; the inner sequences follow the draws."""

    conversations: Sequence[Conversation]
    prompt_tokens: list[list[int]]
    drawn: list[list[Drawn]]
    texts: list[list[str]]


def draw_samples(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    count: int,
    seed: int,
) -> Samples:
    """`count` answers to each conversation."""
    prompts = [encode_prompt(tokenizer, messages) for messages in conversations]
    drawn = sample_answers(policy, prompts, count, seed)
    texts = [[decode_answer(tokenizer, answer.token_ids) for answer in row] for row in drawn]
    return Samples(conversations, prompts, drawn, texts)


def answered_rows(tokenizer: PreTrainedTokenizerFast, samples: Samples) -> list[list[list[int]]]:
    """Tokens of every conversation with each of its answers, as a reward model reads them."""
    return [
        [encode_answered(tokenizer, messages, text) for text in texts]
        for messages, texts in zip(samples.conversations, samples.texts, strict=True)
    ]


def score_samples(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, samples: Samples
) -> list[list[float]]:
    """Raw scores, shaped as the samples."""
    rows = answered_rows(tokenizer, samples)
    flat = iter(score_rows(model, [row for answered in rows for row in answered]))
    return [[next(flat) for _ in answered] for answered in rows]
