"""The events of a stream, for the OpenAPI description."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from bond_core.types import FinishReason
from bond_server.schemas.completion import BondAnswer, ChoiceLogprobs, TextLogprobs, Usage


class Event(BaseModel):
    """Part of an event: what is absent has not been said yet."""

    model_config = ConfigDict(extra="forbid")


class FunctionDelta(Event):
    """A piece of a tool call's function."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Event):
    """A piece of a tool call; pieces of one call have the same index."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta | None = None


class Delta(Event):
    """What is new in the assistant's turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Event):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None
    """In the last piece, which comes after the answer's row is committed."""


class TextChunkChoice(Event):
    """A piece of one continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    """In the last piece, which comes after the answer's row is committed."""


class Chunk(Event):
    """What the chunks of both dialects have."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None
    """With `stream_options.include_usage`: null, but in the last chunk, which has no choices."""
    bond: BondAnswer | None = None
    """In the chunk of a finish reason: how the answer was made."""


class ChatCompletionChunk(Chunk):
    """An event of a streamed `chat.completion`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]


class TextCompletionChunk(Chunk):
    """An event of a streamed `text_completion`."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
