"""Models and tokenizers from local folders in Hugging Face format, or a reason why not; and
conversations as such a tokenizer's chat template writes them.

Nothing is ever fetched. Imports torch and transformers, so only modules that compute import it.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from jinja2.exceptions import TemplateError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from bond_core.errors import InvalidRequestError, ModelLoadError
from bond_core.types import Conversation

_T = TypeVar("_T")

_CHARACTERS_AT_ONCE = 16_384
"""More text than this, some milliseconds' worth, is rendered away from the event loop."""
_CHARACTERS_PER_MESSAGE = 64
"""What the template does for an empty message, as characters of text."""


def check_folder(path: Path) -> None:
    """Raise `ModelLoadError` if `path` is not a folder with a model in it."""
    if not path.is_dir():
        raise ModelLoadError(
            f"the model folder {path} does not exist; give the path of a local folder in Hugging "
            "Face format (nothing is downloaded)"
        )
    if not (path / "config.json").is_file():
        raise ModelLoadError(
            f"{path} has no config.json: it is not a model folder in Hugging Face format"
        )
    patterns = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
    if not any(any(path.glob(pattern)) for pattern in patterns):
        raise ModelLoadError(
            f"{path} has no weights: expected model.safetensors beside config.json"
        )


def load_pretrained(
    auto_class: Any, path: Path, dtype: str, device: str, kind: str, **options: Any
) -> PreTrainedModel:
    """A model of `auto_class` with every weight from the folder.

    transformers fills weights that are missing with random numbers, which would be served; here
    they are an error. `kind` says in the message what was expected.
    """
    try:
        with no_progress_bars():
            module, report = auto_class.from_pretrained(
                path,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
        module = module.to(device).eval().requires_grad_(False)
    except Exception as error:  # any library error here means the same: it cannot be loaded
        raise ModelLoadError(f"{path} cannot be loaded as {kind}: {error}") from error
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        architectures = getattr(AutoConfig.from_pretrained(path), "architectures", None)
        raise ModelLoadError(
            f"{path} is not {kind}: its weights lack {', '.join(missing[:3])}"
            f"{' and more' if len(missing) > 3 else ''} (its config says {architectures})"
        )
    return module


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in `path`, which must have a chat template. Raises `ModelLoadError`."""
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
    turns = [message.as_dict() for message in conversation]
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
        size += sum(len(m.content) + _CHARACTERS_PER_MESSAGE for m in conversation)
        if size > _CHARACTERS_AT_ONCE:
            return await asyncio.to_thread(function)
    return function()


@contextmanager
def no_progress_bars() -> Generator[None]:
    """Keep transformers from drawing its own while it reads or writes weights."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
