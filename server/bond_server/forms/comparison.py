"""Several arms' answers side by side."""

from bond_server.forms.answer import timings_view
from bond_server.ids import COMPARISON_PREFIX, COMPLETION_PREFIX, uuid7
from bond_server.schemas.completion import ComparedArm, Comparison
from bond_server.services.comparison import ComparedAnswer


def comparison_view(compared: list[ComparedAnswer], selectors: list[str], model: str) -> Comparison:
    """Arms side by side, each under the selector that it was asked for by."""
    return {
        "id": COMPARISON_PREFIX + uuid7(),
        "object": "bond.comparison",
        "created": int(compared[0].answer.record.created_at),
        "model": model,
        "arms": [
            _compared_arm(item, selector)
            for item, selector in zip(compared, selectors, strict=True)
        ],
    }


def _compared_arm(item: ComparedAnswer, selector: str) -> ComparedArm:
    answer, record = item.answer, item.answer.record
    first = answer.returned[0].completion
    view: ComparedArm = {
        "arm": selector,
        "id": COMPLETION_PREFIX + record.id,
        "version": record.version,
        "strategy": answer.strategy,
        "best_of": record.best_of,
        "text": first.text,
        "finish_reason": first.finish_reason,
        "score": item.score,
        "tokens": answer.record.generated_tokens,
        "latency_ms": record.latency_s * 1000,
        "timings": timings_view(answer),
        "degraded": record.degraded,
        "note": answer.note,
    }
    if answer.cost_usd is not None:
        view["cost_usd"] = answer.cost_usd
    return view
