"""Two ways to put a conversation to a pooling server: as tokens, or as messages.

Tokens are the reward model's own chat template run here, many conversations to a request. For
messages the server runs it, and takes one conversation to a request.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, cast

from bond_core.errors import InvalidRequestError, ScoringError
from bond_core.tokenizing import encode_rendered, load_tokenizer, render_text, rendered
from bond_core.types import Conversation, Message

Input = tuple[int, ...] | tuple[tuple[str, str], ...]
"""A conversation with its answer, comparable: tokens, or (role, content) pairs."""

_REQUESTS_AT_ONCE = 4
"""Full batches under way, so that the server has the next when one is done."""


class Rendering(Protocol):
    """How conversations are sent."""

    @property
    def size(self) -> int:
        """Conversations in one request."""
        ...

    @property
    def at_once(self) -> int:
        """Requests under way at a time."""
        ...

    async def inputs(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[Input]:
        """Each pair as it is sent. Raises `ScoringError` for one that cannot be."""
        ...

    def body(self, inputs: Sequence[Input]) -> dict[str, Any]:
        """The part of a request that says what is scored."""
        ...


class RenderedHere:
    """As tokens, by the template and tokenizer in the reward model's folder."""

    def __init__(self, path: Path, name: str, max_tokens: int | None, batch_size: int) -> None:
        """Raises `ModelLoadError` if the folder has no tokenizer with a chat template."""
        self._tokenizer = load_tokenizer(path)
        self._name = name
        self._max_tokens = max_tokens
        self.size = batch_size
        self.at_once = _REQUESTS_AT_ONCE

    async def inputs(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[Input]:
        """See `Rendering.inputs`; also raises if one is longer than the server takes."""
        return await rendered(
            lambda: [
                self._encoded(index, *pair)
                for index, pair in enumerate(zip(prompts, completions, strict=True))
            ],
            chain(prompts, [[Message("assistant", text) for text in completions]]),
        )

    def body(self, inputs: Sequence[Input]) -> dict[str, Any]:
        """See `Rendering.body`."""
        return {"input": [list(tokens) for tokens in inputs]}

    def _encoded(self, index: int, prompt: Conversation, answer: str) -> Input:
        try:
            text = render_text(self._tokenizer, prompt, answer=answer)
        except InvalidRequestError as error:
            raise ScoringError(f"reward model {self._name}: {error}") from error
        tokens = tuple(encode_rendered(self._tokenizer, text))
        if self._max_tokens is not None and len(tokens) > self._max_tokens:
            raise ScoringError(
                f"completion {index} with its conversation has {len(tokens)} tokens for reward "
                f"model {self._name}, whose server takes {self._max_tokens}: ask for shorter "
                "answers, or start it with a larger --max-model-len, if the model allows"
            )
        return tokens


class RenderedThere:
    """As messages, which the server's own template renders."""

    def __init__(self, name: str, batch_size: int) -> None:
        self._name = name
        self.size = 1
        self.at_once = batch_size

    async def inputs(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[Input]:
        """See `Rendering.inputs`."""
        if not all(prompts):
            raise ScoringError(
                f"reward model {self._name}: messages is empty: send at least one message"
            )
        return [
            (*((message.role, message.content) for message in prompt), ("assistant", answer))
            for prompt, answer in zip(prompts, completions, strict=True)
        ]

    def body(self, inputs: Sequence[Input]) -> dict[str, Any]:
        """See `Rendering.body`."""
        [turns] = cast("Sequence[tuple[tuple[str, str], ...]]", inputs)
        messages = [{"role": role, "content": content} for role, content in turns]
        return {"messages": messages, "add_generation_prompt": False}
