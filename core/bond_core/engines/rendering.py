"""From a conversation to the tokens that a model sees, and the identity of that mapping."""

import hashlib
import json
from typing import Any

from bond_core.errors import InvalidRequestError
from bond_core.tokenizing import encode_rendered, render_text
from bond_core.types import Conversation, raw_prompt


def render_prompt(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Token ids of the conversation, up to where the assistant's answer begins.

    `tokenizer` is a transformers tokenizer with a chat template. Raises `InvalidRequestError` if
    the conversation is empty or the template refuses it (some want roles to alternate). Raw text
    goes without the template, with the special tokens that the tokenizer itself adds.
    """
    text = raw_prompt(conversation)
    if text is None:
        return encode_rendered(tokenizer, render_text(tokenizer, conversation))
    token_ids: list[int] = tokenizer(text)["input_ids"]
    if not token_ids:
        raise InvalidRequestError("prompt is empty: send some text", param="prompt")
    return token_ids


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of the tokenizer's serialised form and its chat template.

    Padding and truncation are left out: they are settings of one call, which a process that has
    batched something leaves behind in the serialised form.
    """
    if getattr(tokenizer, "is_fast", False):
        form = json.loads(tokenizer.backend_tokenizer.to_str())
        form.pop("padding", None)
        form.pop("truncation", None)
    else:
        form = {
            "class": type(tokenizer).__name__,
            "vocab": tokenizer.get_vocab(),
            "special": [str(token) for token in tokenizer.all_special_tokens],
        }
    identity = {"tokenizer": form, "chat_template": tokenizer.chat_template}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
