"""The shipped tokenizer and its chat template."""

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from bond_core.types import Message
from bond_demo.making.tokenizer import (
    decode_answer,
    encode_answer,
    encode_answered,
    encode_prompt,
    render,
    train_tokenizer,
)

TURNS = (
    Message("system", "Be brief."),
    Message("user", "My kettle is late."),
    Message("assistant", "One moment."),
    Message("user", "Well?"),
)


def test_the_template_opens_every_turn_and_closes_the_assistants(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    conversation = (
        "<|bos|><|system|>Be brief.<|user|>My kettle is late."
        "<|assistant|>One moment.<|eos|><|user|>Well?"
    )
    assert render(tokenizer, TURNS, add_generation_prompt=False) == conversation
    assert render(tokenizer, TURNS, add_generation_prompt=True) == conversation + "<|assistant|>"


def test_prompt_and_answer_are_together_what_the_reward_model_reads(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    answer = "Hello, I have opened order 47-82."
    assert encode_answered(tokenizer, TURNS, answer) == [
        *encode_prompt(tokenizer, TURNS),
        *encode_answer(tokenizer, answer),
    ]


def test_role_and_end_tokens_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_prompt(tokenizer, TURNS)
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.pad_token_id not in ids


@pytest.mark.parametrize("text", ["Order 47-82, naïve café €5 🙂", "two  spaces\nand a line"])
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert decode_answer(tokenizer, encode_answer(tokenizer, text)) == text


def test_an_unknown_role_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "tool", "content": "x"}]
    with pytest.raises(TemplateError, match="unknown role: tool"):
        tokenizer.apply_chat_template(turns, tokenize=False)


def test_training_is_deterministic() -> None:
    texts = ["the order is late", "the kettle is late", "order 47-82"] * 3
    first, second = (train_tokenizer(texts).backend_tokenizer.to_str() for _ in range(2))
    assert first == second
