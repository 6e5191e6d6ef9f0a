"""Tokenizers from local folders, and conversations as their chat templates write them.

Nothing is ever fetched. Works without torch: transformers' tokenizers need none.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from jinja2.exceptions import TemplateError

from bond_core.errors import InvalidRequestError, ModelLoadError
from bond_core.types import Conversation, Message

_T = TypeVar("_T")

_CHARACTERS_AT_ONCE = 16_384
"""More text than this, some milliseconds' worth, is rendered away from the event loop."""
_CHARACTERS_PER_MESSAGE = 64
"""What the template does for an empty message, as characters of text."""


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in `path`, which must have a chat template. Raises `ModelLoadError`."""
    from transformers import AutoTokenizer  # takes seconds: only who loads one pays for it

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # as above
        raise ModelLoadError(f"{path} has no tokenizer that can be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise ModelLoadError(
            f"the tokenizer in {path} has no chat template, so conversations cannot be rendered: "
            "add a file chat_template.jinja to the folder (the model's publisher usually has one "
            "for the instruction-tuned variant)"
        )
    return tokenizer


def render_text(tokenizer: Any, conversation: Conversation, *, answer: str | None = None) -> str:
    """The conversation in the template's form: with the answer as last turn if there is one,
    else up to where the answer begins.

    Raises `InvalidRequestError` if the conversation is empty or the template refuses it (some want
    roles to alternate).
    """
    if not conversation:
        raise InvalidRequestError("messages is empty: send at least one message", param="messages")
    turns = [_as_turn(message) for message in conversation]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=answer is None
        )
    except TemplateError as error:
        raise InvalidRequestError(
            f"the model's chat template refuses these messages: {error}", param="messages"
        ) from error


def _as_turn(message: Message) -> dict[str, Any]:
    """The message as templates read it: some know its reasoning by an older name, and vLLM gives
    them both."""
    older = {"reasoning_content": message.reasoning} if message.reasoning else {}
    return message.as_dict() | older


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """Tokens of rendered text; the template has written the special tokens already."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


async def rendered(function: Callable[[], _T], conversations: Iterable[Conversation]) -> _T:
    """What the function returns, which renders and encodes these conversations.

    It runs in another thread if they are long: megabytes take seconds, in which the event loop
    would answer nobody else.
    """
    size = 0
    for conversation in conversations:
        size += sum(_characters(message) for message in conversation)
        if size > _CHARACTERS_AT_ONCE:
            return await asyncio.to_thread(function)
    return function()


def _characters(message: Message) -> int:
    calls = sum(len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning) + calls + _CHARACTERS_PER_MESSAGE
