"""Answers to prompts, as the server sends them."""

from dataclasses import dataclass

from bond_client.reading import Json, Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Milliseconds."""

    generate_ms: float
    score_ms: float
    overhead_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One candidate of a best-of-n selection."""

    index: int
    text: str
    score: float | None
    finish_reason: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BondAnswer:
    """How an answer was made."""

    arm: str
    """`reference`, `bon` or `distilled`."""
    version: str
    """The policy version that sampled."""
    strategy: str
    """`single` or `best_of_n`."""
    best_of: int
    score: float | None
    """Of the first answer; None where nothing was selected."""
    candidates: tuple[Candidate, ...]
    """In order of drawing; empty unless asked for with `return_candidates=True`."""
    timings: Timings
    degraded: str | None
    """Why the answer is not what the strategy promises; None if it is."""
    note: str | None
    experiment: str | None = None
    """Whose split chose the arm; None where the request chose arm or `best_of` itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One returned answer; index 0 is the best."""

    index: int
    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens; `completion_tokens` counts every candidate."""

    prompt_tokens: int
    completion_tokens: int
    chosen_completion_tokens: int
    cost_usd: float | None = None
    """What the answer cost; None where the server has no prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletion:
    """The answer to one prompt."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    bond: BondAnswer
    raw: Json
    """The whole answer, as it came."""

    @property
    def text(self) -> str:
        """The first (best) answer."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedArm:
    """One arm's answer in a comparison."""

    arm: str
    id: str
    version: str
    strategy: str
    best_of: int
    text: str
    finish_reason: str
    score: float | None
    """By the same scorer for every arm."""
    tokens: int
    """All candidates."""
    latency_ms: float
    degraded: str | None
    note: str | None
    cost_usd: float | None = None
    """What the answer cost; None where the server has no prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One prompt, several arms side by side."""

    id: str
    model: str
    arms: tuple[ComparedArm, ...]
    raw: Json


def parse_chat_completion(body: object) -> ChatCompletion:
    """A `chat.completion` with its `bond` object. Raises `BondProtocolError`."""
    answer = Reader(body)
    usage = answer.nested("usage")
    return ChatCompletion(
        id=answer.text("id"),
        created=answer.integer("created"),
        model=answer.text("model"),
        choices=tuple(_choice(choice) for choice in answer.each("choices")),
        usage=Usage(
            prompt_tokens=usage.integer("prompt_tokens"),
            completion_tokens=usage.integer("completion_tokens"),
            chosen_completion_tokens=usage.nested("bond").integer("chosen_completion_tokens"),
            cost_usd=usage.nested("bond").maybe_number("cost_usd"),
        ),
        bond=_bond(answer.nested("bond")),
        raw=answer.raw,
    )


def parse_comparison(body: object) -> Comparison:
    """A `bond.comparison`. Raises `BondProtocolError`."""
    answer = Reader(body)
    return Comparison(
        id=answer.text("id"),
        model=answer.text("model"),
        arms=tuple(_compared(arm) for arm in answer.each("arms")),
        raw=answer.raw,
    )


def _choice(choice: Reader) -> Choice:
    return Choice(
        index=choice.integer("index"),
        text=choice.nested("message").text("content"),
        finish_reason=choice.text("finish_reason"),
    )


def _bond(bond: Reader) -> BondAnswer:
    timings = bond.nested("timings")
    return BondAnswer(
        arm=bond.text("arm"),
        version=bond.text("version"),
        strategy=bond.text("strategy"),
        best_of=bond.integer("best_of"),
        score=bond.maybe_number("score"),
        candidates=tuple(_candidate(item) for item in bond.maybe_each("candidates")),
        timings=Timings(
            generate_ms=timings.number("generate_ms"),
            score_ms=timings.number("score_ms"),
            overhead_ms=timings.number("overhead_ms"),
        ),
        degraded=bond.maybe_text("degraded"),
        note=bond.maybe_text("note"),
        experiment=bond.maybe_text("experiment"),
    )


def _candidate(candidate: Reader) -> Candidate:
    return Candidate(
        index=candidate.integer("index"),
        text=candidate.text("text"),
        score=candidate.maybe_number("score"),
        finish_reason=candidate.text("finish_reason"),
        tokens=candidate.integer("tokens"),
    )


def _compared(arm: Reader) -> ComparedArm:
    return ComparedArm(
        arm=arm.text("arm"),
        id=arm.text("id"),
        version=arm.text("version"),
        strategy=arm.text("strategy"),
        best_of=arm.integer("best_of"),
        text=arm.text("text"),
        finish_reason=arm.text("finish_reason"),
        score=arm.maybe_number("score"),
        tokens=arm.integer("tokens"),
        latency_ms=arm.number("latency_ms"),
        degraded=arm.maybe_text("degraded"),
        note=arm.maybe_text("note"),
        cost_usd=arm.maybe_number("cost_usd"),
    )
