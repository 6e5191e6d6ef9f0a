"""What the store says at one moment, as the live table shows it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bond_core.best_of_n_law import kl_best_of_n_bound
from bond_core.config import BondConfig
from bond_core.store import Store
from bond_core.store.records import ArmSummary, PolicyRecord
from bond_core.types import REFERENCE_VERSION, Arm, PolicyState

PROMOTED_STATES = frozenset({PolicyState.ACTIVE, PolicyState.RETIRED, PolicyState.ROLLED_BACK})
"""Where a version stands that was live at some time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTraffic:
    """Traffic of one arm. Absent numbers are None: nothing measured yet.

    Answers that `distilled` gave before the first promotion came from the reference itself: they
    count as its requests, with their tokens and latency, but not in its reward and KL.
    """

    requests: int = 0
    """Answered and failed."""
    failed: int = 0
    """Failed or cancelled: the user got no answer."""
    reward_mean: float | None = None
    gold_mean: float | None = None
    kl_nats: float | None = None
    kl_is_bound: bool = False
    """The KL is Best-of-N's bound, not an estimate from the answers."""
    win_rate: float | None = None
    """Against one answer of the reference."""
    win_rate_is_bound: bool = False
    tokens_per_answer: float | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One moment of a run."""

    at: float
    """Unix seconds."""
    arms: Mapping[Arm, ArmTraffic]
    live: ArmTraffic | None
    """The live version's own share of the distilled arm, None before the first promotion."""
    live_version: str
    best_of: int
    promotions: int
    rejections: int
    training_state: str
    training_step: int
    training_error: str | None
    log_rows: int
    unlogged_failures: int = 0
    """Requests without an answer and without a row in the log; see `with_unlogged_failures`."""


def with_unlogged_failures(
    snapshot: Snapshot, failures_seen: int, shares: Mapping[Arm, float]
) -> Snapshot:
    """Add the failures that users saw and that left no row, such as a broken connection or an
    answer withheld because its row could not be committed.

    Nothing tells which arm such a request had: it counts as a request and a failure of the arm
    with the largest share of the traffic. Their number is what exceeds the log's failed and
    cancelled rows, so that no request counts twice.
    """
    logged = sum(arm.failed for arm in snapshot.arms.values())
    unlogged = max(0, failures_seen - logged)
    arm = max(shares, key=lambda arm: shares[arm])
    row = snapshot.arms[arm]
    row = replace(row, requests=row.requests + unlogged, failed=row.failed + unlogged)
    arms = {**snapshot.arms, arm: row}
    return replace(snapshot, arms=arms, unlogged_failures=unlogged)


async def take_snapshot(store: Store, config: BondConfig, since: float) -> Snapshot:
    """Read the store: traffic since a time in Unix seconds, and what the trainer has done."""
    per_arm = await store.completions.summarise(since=since)
    per_version = await store.completions.summarise(since=since, by_version=True)
    policies = await store.policies.all()
    active = await store.policies.active()
    training = await store.training.latest()
    evaluation = next((p.evaluation for p in policies if p.version == active), {})
    promoted = [s for s in per_version if s.arm is Arm.DISTILLED and _is_promoted(s)]
    return Snapshot(
        at=time.time(),
        arms=arm_traffic(per_arm, promoted, config.arms.best_of, evaluation),
        live=_live_share(promoted, active),
        live_version=active,
        best_of=config.arms.best_of,
        promotions=len(promoted_versions(policies)),
        rejections=sum(p.state is PolicyState.REJECTED for p in policies),
        training_state=training.state if training is not None else "starting",
        training_step=training.step if training is not None else 0,
        training_error=training.error if training is not None else None,
        log_rows=await store.completions.count(),
    )


def promoted_versions(policies: Sequence[PolicyRecord]) -> list[PolicyRecord]:
    """The versions that were live at some time, without the reference."""
    return [
        policy
        for policy in policies
        if policy.version != REFERENCE_VERSION and policy.state in PROMOTED_STATES
    ]


def arm_traffic(
    per_arm: Sequence[ArmSummary],
    promoted: Sequence[ArmSummary],
    best_of: int,
    evaluation: Mapping[str, Any],
) -> dict[Arm, ArmTraffic]:
    """The three rows. `promoted` are the distilled arm's summaries by promoted version."""
    found = {summary.arm: summary for summary in per_arm}
    reference, bon, distilled = (found.get(arm) for arm in Arm)
    return {
        Arm.REFERENCE: _row(reference, kl_nats=0.0, win_rate=0.5),
        Arm.BON: _row(
            bon,
            kl_nats=kl_best_of_n_bound(best_of),
            win_rate=best_of / (best_of + 1),
            is_bound=True,
        ),
        Arm.DISTILLED: _row(
            distilled,
            reward_from=promoted,
            kl_nats=_weighted(promoted, "log_ratio_mean"),
            win_rate=evaluation.get("win_rate_vs_reference"),
        ),
    }


def _row(
    summary: ArmSummary | None,
    *,
    kl_nats: float | None,
    win_rate: float | None,
    is_bound: bool = False,
    reward_from: Sequence[ArmSummary] | None = None,
) -> ArmTraffic:
    if summary is None:
        return ArmTraffic()
    rewarded = [summary] if reward_from is None else reward_from
    return ArmTraffic(
        requests=summary.requests,
        failed=summary.failed + summary.cancelled,
        reward_mean=_weighted(rewarded, "score_mean"),
        gold_mean=_weighted(rewarded, "gold_mean"),
        kl_nats=kl_nats,
        kl_is_bound=is_bound,
        win_rate=win_rate,
        win_rate_is_bound=is_bound,
        tokens_per_answer=summary.tokens_per_answer,
        latency_p50_ms=_milliseconds(summary.latency_p50_s),
        latency_p95_ms=_milliseconds(summary.latency_p95_s),
    )


def _live_share(promoted: Sequence[ArmSummary], active: str) -> ArmTraffic | None:
    own = next((summary for summary in promoted if summary.version == active), None)
    if own is None:
        return None
    return _row(own, kl_nats=own.log_ratio_mean, win_rate=None)


def _is_promoted(summary: ArmSummary) -> bool:
    return summary.version not in (None, REFERENCE_VERSION)


def _weighted(summaries: Sequence[ArmSummary], field: str) -> float | None:
    """A mean over several summaries, weighted by their requests."""
    pairs = [
        (value, summary.requests)
        for summary in summaries
        if (value := getattr(summary, field)) is not None
    ]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
