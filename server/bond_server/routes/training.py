"""What the trainer does and what it has shown."""

import time
from typing import Annotated

from fastapi import APIRouter, Query

from bond_core.store.records import ArmSummary, EvaluationRecord, TrainingRecord
from bond_server.deps import GatewayDep
from bond_server.schemas.models import ArmView, EvaluationView, RunView, TrainingView

router = APIRouter(tags=["training"])

STALE_AFTER_S = 60.0
"""A trainer reports at least this often, unless it is gone."""
_ENDED = frozenset({"stopped", "failed"})


@router.get("/v1/training")
async def get_training(
    gateway: GatewayDep,
    evaluations: Annotated[int, Query(ge=0, le=1000)] = 20,
    since: Annotated[float | None, Query(ge=0)] = None,
) -> TrainingView:
    """The trainer's last report, the latest evaluations, and the arms' traffic since a time."""
    store = gateway.store
    run = await store.training.latest()
    return TrainingView(
        run=None if run is None else _run(run, time.time()),
        active=gateway.policies.active,
        evaluations=[_evaluation(e) for e in await store.evaluations.latest(evaluations)],
        arms=[_arm(summary) for summary in await store.completions.summarise(since=since)],
    )


def _run(record: TrainingRecord, now: float) -> RunView:
    return RunView(
        run_id=record.run_id,
        state=record.state,
        step=record.step,
        started_at=record.started_at,
        heartbeat_at=record.heartbeat_at,
        stale=record.state not in _ENDED and now - record.heartbeat_at > STALE_AFTER_S,
        metrics=dict(record.metrics),
        counts=dict(record.counts),
        error=record.error,
    )


def _evaluation(record: EvaluationRecord) -> EvaluationView:
    return EvaluationView(
        version=record.version,
        step=record.step,
        split=record.split.value,
        created_at=record.created_at,
        metrics=dict(record.metrics),
    )


def _arm(summary: ArmSummary) -> ArmView:
    return ArmView(
        arm=summary.arm.value,
        requests=summary.requests,
        failed=summary.failed,
        score_mean=summary.score_mean,
        gold_mean=summary.gold_mean,
        log_ratio_mean=summary.log_ratio_mean,
        tokens_per_answer=summary.tokens_per_answer,
        latency_p50_ms=_ms(summary.latency_p50_s),
        latency_p95_ms=_ms(summary.latency_p95_s),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
