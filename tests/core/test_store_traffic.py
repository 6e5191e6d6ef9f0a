"""Traffic per arm: hand-computed means, counts and quantiles."""

from typing import Any

import pytest
from stored import best_of_n, candidate, completion

from bond_core.store import ArmSummary, Store
from bond_core.types import Arm


def distilled(id: str, **changes: Any) -> Any:
    return completion(id, arm=Arm.DISTILLED, version="v0001", **changes)


async def test_an_empty_log_has_no_arms(store: Store) -> None:
    assert await store.completions.summarise() == []


async def test_each_arm_is_summarised_by_itself(store: Store) -> None:
    rows = [
        best_of_n("b1", 4, latency_s=0.4, gold_score=1.0),  # score 3, 12 tokens
        best_of_n("b2", 2, latency_s=0.2),  # score 1, 6 tokens
        distilled("d1", score=2.0, log_ratio=1.0, latency_s=0.1),
        distilled("d2", score=4.0, log_ratio=-0.5, latency_s=0.3, candidates=(candidate(0, 9),)),
        distilled("d3", latency_s=0.2),  # not scored yet
        distilled("d4", status="failed", score=100.0, latency_s=30.0, candidates=()),
        distilled("d5", status="cancelled", latency_s=20.0),
        completion("seed", score=50.0, source="seed"),
    ]
    await store.completions.record_many(rows)

    assert await store.completions.summarise() == [
        ArmSummary(
            arm=Arm.BON,
            requests=2,
            failed=0,
            score_mean=2.0,
            gold_mean=1.0,
            log_ratio_mean=None,
            tokens_per_answer=9.0,
            latency_p50_s=0.2,
            latency_p95_s=0.4,
        ),
        ArmSummary(
            arm=Arm.DISTILLED,
            requests=5,
            failed=1,
            cancelled=1,
            score_mean=3.0,
            gold_mean=None,
            log_ratio_mean=0.25,
            tokens_per_answer=5.0,
            latency_p50_s=0.2,
            latency_p95_s=0.3,
        ),
    ]
    [seeded] = await store.completions.summarise(source="seed")
    assert (seeded.arm, seeded.requests, seeded.score_mean) == (Arm.REFERENCE, 1, 50.0)


async def test_an_arm_that_only_failed_has_no_numbers(store: Store) -> None:
    await store.completions.record(distilled("d", status="failed", candidates=()))
    [summary] = await store.completions.summarise()
    assert (summary.requests, summary.failed) == (1, 1)
    assert (summary.score_mean, summary.tokens_per_answer) == (None, None)
    assert (summary.latency_p50_s, summary.latency_p95_s) == (None, None)


async def test_a_window_of_time_and_versions_apart(store: Store) -> None:
    await store.completions.record_many(
        [
            distilled("old", created_at=10.0, score=1.0),
            distilled("new", created_at=20.0, score=2.0),
            completion("as reference", arm=Arm.DISTILLED, created_at=20.0, score=4.0),
        ]
    )
    [recent] = await store.completions.summarise(since=20.0)
    assert (recent.requests, recent.score_mean, recent.version) == (2, 3.0, None)
    apart = await store.completions.summarise(since=20.0, by_version=True)
    assert [(s.version, s.requests, s.score_mean) for s in apart] == [
        ("v0000", 1, 4.0),
        ("v0001", 1, 2.0),
    ]


@pytest.mark.parametrize(
    ("rows", "p50", "p95"), [(1, 1, 1), (2, 1, 2), (20, 10, 19), (100, 50, 95)]
)
async def test_quantiles_are_nearest_rank(store: Store, rows: int, p50: int, p95: int) -> None:
    await store.completions.record_many(
        completion(f"row {i}", latency_s=float(i)) for i in range(rows, 0, -1)
    )
    [summary] = await store.completions.summarise()
    assert (summary.latency_p50_s, summary.latency_p95_s) == (float(p50), float(p95))
