"""`report.json`: the demo's result in numbers, in a closed form that other programs can read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bond_core.store.records import PolicyRecord
from bond_core.types import REFERENCE_VERSION, Arm
from bond_demo.measures import ArmMeasures, CurvePoint
from bond_demo.snapshot import ArmTraffic

ArmName = Literal["reference", "bon", "distilled"]
CurveN = Literal["1", "2", "4", "8", "16"]

_DIGITS = 6


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TrafficReport(_Closed):
    """What the arm's users got; None where there was no answer to measure."""

    requests: int
    """Answered and failed."""
    failed: int
    """Without an answer, logged or not. One that left no row counts under the arm with the
    largest share."""
    reward_mean: float | None
    """Of the distilled arm: of promoted versions alone."""
    completion_tokens_per_answer: float | None
    """All candidates counted."""
    latency_p50_ms: float | None
    latency_p95_ms: float | None


class EvaluationReport(_Closed):
    """Fresh samples on the report half of the held-out prompts."""

    samples: int
    reward_mean: float
    reward_ci95: tuple[float, float]
    gold_mean: float
    kl_nats: float
    """To the reference. Best-of-N: analytic bound; distilled: per token, on its own answers."""
    quantile_mean: float
    win_rate_vs_reference: float


class ArmReport(_Closed):
    """One arm."""

    traffic: TrafficReport
    evaluation: EvaluationReport


class CurveReport(_Closed):
    """Best-of-n of the reference at one n."""

    reward_mean: float
    gold_mean: float
    kl_nats: float


class VersionReport(_Closed):
    """One policy version as the trainer's evaluation on the gate half saw it."""

    name: str
    step: int
    status: str
    reward_mean: float | None
    kl_nats: float | None
    quantile_mean: float | None
    n_q: float | None
    n_kl: float | None


class Report(_Closed):
    """The whole file."""

    bon_n: int
    arms: dict[ArmName, ArmReport]
    bon_curve: dict[CurveN, CurveReport]
    versions: list[VersionReport]
    """Without the reference, oldest first."""
    promotions: int
    """In this run."""
    training_steps: int
    """In this run; the versions' `step` counts all runs on the data directory."""
    seconds_to_first_answer: float | None
    """From the start of `bond demo`, models loaded and log seeded within."""
    seconds_to_first_promotion: float | None
    """From the start of the traffic; None if there was none."""


def build_report(
    *,
    bon_n: int,
    traffic: Mapping[Arm, ArmTraffic],
    measures: Mapping[Arm, ArmMeasures],
    curve: Sequence[CurvePoint],
    versions: list[VersionReport],
    promotions: int,
    training_steps: int,
    seconds_to_first_answer: float | None,
    seconds_to_first_promotion: float | None,
) -> Report:
    """Put the parts together, rounded to six digits."""
    arms = {
        arm.value: {
            "traffic": _traffic_report(traffic[arm]),
            "evaluation": _evaluation_report(measures[arm]),
        }
        for arm in Arm
    }
    points = {
        str(point.n): CurveReport(
            reward_mean=_rounded(point.reward_mean),
            gold_mean=_rounded(point.gold_mean),
            kl_nats=_rounded(point.kl_nats),
        )
        for point in curve
    }
    return Report.model_validate(
        {
            "bon_n": bon_n,
            "arms": arms,
            "bon_curve": points,
            "versions": versions,
            "promotions": promotions,
            "training_steps": training_steps,
            "seconds_to_first_answer": _maybe_rounded(seconds_to_first_answer),
            "seconds_to_first_promotion": _maybe_rounded(seconds_to_first_promotion),
        }
    )


def version_reports(policies: Sequence[PolicyRecord]) -> list[VersionReport]:
    """Every version but the reference, with what the gate saw of it."""
    return [
        VersionReport(
            name=policy.version,
            step=policy.step,
            status=policy.state.value,
            reward_mean=_maybe_rounded(policy.evaluation.get("reward_mean")),
            kl_nats=_maybe_rounded(policy.evaluation.get("kl_nats")),
            quantile_mean=_maybe_rounded(policy.evaluation.get("quantile_mean")),
            n_q=_maybe_rounded(policy.evaluation.get("n_q")),
            n_kl=_maybe_rounded(policy.evaluation.get("n_kl")),
        )
        for policy in policies
        if policy.version != REFERENCE_VERSION
    ]


def write_report(report: Report, path: Path) -> None:
    """Write the file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.model_dump_json(indent=2) + "\n")


def _traffic_report(traffic: ArmTraffic) -> TrafficReport:
    return TrafficReport(
        requests=traffic.requests,
        failed=traffic.failed,
        reward_mean=_maybe_rounded(traffic.reward_mean),
        completion_tokens_per_answer=_maybe_rounded(traffic.tokens_per_answer),
        latency_p50_ms=_maybe_rounded(traffic.latency_p50_ms),
        latency_p95_ms=_maybe_rounded(traffic.latency_p95_ms),
    )


def _evaluation_report(measures: ArmMeasures) -> EvaluationReport:
    low, high = measures.reward.interval()
    return EvaluationReport(
        samples=measures.samples,
        reward_mean=_rounded(measures.reward.mean),
        reward_ci95=(_rounded(low), _rounded(high)),
        gold_mean=_rounded(measures.gold_mean),
        kl_nats=_rounded(measures.kl_nats),
        quantile_mean=_rounded(measures.quantile_mean),
        win_rate_vs_reference=_rounded(measures.win_rate_vs_reference),
    )


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS) + 0.0  # no negative zero


def _maybe_rounded(value: float | None) -> float | None:
    return None if value is None else _rounded(value)
