"""Answers in OpenAI's chat-completions dialect, with the `bond` object.

They are dictionaries whose keys are typed, not models: what is in them is ours and checked before
it is committed, and to check it again field by field would cost every answer more than to write it
as JSON. The tests hold real answers against these types. A field that need not be there is absent
where it says nothing.
"""

from typing import Literal, NotRequired

from pydantic import BaseModel
from typing_extensions import TypedDict

from bond_core.types import FinishReason


class AnswerFunction(TypedDict):
    """The function that a tool call names."""

    name: str
    arguments: str
    """JSON, as the model wrote it."""


class AnswerToolCall(TypedDict):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: AnswerFunction


class AnswerMessage(TypedDict):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[AnswerToolCall]]
    reasoning: NotRequired[str]
    """What the engine's reasoning parser took out of the answer."""


class TopLogprob(TypedDict):
    """A token that could have been drawn."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A drawn token, with the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(TypedDict):
    """Log-probabilities (nats) of an answer's tokens, the end token included."""

    content: list[TokenLogprob]
    refusal: None


class Choice(TypedDict):
    """One returned answer; index 0 is the best."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class BondUsage(TypedDict):
    """How the completion tokens came about."""

    n: int
    """Candidates that were asked of the engine."""
    ended: int
    """Those of them that ended; a deadline cuts the others off."""
    chosen_completion_tokens: int
    """Tokens of the returned answers alone."""
    cut_completion_tokens: int
    """Tokens of candidates that a deadline cut off."""
    reward_tokens: int
    """Tokens that the scorer read to choose, prompt and answer of each distinct candidate, counted
    as the policy's."""
    cost_usd: NotRequired[float]
    """What the answer cost; only where `prices` are configured."""


class Usage(TypedDict):
    """Tokens. `completion_tokens` counts every candidate, returned or not, ended or cut off."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    bond: BondUsage


class CandidateView(TypedDict):
    """One candidate of a best-of-n selection."""

    index: int
    text: str
    score: float | None
    finish_reason: FinishReason
    tokens: int


class Timings(TypedDict):
    """Milliseconds."""

    queue_ms: float
    """Waiting before the work began."""
    generate_ms: float
    score_ms: float
    commit_ms: float
    """Committing the row, a part of the overhead."""
    overhead_ms: float
    """Everything outside engine and scorer."""


class BondAnswer(TypedDict):
    """How the answer was made."""

    arm: str
    version: str
    experiment: str | None
    """Whose split chose the arm; null where the request chose arm or `best_of` itself."""
    strategy: Literal["single", "best_of_n"]
    best_of: int
    score: float | None
    """Of the first answer, by the scorer; null where nothing was selected."""
    candidates: list[CandidateView] | None
    """In order of drawing; only if the request sets `bond.return_candidates`."""
    timings: Timings
    degraded: str | None
    """Why the answer is not what the strategy promises; null if it is."""
    note: str | None


class PromptAnswer(BondAnswer):
    """How the answers of one prompt among several were made."""

    id: str
    """The id of this prompt's row in the log."""
    usage: Usage


class TextBondAnswer(BondAnswer):
    """How the answer was made; with several prompts, the first one's."""

    prompts: NotRequired[list[PromptAnswer]]
    """Of a request with several prompts: each one's own, in their order."""


class ChatCompletion(TypedDict):
    """`chat.completion` with our additions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    bond: BondAnswer


class TextLogprobs(TypedDict):
    """A list per quantity, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]
    """Where each token begins in the text, in characters."""


class TextChoice(TypedDict):
    """One returned continuation; index 0 is the best. Of several prompts, those of prompt i begin
    at index i times `n`."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(TypedDict):
    """`text_completion` with our additions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage
    bond: TextBondAnswer


class ComparedArm(TypedDict):
    """One arm's answer to the prompt."""

    arm: str
    id: str
    """The completion's id; its row is in the log."""
    version: str
    strategy: Literal["single", "best_of_n"]
    best_of: int
    text: str
    finish_reason: FinishReason
    score: float | None
    """By the same scorer for every arm; null if scoring failed."""
    tokens: int
    """All candidates."""
    cost_usd: NotRequired[float]
    """What the answer cost; only where `prices` are configured."""
    latency_ms: float
    timings: Timings
    degraded: str | None
    note: str | None


class Comparison(TypedDict):
    """One prompt, several arms side by side, in the order asked for."""

    id: str
    object: Literal["bond.comparison"]
    created: int
    model: str
    arms: list[ComparedArm]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The shape of every error."""

    error: ErrorBody
