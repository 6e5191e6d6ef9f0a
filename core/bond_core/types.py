"""The words that every package speaks: messages, sampling, completions, candidates.

Frozen dataclasses, for use inside a process; HTTP bodies and configuration are pydantic models
at the edges, rows are SQLAlchemy's in the store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]

REFERENCE_VERSION = "v0000"
"""The policy version that is the reference itself: a zero-delta adapter."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The OpenAI and chat-template form."""
        return {"role": self.role, "content": self.content}


Conversation = Sequence[Message]


def _no_bias() -> Mapping[int, float]:
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

    def same_distribution(self, other: "SamplingParams") -> bool:
        """Whether both draw from the same law (the seed does not change the law)."""
        return replace(self, seed=None) == replace(other, seed=None)


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
