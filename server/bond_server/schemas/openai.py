"""Request bodies in OpenAI's dialect.

Strict: a parameter is honoured, handed to an engine that publishes it, or refused by a 400 that
names it. `null` means absent.
"""

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bond_core.engines.limits import MAX_TOP_LOGPROBS
from bond_core.types import Message, SamplingParams
from bond_server.schemas.messages import Body, ChatMessage, Text

REFUSED_PARAMETERS = frozenset(
    {
        "audio", "function_call", "functions", "modalities", "moderation", "prediction",
        "prompt_cache_key", "prompt_cache_retention", "service_tier", "verbosity",
        "web_search_options",
    }
)  # fmt: skip
"""Parameters of the dialect that neither this gateway nor any engine behind it honours."""

_ASKS_FOR_NOTHING: dict[str, Any] = {
    "functions": [],
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "tools": [],
}
"""Parameters that may be sent with the value that asks for nothing, whoever would honour them."""

_T = TypeVar("_T")

MAX_STOPS = 4
MAX_METADATA_PAIRS = 16
MAX_LENGTH = 2**31 - 1
"""Beyond every context; a number of any size would reach engines and stores that have none."""
MAX_TOP_K = 1_000_000
"""Beyond every vocabulary."""
MAX_TOKEN_ID_DIGITS = 9


def _asks_for_nothing(name: str, value: object) -> bool:
    default = _ASKS_FOR_NOTHING.get(name)
    return value is None or (type(value) is type(default) and value == default)


def _texts_of(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return value
    texts = cast(list[object], value)
    if any(type(item) in (int, list) for item in texts):
        raise PydanticCustomError(
            "texts", "send text: a string, or a list of strings; token ids are not taken"
        )
    return texts


def _stops_of(value: object) -> object:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Annotated[Text, Field(min_length=1)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_stops_of),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1},
                    "maxItems": MAX_STOPS,
                },
            ]
        }
    ),
]
Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
    Field(max_length=MAX_METADATA_PAIRS),
]
Bias = Annotated[float, Field(ge=-100, le=100)]
Identifier = Annotated[Text, Field(min_length=1, max_length=512)]


class SamplingBody(Body):
    """What every answering route takes: sampling, and whom it is for.

    What is not declared here may be a field of the engine's own; see `engine_fields`.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    max_tokens: int | None = Field(default=None, ge=1, le=MAX_LENGTH)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOP_K)
    """-1 is what vLLM calls 0: the whole vocabulary."""
    stop: Stops | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[Text, Bias] | None = None
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    metadata: Metadata | None = None
    store: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        fields = cast(dict[str, object], data)
        return {n: value for n, value in fields.items() if not _asks_for_nothing(n, value)}

    @field_validator("logit_bias")
    @classmethod
    def _keys_are_token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        seen: dict[int, str] = {}
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) <= MAX_TOKEN_ID_DIGITS):
                shown = key if len(key) <= 40 else f"{key[:40]}…"
                raise PydanticCustomError(
                    "token_id", "keys must be token ids such as '42', got '{key}'", {"key": shown}
                )
            if (other := seen.setdefault(int(key), key)) != key:
                raise PydanticCustomError(
                    "token_id",
                    "'{other}' and '{key}' are the same token id: send one of them",
                    {"other": other, "key": key},
                )
        return value

    def to_params(self, standard: SamplingParams) -> SamplingParams:
        """The sampling parameters asked for; what is absent is the deployment's standard."""
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        return SamplingParams(
            max_tokens=self.length_limit or standard.max_tokens,
            temperature=_given(self.temperature, standard.temperature),
            top_p=_given(self.top_p, standard.top_p),
            top_k=max(0, _given(self.top_k, standard.top_k)),
            presence_penalty=_given(self.presence_penalty, standard.presence_penalty),
            frequency_penalty=_given(self.frequency_penalty, standard.frequency_penalty),
            logit_bias=bias or standard.logit_bias,
            stop=standard.stop if self.stop is None else tuple(self.stop),
            seed=_given(self.seed, standard.seed),
            top_logprobs=self.told_logprobs,
        )

    @property
    def length_limit(self) -> int | None:
        """Most tokens of an answer, if the body says."""
        return self.max_tokens

    @property
    def told_logprobs(self) -> int | None:
        """Alternatives to tell with each token; None tells no details."""
        return None


def _given(value: _T | None, default: _T) -> _T:
    return default if value is None else value


class BondOptions(Body):
    """The `bond` object of a request body."""

    return_candidates: bool = False
    """Put every candidate's text and score into the answer."""
    deadline_ms: float | None = Field(default=None, gt=0)
    """After so many milliseconds the best of the candidates that have ended is returned; a 504 if
    none has, as with a single sample."""


class StreamOptions(Body):
    """How a streamed answer is told."""

    include_usage: bool = False
    """Send a last chunk with the usage, and no choices."""
    include_obfuscation: Literal[False] | None = None


class AnsweredBody(SamplingBody):
    """Sampling, and how answers are chosen and sent."""

    n: int | None = Field(default=None, ge=1)
    best_of: int | None = Field(default=None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    bond: BondOptions = Field(default_factory=BondOptions)

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(
        cls, value: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise PydanticCustomError("stream_options", "it needs stream: true")
        return value

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ConversationBody(SamplingBody):
    """A conversation, in turns."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_LENGTH)

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

    @property
    def length_limit(self) -> int | None:
        """The newer name means the same."""
        return self.max_tokens or self.max_completion_tokens


class AnswerBody(ConversationBody, AnsweredBody):
    """A chat-completions body without its model id."""

    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @field_validator("top_logprobs")
    @classmethod
    def _of_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise PydanticCustomError("top_logprobs", "it needs logprobs: true")
        return value

    @property
    def told_logprobs(self) -> int | None:
        """As `logprobs` and `top_logprobs` say."""
        return (self.top_logprobs or 0) if self.logprobs else None


class ChatCompletionRequest(AnswerBody):
    """`POST /v1/chat/completions`."""

    model: Identifier


class ArmCompletionRequest(AnswerBody):
    """`POST /v1/best-of-n` and `/v1/distilled`, which name the arm: `model` may be absent."""

    model: Identifier | None = None


class TextCompletionRequest(AnsweredBody):
    """`POST /v1/completions`: raw text that the model continues."""

    model: Identifier
    prompt: Annotated[
        list[Annotated[Text, Field(min_length=1)]],
        Field(min_length=1),
        BeforeValidator(_texts_of),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {
                        "type": "array",
                        "items": {"type": "string", "minLength": 1},
                        "minItems": 1,
                    },
                ]
            }
        ),
    ]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Literal[False] = False
    suffix: Literal[""] | None = None

    def to_messages(self) -> tuple[Message, ...]:
        """The first text in the kernel's form."""
        return self.conversations()[0]

    def conversations(self) -> list[tuple[Message, ...]]:
        """Each text in the kernel's form."""
        return [(Message("prompt", text),) for text in self.prompt]

    @property
    def told_logprobs(self) -> int | None:
        """As `logprobs` says."""
        return self.logprobs


class ComparisonRequest(ConversationBody):
    """`POST /v1/compare`: one prompt, several arms."""

    model: Identifier | None = None
    arms: list[Identifier] = Field(default=["bon", "distilled"], min_length=1, max_length=4)
    """`reference`, `bon`, `distilled`, or `distilled@vN`."""
    best_of: int | None = Field(default=None, ge=1)
    """N of the arm `bon`."""
