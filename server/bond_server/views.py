"""From an answer to its wire form and its headers."""

from bond_core.types import Candidate
from bond_server.ids import COMPARISON_PREFIX, COMPLETION_PREFIX, fingerprint_of, uuid7
from bond_server.schemas.completion import (
    AnswerMessage,
    BondAnswer,
    BondUsage,
    CandidateView,
    ChatCompletion,
    Choice,
    ComparedArm,
    Comparison,
    Timings,
    Usage,
)
from bond_server.services.comparison import ComparedAnswer
from bond_server.services.generation import Answer


def completion_view(answer: Answer, *, return_candidates: bool) -> ChatCompletion:
    """The `chat.completion` of an answer."""
    record = answer.record
    return ChatCompletion(
        id=COMPLETION_PREFIX + record.id,
        created=int(record.created_at),
        model=record.requested_model,
        system_fingerprint=record.system_fingerprint or fingerprint_of(record.version),
        choices=[
            Choice(
                index=index,
                message=AnswerMessage(content=candidate.completion.text),
                finish_reason=candidate.completion.finish_reason,
            )
            for index, candidate in enumerate(answer.returned)
        ],
        usage=_usage(answer),
        bond=BondAnswer(
            arm=record.arm.value,
            version=record.version,
            strategy=answer.strategy,
            best_of=record.best_of,
            score=record.score,
            candidates=[_candidate(c) for c in record.candidates] if return_candidates else None,
            timings=_timings(answer),
            degraded=record.degraded,
            note=answer.note,
        ),
    )


def completion_headers(answer: Answer) -> dict[str, str]:
    """The `x-bond-…` headers of an answer."""
    record, timings = answer.record, _timings(answer)
    headers = {
        "x-bond-arm": record.arm.value,
        "x-bond-n": str(record.best_of),
        "x-bond-policy": record.version,
        "x-bond-overhead-ms": f"{timings.overhead_ms:.3f}",
        "x-bond-generate-ms": f"{timings.generate_ms:.3f}",
        "x-bond-score-ms": f"{timings.score_ms:.3f}",
    }
    if record.degraded is not None:
        headers["x-bond-degraded"] = record.degraded
    if answer.note is not None:
        headers["x-bond-note"] = answer.note
    return headers


def comparison_view(compared: list[ComparedAnswer], selectors: list[str], model: str) -> Comparison:
    """Arms side by side, each under the selector that it was asked for by."""
    return Comparison(
        id=COMPARISON_PREFIX + uuid7(),
        created=int(compared[0].answer.record.created_at),
        model=model,
        arms=[
            _compared_arm(item, selector)
            for item, selector in zip(compared, selectors, strict=True)
        ],
    )


def _compared_arm(item: ComparedAnswer, selector: str) -> ComparedArm:
    answer, record = item.answer, item.answer.record
    first = answer.returned[0].completion
    return ComparedArm(
        arm=selector,
        id=COMPLETION_PREFIX + record.id,
        version=record.version,
        strategy=answer.strategy,
        best_of=record.best_of,
        text=first.text,
        finish_reason=first.finish_reason,
        score=item.score,
        tokens=_all_tokens(answer),
        latency_ms=record.latency_s * 1000,
        timings=_timings(answer),
        degraded=record.degraded,
        note=answer.note,
    )


def _all_tokens(answer: Answer) -> int:
    return sum(len(c.completion.token_ids) for c in answer.record.candidates)


def _usage(answer: Answer) -> Usage:
    prompt_tokens, completion_tokens = len(answer.record.prompt_token_ids), _all_tokens(answer)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        bond=BondUsage(
            n=answer.record.best_of, chosen_completion_tokens=answer.record.chosen_tokens
        ),
    )


def _candidate(candidate: Candidate) -> CandidateView:
    return CandidateView(
        index=candidate.index,
        text=candidate.completion.text,
        score=candidate.score,
        finish_reason=candidate.completion.finish_reason,
        tokens=len(candidate.completion.token_ids),
    )


def _timings(answer: Answer) -> Timings:
    record = answer.record
    return Timings(
        generate_ms=record.generate_s * 1000,
        score_ms=record.score_s * 1000,
        overhead_ms=answer.overhead_s * 1000,
    )
