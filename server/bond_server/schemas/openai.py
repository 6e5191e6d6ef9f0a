"""Request bodies in OpenAI's chat-completions dialect.

Closed and strict: a parameter is honoured, or refused by a 400 that names it. `null` means absent.
"""

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bond_core.types import Message, SamplingParams

REFUSED_PARAMETERS = frozenset(
    {
        "audio", "function_call", "functions", "logprobs", "min_p", "modalities", "moderation",
        "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention",
        "reasoning_effort", "repetition_penalty", "response_format", "service_tier", "stream",
        "stream_options", "tool_choice", "tools", "top_logprobs", "verbosity",
        "web_search_options",
    }
)  # fmt: skip
"""Parameters of the dialect (or of engines behind it) that this gateway does not honour yet."""

_DEFAULTS_OF_REFUSED: dict[str, Any] = {
    "functions": [],
    "logprobs": False,
    "response_format": {"type": "text"},
    "stream": False,
    "tools": [],
}
"""Refused parameters that may be sent with the value that asks for nothing."""

_T = TypeVar("_T")

MAX_STOPS = 4
MAX_METADATA_PAIRS = 16
MAX_TOP_K = 1_000_000
"""Beyond every vocabulary."""
MAX_TOKEN_ID_DIGITS = 9


class Body(BaseModel):
    """A request body: no unknown fields, no conversion between types, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        fields = cast(dict[str, object], data)
        return {
            name: value
            for name, value in fields.items()
            if name not in REFUSED_PARAMETERS
            or not (value is None or _asks_for_nothing(name, value))
        }


def _asks_for_nothing(name: str, value: object) -> bool:
    default = _DEFAULTS_OF_REFUSED.get(name)
    return type(value) is type(default) and value == default  # 0 equals False, and is no boolean


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


class ChatMessage(Body):
    """One turn. `developer` is the newer name of `system` and is rendered as it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    def to_message(self) -> Message:
        """The kernel's form."""
        return Message("system" if self.role == "developer" else self.role, self.content)


def _stops_of(value: object) -> object:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Annotated[Text, Field(min_length=1)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_stops_of),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
    Field(max_length=MAX_METADATA_PAIRS),
]
Bias = Annotated[float, Field(ge=-100, le=100)]
Identifier = Annotated[Text, Field(min_length=1, max_length=512)]


class GenerationBody(Body):
    """What every answering route takes: the conversation, sampling, and whom it is for."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=MAX_TOP_K)
    stop: Stops | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[Text, Bias] | None = None
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    metadata: Metadata | None = None
    store: bool | None = None

    @field_validator("logit_bias")
    @classmethod
    def _keys_are_token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) <= MAX_TOKEN_ID_DIGITS):
                shown = key if len(key) <= 40 else f"{key[:40]}…"
                raise PydanticCustomError(
                    "token_id", "keys must be token ids such as '42', got '{key}'", {"key": shown}
                )
        return value

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_length_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        other = info.data.get("max_tokens")
        if None not in (value, other) and value != other:
            raise PydanticCustomError(
                "conflict", "it disagrees with max_tokens; send one of the two"
            )
        return value

    def to_messages(self) -> tuple[Message, ...]:
        """The conversation in the kernel's form."""
        return tuple(message.to_message() for message in self.messages)

    def to_params(self, standard: SamplingParams) -> SamplingParams:
        """The sampling parameters asked for; what is absent is the deployment's standard."""
        limit = self.max_tokens or self.max_completion_tokens or standard.max_tokens
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        return SamplingParams(
            max_tokens=limit,
            temperature=_given(self.temperature, standard.temperature),
            top_p=_given(self.top_p, standard.top_p),
            top_k=_given(self.top_k, standard.top_k),
            presence_penalty=_given(self.presence_penalty, standard.presence_penalty),
            frequency_penalty=_given(self.frequency_penalty, standard.frequency_penalty),
            logit_bias=bias or standard.logit_bias,
            stop=standard.stop if self.stop is None else tuple(self.stop),
            seed=_given(self.seed, standard.seed),
        )


def _given(value: _T | None, default: _T) -> _T:
    return default if value is None else value


class BondOptions(Body):
    """The `bond` object of a request body."""

    return_candidates: bool = False
    """Put every candidate's text and score into the answer."""


class AnswerBody(GenerationBody):
    """A chat-completions body without its model id."""

    n: int | None = Field(default=None, ge=1)
    best_of: int | None = Field(default=None, ge=1)
    bond: BondOptions = BondOptions()

    @field_validator("bond", mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        return BondOptions() if value is None else value


class ChatCompletionRequest(AnswerBody):
    """`POST /v1/chat/completions`."""

    model: Identifier


class ArmCompletionRequest(AnswerBody):
    """`POST /v1/best-of-n` and `/v1/distilled`, which name the arm: `model` may be absent."""

    model: Identifier | None = None


class ComparisonRequest(GenerationBody):
    """`POST /v1/compare`: one prompt, several arms."""

    model: Identifier | None = None
    arms: list[Identifier] = Field(default=["bon", "distilled"], min_length=1, max_length=4)
    """`reference`, `bon`, `distilled`, or `distilled@vN`."""
    best_of: int | None = Field(default=None, ge=1)
    """N of the arm `bon`."""
