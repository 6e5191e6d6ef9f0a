"""What the forms of an answer share: headers, usage, timings, how it was made."""

from typing import TypedDict

from bond_core.store.records import CompletionRecord
from bond_core.types import Candidate
from bond_server.ids import fingerprint_of
from bond_server.schemas.completion import (
    BondAnswer,
    BondUsage,
    CandidateView,
    Timings,
    Usage,
)
from bond_server.services.ask import Plan
from bond_server.services.draft import Draft
from bond_server.services.generation import Answer, Begun

COST_HEADER = "x-bond-cost-usd"


class Identity(TypedDict):
    """What every form of an answer begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


def plan_headers(begun: Begun) -> dict[str, str]:
    """What is known of an answer before it is drawn."""
    plan = begun.plan
    stream = "tokens" if plan.streams else "buffered"
    return made_by(plan, plan.best_of) | {"x-bond-stream": stream}


def made_by(made: Plan | CompletionRecord, best_of: int) -> dict[str, str]:
    """What answers: arm, version, experiment, and the candidates that are asked of the engine."""
    headers = {
        "x-bond-arm": made.arm.value,
        "x-bond-n": str(best_of),
        "x-bond-adapter": made.version,
    }
    if made.experiment is not None:
        headers["x-bond-experiment"] = made.experiment
    return headers


def answer_headers(answer: Answer) -> dict[str, str]:
    """The `x-bond-…` headers of a whole answer."""
    record = answer.record
    headers = made_by(record, record.best_of) | {
        "x-bond-queue-ms": f"{record.queue_s * 1000:.3f}",
        "x-bond-commit-ms": f"{answer.commit_s * 1000:.3f}",
        "x-bond-overhead-ms": f"{answer.overhead_s * 1000:.3f}",
        "x-bond-generate-ms": f"{record.generate_s * 1000:.3f}",
        "x-bond-score-ms": f"{record.score_s * 1000:.3f}",
    }
    if record.degraded is not None:
        headers["x-bond-degraded"] = record.degraded
    if answer.note is not None:
        headers["x-bond-note"] = answer.note
    if answer.cost_usd is not None:
        headers[COST_HEADER] = usd(answer.cost_usd)
    return headers


def usd(amount: float) -> str:
    """An amount as a plain decimal number: small ones have no exponent in a header."""
    return f"{amount:.12f}".rstrip("0").rstrip(".")


def bond_view(answer: Answer, *, return_candidates: bool) -> BondAnswer:
    """How the answer was made."""
    record = answer.record
    return {
        "arm": record.arm.value,
        "version": record.version,
        "experiment": record.experiment,
        "strategy": answer.strategy,
        "best_of": record.best_of,
        "score": record.score,
        "candidates": [candidate_view(c) for c in record.candidates] if return_candidates else None,
        "timings": timings_view(answer),
        "degraded": record.degraded,
        "note": answer.note,
    }


def identity_of(named: CompletionRecord | Draft, prefix: str) -> Identity:
    """The fields that name an answer, whole or in pieces."""
    return {
        "id": prefix + named.id,
        "created": int(named.created_at),
        "model": named.requested_model,
        "system_fingerprint": fingerprint(named),
    }


def fingerprint(named: CompletionRecord | Draft) -> str:
    """`system_fingerprint`: what the answer depends on besides the request; rows that are as old as
    the first releases have none of their own."""
    version = named.plan.version if isinstance(named, Draft) else named.version
    return named.system_fingerprint or fingerprint_of(version)


def usage_view(answer: Answer) -> Usage:
    """Tokens of all candidates, of the returned ones, and of those that a deadline cut off."""
    record = answer.record
    prompt_tokens, completion_tokens = len(record.prompt_token_ids), record.generated_tokens
    bond: BondUsage = {
        "n": record.best_of,
        "ended": len(record.candidates),
        "chosen_completion_tokens": record.chosen_tokens,
        "cut_completion_tokens": record.cut_tokens,
        "reward_tokens": record.reward_tokens,
    }
    if answer.cost_usd is not None:
        bond["cost_usd"] = answer.cost_usd
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "bond": bond,
    }


def candidate_view(candidate: Candidate) -> CandidateView:
    """One candidate of a selection."""
    return {
        "index": candidate.index,
        "text": candidate.completion.text,
        "score": candidate.score,
        "finish_reason": candidate.completion.finish_reason,
        "tokens": len(candidate.completion.token_ids),
    }


def timings_view(answer: Answer) -> Timings:
    """Where the time went, in milliseconds."""
    record = answer.record
    return {
        "queue_ms": record.queue_s * 1000,
        "generate_ms": record.generate_s * 1000,
        "score_ms": record.score_s * 1000,
        "commit_ms": answer.commit_s * 1000,
        "overhead_ms": answer.overhead_s * 1000,
    }
