"""What the store keeps, as plain values: the rest of the code never sees a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bond_core.holdout import Split
from bond_core.types import Arm, Candidate, Message, PolicyState, SamplingParams

CompletionStatus = Literal["ok", "failed", "cancelled"]
Source = Literal["traffic", "seed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a request says of itself, beside what it asks."""

    user: str | None = None
    safety_identifier: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """The caller's own pairs, kept with the content; rows are found by them."""
    digest: str | None = None
    """Of caller, route, unit header and body, where the client numbers its attempts."""
    retry: int = 0
    """0 for a first attempt, k for the k-th time that the client sent it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRecord:
    """One request as it was answered, with all its candidates."""

    id: str
    """UUIDv7, as the answer's `id` names it."""
    created_at: float
    """Unix seconds at arrival."""
    requested_model: str
    arm: Arm
    version: str
    """The policy version that sampled (the reference's for Best-of-N of the reference)."""
    experiment: str | None = None
    """Whose split chose the arm; None where the request chose arm or N, and in rows of releases
    that did not say."""
    best_of: int
    """Candidates drawn."""
    n: int = 1
    """Answers returned."""
    messages: tuple[Message, ...]
    """Empty if content is not kept."""
    params: SamplingParams
    standard_sampling: bool
    """Drawn from the configured standard distribution."""
    split: Split
    may_train: bool
    """Consent and content are there."""
    unit: str
    """What the assignment hashed (user or session), or the request's own id."""
    key: str | None = None
    """Id of the API key that asked; None while the deployment has none."""
    keep_content: bool = True
    """Whether the store may keep prompt and answers; decided before the row is written, and no
    column of it."""
    prompt_token_ids: tuple[int, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    cut_tokens: int = 0
    """Tokens of candidates that a deadline cut off; they are no candidates, and were drawn."""
    chosen: tuple[int, ...] = ()
    """Indices of the candidates that were returned, best first."""
    status: CompletionStatus = "ok"
    degraded: str | None = None
    """Why the answer is not what the strategy promises (scoring failed, deadline)."""
    error: str | None = None
    source: Source = "traffic"
    queue_s: float = 0.0
    generate_s: float = 0.0
    score_s: float = 0.0
    latency_s: float = 0.0
    """Arrival to answer, without the commit."""
    score: float | None = None
    """The scorer's number for the first answer; set after the answer for single samples."""
    judge_score: float | None = None
    gold_score: float | None = None
    log_ratio: float | None = None
    """log policy(answer) - log reference(answer), nats; never clipped. None for Best-of-N."""
    origin: Origin = Origin()
    system_fingerprint: str | None = None
    """As the answer has it: the gateway's version and the policy's."""
    stored: bool = False
    """Whether the caller may list it: content kept, and asked for (`store`)."""
    redacted: bool = False
    """The words are not those that were sent, so nothing is measured on them or learned."""
    superseded: bool = False
    """The client sent the request again: another row counts for it. Set by the store."""
    seq: int = 0
    """Position in the log; set by the store."""

    @property
    def only_calls_tools(self) -> bool:
        """Whether the first answer has no text that a scorer could read."""
        first = next((c.completion for c in self.candidates if c.index == self.chosen[0]), None)
        return first is not None and bool(first.tool_calls) and not first.text

    @property
    def total_tokens(self) -> int:
        """Tokens that the request took: the prompt once, and all that were drawn."""
        return len(self.prompt_token_ids) + self.generated_tokens

    @property
    def generated_tokens(self) -> int:
        """Tokens that were drawn: of every candidate, and of those that were cut off."""
        return sum(len(c.completion.token_ids) for c in self.candidates) + self.cut_tokens

    @property
    def reward_tokens(self) -> int:
        """Tokens that the scorer read to choose, counted as the policy's: prompt and answer of each
        candidate that has a score, equal ones once."""
        scored = {
            c.completion.text: len(c.completion.token_ids)
            for c in self.candidates
            if c.score is not None
        }
        return len(self.prompt_token_ids) * len(scored) + sum(scored.values())

    @property
    def chosen_tokens(self) -> int:
        """Tokens of the answers that were returned."""
        by_index = {c.index: c for c in self.candidates}
        kept = (by_index[i] for i in self.chosen if i in by_index)  # none after content's lifetime
        return sum(len(candidate.completion.token_ids) for candidate in kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecord:
    """One policy version and where it stands."""

    version: str
    state: PolicyState
    path: str
    """Directory of the adapter; empty for the reference."""
    parent: str | None
    step: int
    created_at: float
    updated_at: float
    reason: str = ""
    """Why it is in this state."""
    evaluation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the gate saw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """One evaluation of one version (or of the learner at a step) on one held-out half."""

    version: str
    step: int
    split: Split
    created_at: float
    metrics: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """The trainer's state as it last reported it."""

    run_id: str
    state: Literal["starting", "waiting", "training", "evaluating", "stopped", "failed"]
    step: int
    started_at: float
    heartbeat_at: float
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    """Rows seen, used and left out, by reason."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """Numbers found out about a completion after it was answered; None leaves the row's own."""

    id: str
    score: float | None = None
    judge_score: float | None = None
    gold_score: float | None = None
    log_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """Traffic of one arm, aggregated."""

    arm: Arm
    requests: int
    failed: int
    score_mean: float | None
    gold_mean: float | None
    log_ratio_mean: float | None
    tokens_per_answer: float | None
    """Tokens generated per request, all candidates counted."""
    latency_p50_s: float | None
    latency_p95_s: float | None
    cancelled: int = 0
    """Given up by the client; neither answered nor failed."""
    version: str | None = None
    """Set when the traffic is told apart by policy version too."""
