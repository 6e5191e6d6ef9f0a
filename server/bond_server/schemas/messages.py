"""Conversations in OpenAI's dialect: texts, turns, tool calls."""

from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from bond_core.types import Message, ToolCall

_NULL = {"type": "null"}


class Body(BaseModel):
    """Part of a request body: no unknown fields, no conversion between types, no NaN; `null` means
    absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        fields = cast(dict[str, object], data)
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """As the model, and `null` for all that may be absent."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        properties = cast(dict[str, dict[str, Any]], schema.get("properties", {}))
        for name, of_name in properties.items():
            if name not in schema.get("required", ()) and _NULL not in of_name.get("anyOf", ()):
                kept = {key: of_name.pop(key) for key in ("title", "default") if key in of_name}
                properties[name] = {"anyOf": [of_name, _NULL], **kept}
        return reference


def _encodable(text: str) -> str:
    """Refuse half a surrogate pair, which JSON can spell but which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "not_text",
            "character {at} is half of a surrogate pair, which is not text",
            {"at": error.start},
        ) from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


def _text_of(content: object) -> object:
    """A string, or a list of text parts joined by line ends (as vLLM joins them)."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in cast(list[object], content):
        fields = cast(dict[str, object], part) if isinstance(part, dict) else {}
        text = fields.get("text")
        if fields.get("type") != "text" or not isinstance(text, str) or len(fields) != 2:
            raise PydanticCustomError(
                "unsupported_content",
                "content must be a string or a list of {type: 'text', text: string} parts; "
                "other parts are not supported",
            )
        texts.append(text)
    return "\n".join(texts)


Content = Annotated[
    Text,
    BeforeValidator(_text_of),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "null", "description": "only beside tool_calls"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                        "additionalProperties": False,
                    },
                },
            ]
        }
    ),
]


class FunctionCall(Body):
    """The function that a tool call names."""

    name: Text
    arguments: Text
    """JSON, as the model wrote it."""


class MessageToolCall(Body):
    """A call that an earlier turn asked for."""

    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall

    def to_call(self) -> ToolCall:
        """The kernel's form."""
        return ToolCall(self.id, self.function.name, self.function.arguments)


def _content_may_be_absent(schema: dict[str, Any]) -> None:
    """Beside `tool_calls`, which a schema of single fields cannot say."""
    schema["required"] = ["role"]


class ChatMessage(Body):
    """One turn. `developer` is the newer name of `system` and is rendered as it."""

    model_config = ConfigDict(json_schema_extra=_content_may_be_absent)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: Text | None = None
    tool_call_id: Text | None = Field(default=None, validate_default=True)
    tool_calls: list[MessageToolCall] | None = None
    reasoning: Text | None = None
    """What an engine's reasoning parser took out of the turn, as answers have it."""
    reasoning_content: Text | None = None
    """Its older name, by which LiteLLM's proxy gives it to clients, and passes it back."""
    annotations: list[Any] | None = Field(default=None, max_length=0)
    """OpenAI's answers have them; those that are empty say nothing when they are sent back."""
    provider_specific_fields: dict[str, Any] | None = None
    """LiteLLM's proxy adds them to an answer, and they repeat what it was told; not read."""

    @model_validator(mode="before")
    @classmethod
    def _calls_need_no_text(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        fields = cast(dict[str, object], data)
        silent = fields.get("tool_calls") and fields.get("content") is None
        return {**fields, "content": ""} if silent else fields

    @field_validator("tool_call_id")
    @classmethod
    def _of_a_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (info.data.get("role") == "tool") != (value is not None):
            raise PydanticCustomError("tool_call_id", "it belongs to turns of the role tool alone")
        return value

    @field_validator("tool_calls")
    @classmethod
    def _of_an_assistant(
        cls, value: list[MessageToolCall] | None, info: ValidationInfo
    ) -> list[MessageToolCall] | None:
        if value and info.data.get("role") != "assistant":
            raise PydanticCustomError("tool_calls", "they belong to turns of the role assistant")
        return value

    @field_validator("reasoning", "reasoning_content")
    @classmethod
    def _of_a_thinker(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("role") != "assistant":
            raise PydanticCustomError("reasoning", "it belongs to turns of the role assistant")
        if value and (info.data.get("reasoning") or value) != value:
            raise PydanticCustomError("conflict", "it disagrees with reasoning; send one of them")
        return value

    def to_message(self) -> Message:
        """The kernel's form."""
        return Message(
            "system" if self.role == "developer" else self.role,
            self.content,
            self.name,
            self.tool_call_id,
            tuple(call.to_call() for call in self.tool_calls or ()),
            self.reasoning or self.reasoning_content or "",
        )
