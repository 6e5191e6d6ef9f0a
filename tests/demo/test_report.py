"""`report.json` has exactly the documented form."""

import json
from pathlib import Path

import pytest
from demo_results import make_policy, make_samples, make_snapshot
from pydantic import ValidationError

from bond_core.types import Arm, PolicyState
from bond_demo.measures import (
    best_of_n_curve,
    measure_best_of_n,
    measure_distilled,
    measure_reference,
)
from bond_demo.report import Report, build_report, version_reports, write_report

TRAFFIC_KEYS = {
    "requests", "failed", "reward_mean", "completion_tokens_per_answer", "latency_p50_ms",
    "latency_p95_ms",
}  # fmt: skip
EVALUATION_KEYS = {
    "samples", "reward_mean", "reward_ci95", "gold_mean", "kl_nats", "quantile_mean",
    "win_rate_vs_reference",
}  # fmt: skip
VERSION_KEYS = {
    "name", "step", "status", "reward_mean", "kl_nats", "quantile_mean", "n_q", "n_kl",
}  # fmt: skip
TOP_KEYS = {
    "bon_n", "arms", "bon_curve", "versions", "promotions", "training_steps",
    "seconds_to_first_answer", "seconds_to_first_promotion",
}  # fmt: skip


@pytest.fixture
def report() -> Report:
    samples = make_samples()
    policies = [
        make_policy("v0000", PolicyState.RETIRED),
        make_policy("v0001", PolicyState.REJECTED),
        make_policy(
            "v0002", PolicyState.ACTIVE, reward_mean=1.5, kl_nats=0.875, quantile_mean=0.75,
            n_q=3.0, n_kl=None,
        ),
    ]  # fmt: skip
    return build_report(
        bon_n=8,
        traffic=make_snapshot().arms,
        measures={
            Arm.REFERENCE: measure_reference(samples),
            Arm.BON: measure_best_of_n(samples, 8),
            Arm.DISTILLED: measure_distilled(samples),
        },
        curve=best_of_n_curve(samples),
        versions=version_reports(policies),
        promotions=1,
        training_steps=120,
        seconds_to_first_answer=21.5,
        seconds_to_first_promotion=None,
    )


def test_the_file_has_exactly_the_documented_keys(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "results" / "report.json")
    values = json.loads((tmp_path / "results" / "report.json").read_text())
    assert set(values) == TOP_KEYS
    assert set(values["arms"]) == {"reference", "bon", "distilled"}
    for arm in values["arms"].values():
        assert set(arm) == {"traffic", "evaluation"}
        assert set(arm["traffic"]) == TRAFFIC_KEYS
        assert set(arm["evaluation"]) == EVALUATION_KEYS
        assert len(arm["evaluation"]["reward_ci95"]) == 2
    assert set(values["bon_curve"]) == {"1", "2", "4", "8", "16"}
    for point in values["bon_curve"].values():
        assert set(point) == {"reward_mean", "gold_mean", "kl_nats"}
    for version in values["versions"]:
        assert set(version) == VERSION_KEYS
    assert Report.model_validate(values) == report


def test_the_numbers_come_from_the_parts(report: Report) -> None:
    bon = report.arms["bon"]
    assert (bon.traffic.requests, bon.traffic.failed) == (30, 2)
    assert bon.traffic.completion_tokens_per_answer == 250.0
    assert bon.evaluation.kl_nats == round(1.2044415416798357, 6)
    assert bon.evaluation.quantile_mean == round(8 / 9, 6)
    assert bon.evaluation.reward_mean == report.bon_curve["8"].reward_mean
    assert report.arms["reference"].evaluation.reward_mean == report.bon_curve["1"].reward_mean
    distilled = report.arms["distilled"].evaluation
    assert distilled.reward_ci95[0] < distilled.reward_mean < distilled.reward_ci95[1]
    assert distilled.kl_nats == 0.875
    assert distilled.gold_mean == pytest.approx(distilled.reward_mean / 2, abs=1e-5)


def test_versions_leave_the_reference_out_and_keep_what_is_not_known(report: Report) -> None:
    first, second = report.versions
    assert (first.name, first.status, first.step, first.reward_mean) == (
        "v0001", "rejected", 50, None,
    )  # fmt: skip
    assert (second.name, second.status, second.n_q, second.n_kl) == ("v0002", "active", 3.0, None)


def test_another_key_or_a_missing_one_is_refused(report: Report) -> None:
    values = report.model_dump()
    with pytest.raises(ValidationError):
        Report.model_validate(values | {"extra": 1})
    with pytest.raises(ValidationError):
        Report.model_validate({k: v for k, v in values.items() if k != "promotions"})
    with pytest.raises(ValidationError):
        Report.model_validate(values | {"bon_curve": {"3": values["bon_curve"]["1"]}})
