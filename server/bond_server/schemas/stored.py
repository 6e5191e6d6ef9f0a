"""Stored completions, deletions and exports on the wire."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bond_server.schemas.completion import ChatCompletion
from bond_server.schemas.openai import Metadata


class StoredCompletion(ChatCompletion):
    """A completion with what was asked, as `GET /v1/chat/completions/{id}` gives it."""

    request_id: str
    metadata: dict[str, str]
    input_user: str | None
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    tools: list[Any] | None
    tool_choice: Any | None
    response_format: Any | None
    service_tier: Literal["default"]


class StoredList(BaseModel):
    """A page of stored completions."""

    object: Literal["list"] = "list"
    data: list[StoredCompletion]
    first_id: str | None
    last_id: str | None
    has_more: bool


class StoredMessage(BaseModel):
    """One message of what was asked."""

    id: str
    role: str
    content: str | None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[Any] | None = None
    reasoning: str | None = None
    content_parts: None = None


class StoredMessageList(BaseModel):
    """A page of a stored completion's messages."""

    object: Literal["list"] = "list"
    data: list[StoredMessage]
    first_id: str | None
    last_id: str | None
    has_more: bool


class MetadataUpdate(BaseModel):
    """`POST /v1/chat/completions/{id}`: all pairs are replaced; null leaves none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    metadata: Metadata | None


class StoredDeleted(BaseModel):
    """The answer to a deletion."""

    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    id: str
    deleted: bool = True


class DeletionView(BaseModel):
    """What was deleted for one request."""

    object: Literal["bond.deletion"] = "bond.deletion"
    id: int
    created_at: float
    subject: Literal["completion", "user"]
    subject_hash: str
    """SHA-256 of the user's name, or of the completion's id."""
    num_rows: int
    num_learnable: int
    """Of these, rows that could have been learned from."""
    versions: list[str]
    """Policy versions whose window of the log covers rows that could be learned from."""


class DeletionList(BaseModel):
    """The latest deletions, newest first."""

    object: Literal["list"] = "list"
    data: list[DeletionView]
