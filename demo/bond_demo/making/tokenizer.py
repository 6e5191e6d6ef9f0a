"""The chat tokenizer of the demo world: byte-level BPE of its own questions and answers."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bond_core.types import Conversation, Message

VOCABULARY_SIZE = 1536
CONTEXT_TOKENS = 512

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{ raise_exception('unknown role: ' ~ message['role']) }}"
    "{%- endif -%}"
    "{{ '<|' ~ message['role'] ~ '|>' ~ message['content'] }}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
"""A role token opens each turn; only the assistant's turns are closed, by the end-of-sequence token
that the policy has to draw itself."""


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn the merges from texts; the result does not depend on the machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BOS, EOS, *ROLE_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer so that old and new versions of transformers read it: the template inside
    `tokenizer_config.json`, and the class by the name that all of them know."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for trace_of_loading in ("is_local", "local_files_only"):
        config.pop(trace_of_loading, None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer from a model's folder."""
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def special_token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a special token."""
    return cast("int", tokenizer.convert_tokens_to_ids(token))


def encode_prompt(tokenizer: PreTrainedTokenizerFast, messages: Conversation) -> list[int]:
    """The conversation as the policy sees it when it is about to answer."""
    return _encode(tokenizer, render(tokenizer, messages, add_generation_prompt=True))


def encode_answered(
    tokenizer: PreTrainedTokenizerFast, messages: Conversation, answer: str
) -> list[int]:
    """The conversation with its answer as a reward model sees it, closed by end of sequence."""
    turns = [*messages, Message("assistant", answer)]
    return _encode(tokenizer, render(tokenizer, turns, add_generation_prompt=False))


def encode_answer(tokenizer: PreTrainedTokenizerFast, answer: str) -> list[int]:
    """The tokens that the policy draws for an answer, end of sequence included."""
    return _encode(tokenizer, answer + EOS)


def decode_answer(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> str:
    """The text of drawn tokens, without special tokens."""
    return tokenizer.backend_tokenizer.decode(list(token_ids), skip_special_tokens=True)


def render(
    tokenizer: PreTrainedTokenizerFast, messages: Conversation, *, add_generation_prompt: bool
) -> str:
    """The conversation through the chat template."""
    rendered = tokenizer.apply_chat_template(
        [message.as_dict() for message in messages],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )
    return cast("str", rendered)


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
