"""The words that every package speaks: messages, sampling, completions, candidates.

Frozen dataclasses, for use inside a process; HTTP bodies and configuration are pydantic models
at the edges, rows are SQLAlchemy's in the store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool", "prompt"]
"""`prompt` is raw text that the model continues, without its chat template; it stands alone."""
FinishReason = Literal["stop", "length", "tool_calls"]

REFERENCE_VERSION = "v0000"
"""The policy version that is the reference itself: a zero-delta adapter."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function that the model asks for."""

    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it: it need not be valid."""

    def as_dict(self) -> dict[str, Any]:
        """The OpenAI form."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    name: str | None = None
    tool_call_id: str | None = None
    """Of a `tool` turn: the call that it answers."""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    """Of an `assistant` turn: what it thought before it spoke, which some templates repeat."""

    def as_dict(self) -> dict[str, Any]:
        """The OpenAI and chat-template form."""
        form: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name is not None:
            form["name"] = self.name
        if self.tool_call_id is not None:
            form["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            form["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.reasoning:
            form["reasoning"] = self.reasoning
        return form


Conversation = Sequence[Message]


def raw_prompt(conversation: Conversation) -> str | None:
    """The text that is to be continued as it is, or None for a conversation of turns."""
    if len(conversation) == 1 and conversation[0].role == "prompt":
        return conversation[0].content
    return None


def judged_as(conversation: Conversation) -> Conversation:
    """The conversation as scorers read it: raw text is what a user says."""
    text = raw_prompt(conversation)
    return conversation if text is None else (Message("user", text),)


def _no_bias() -> Mapping[int, float]:
    return MappingProxyType({})


def _nothing_further() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are drawn. Every engine honours every field, per request."""

    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=_no_bias)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    """With a seed, candidate i of a request draws from its own stream (seed, i), so that the
    answer does not depend on what else is in the batch."""
    top_logprobs: int | None = None
    """Alternatives told with each token (`Completion.details`); None tells no details."""
    further: Mapping[str, Any] = field(default_factory=_nothing_further)
    """Fields of the engine's own that it publishes as `EngineInfo.fields` (tools, response format,
    vLLM's parameters), in the form of its HTTP interface; they reach every candidate unchanged."""

    def same_distribution(self, other: "SamplingParams") -> bool:
        """Whether both draw from the same law (neither seed nor details change the law)."""
        return _law_of(self) == _law_of(other)


_law_of = attrgetter(
    *(field.name for field in fields(SamplingParams) if field.name not in ("seed", "top_logprobs"))
)
"""Every parameter that the law of an answer depends on."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been drawn."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenDetail:
    """A drawn token as people read it. At temperature 0 the numbers are the model's own, those of
    temperature 1, and not those of the law that was drawn from, which is a point."""

    token: str
    logprob: float
    top: tuple[Alternative, ...] = ()
    """The most likely tokens, most likely first."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer.

    `logprobs[t]` is the natural log-probability of `token_ids[t]` under the distribution that it
    was drawn from (temperature, truncation, penalties and bias applied). The end-of-sequence
    token, when drawn, is the last token: log-probabilities of an answer are sums that include it.
    `text` never contains special tokens, nor the stop string that ended it.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    details: tuple[TokenDetail, ...] = ()
    """One per token if `SamplingParams.top_logprobs` asks for them."""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    """What an engine's reasoning parser took out of the text."""

    @property
    def logprob(self) -> float:
        """Log-probability of the whole answer, in nats."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Generation:
    """What an engine returns for one prompt: the prompt as the model saw it, and n completions."""

    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of a streamed answer. The last one carries the whole completion."""

    text: str
    completion: Completion | None = None
    prompt_token_ids: tuple[int, ...] = ()
    """The prompt as the model saw it: in the first piece and in the last."""
    details: tuple[TokenDetail, ...] = ()
    """Of the tokens whose text this is, as far as they have come."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Pieces of tool calls in OpenAI's streamed form."""
    reasoning: str = ""
    num_tokens: int = 0
    """Tokens of the answer that have been drawn by now."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the completions competing in a best-of-n selection, with its raw score."""

    index: int
    completion: Completion
    score: float | None


class Arm(StrEnum):
    """An alternative that a request can be answered by."""

    REFERENCE = "reference"
    BON = "bon"
    DISTILLED = "distilled"


class PolicyState(StrEnum):
    """The life of a policy version."""

    CHALLENGER = "challenger"
    CANARY = "canary"
    ACTIVE = "active"
    RETIRED = "retired"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
