"""What an answer cost, and what all of them did, by the configured prices."""

from collections.abc import Callable

from prometheus_client import Counter

from bond_core.config import PricesConfig
from bond_core.store.records import CompletionRecord
from bond_core.types import Arm
from bond_server.metrics import Metrics

CostOf = Callable[[CompletionRecord], float]
"""USD of one row."""


def pricing_of(prices: PricesConfig, metrics: Metrics) -> CostOf | None:
    """What a row costs, each one that is committed being counted from now on; None, and nothing
    counted, without prices."""
    if not prices.are_set:
        return None
    cost_usd = Counter(
        "bond_cost_usd_total",
        "What answers cost by the configured prices, every candidate counted.",
        ("arm",),
        registry=metrics.registry,
    )

    for arm in Arm:
        cost_usd.labels(arm.value)  # there from the start, for Prometheus to see the first increase

    def cost_of(record: CompletionRecord) -> float:
        prompt_tokens = len(record.prompt_token_ids)
        return prices.cost_usd(prompt_tokens, record.generated_tokens, record.reward_tokens)

    def count(record: CompletionRecord) -> None:
        cost_usd.labels(record.arm.value).inc(cost_of(record))

    metrics.answers.on_answer.append(count)
    metrics.answers.on_failure.append(count)
    return cost_of
