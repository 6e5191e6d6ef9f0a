"""What the table takes from the store."""

import pytest
from demo_results import make_policy, make_snapshot, make_summary, make_traffic

from bond_core.types import Arm, PolicyState
from bond_demo.snapshot import (
    ArmTraffic,
    arm_traffic,
    promoted_versions,
    with_unlogged_failures,
)


def test_an_arm_without_traffic_is_empty() -> None:
    arms = arm_traffic([], [], 8, {})
    assert arms == {arm: ArmTraffic() for arm in Arm}


def test_the_reference_has_no_kl_and_best_of_n_has_its_bounds() -> None:
    arms = arm_traffic([make_summary(Arm.REFERENCE), make_summary(Arm.BON)], [], 4, {})
    assert (arms[Arm.REFERENCE].kl_nats, arms[Arm.REFERENCE].win_rate) == (0.0, 0.5)
    bon = arms[Arm.BON]
    assert bon.kl_nats == pytest.approx(0.636294, abs=1e-6)
    assert (bon.win_rate, bon.kl_is_bound, bon.win_rate_is_bound) == (0.8, True, True)
    assert (bon.latency_p50_ms, bon.latency_p95_ms) == (50.0, 100.0)


def test_distilled_reward_and_kl_are_of_promoted_versions_weighted_by_requests() -> None:
    whole = make_summary(Arm.DISTILLED, requests=100, score_mean=-1.0, failed=1)
    promoted = [
        make_summary(Arm.DISTILLED, "v0001", requests=30, score_mean=1.0, log_ratio_mean=0.5),
        make_summary(Arm.DISTILLED, "v0003", requests=10, score_mean=2.0, log_ratio_mean=0.9),
        make_summary(Arm.DISTILLED, "v0004", requests=1, score_mean=None, gold_mean=None),
    ]
    found = arm_traffic([whole], promoted, 8, {"win_rate_vs_reference": 0.7})[Arm.DISTILLED]
    assert (found.requests, found.failed) == (100, 1)
    assert found.reward_mean == pytest.approx(1.25)
    assert found.kl_nats == pytest.approx(0.6)
    assert found.win_rate == 0.7


def test_before_the_first_promotion_distilled_has_requests_but_no_reward() -> None:
    found = arm_traffic([make_summary(Arm.DISTILLED)], [], 8, {})[Arm.DISTILLED]
    assert found.requests == 10
    assert (found.reward_mean, found.gold_mean, found.kl_nats) == (None, None, None)


def test_cancelled_requests_count_as_failed() -> None:
    summary = make_summary(Arm.BON, requests=10, failed=2, cancelled=3)
    found = arm_traffic([summary], [], 8, {})[Arm.BON]
    assert (found.requests, found.failed) == (10, 5)


@pytest.mark.parametrize(
    ("seen", "unlogged"), [(0, 0), (3, 0), (4, 1), (9, 6)], ids=["none", "logged", "one", "more"]
)
def test_failures_that_left_no_row_count_once_under_the_largest_arm(
    seen: int, unlogged: int
) -> None:
    arms = {
        Arm.REFERENCE: make_traffic(requests=90, failed=1),
        Arm.BON: make_traffic(requests=20, failed=2),
        Arm.DISTILLED: ArmTraffic(),
    }
    shares = {Arm.REFERENCE: 0.2, Arm.BON: 0.3, Arm.DISTILLED: 0.5}
    found = with_unlogged_failures(make_snapshot(arms=arms), seen, shares)
    assert found.unlogged_failures == unlogged
    assert found.arms[Arm.DISTILLED] == ArmTraffic(requests=unlogged, failed=unlogged)
    assert found.arms[Arm.REFERENCE] == arms[Arm.REFERENCE]
    assert found.arms[Arm.BON] == arms[Arm.BON]


def test_promoted_versions_are_those_that_were_ever_live() -> None:
    policies = [
        make_policy(f"v{number:04d}", state)
        for number, state in enumerate(
            (
                PolicyState.RETIRED, PolicyState.RETIRED, PolicyState.REJECTED,
                PolicyState.ROLLED_BACK, PolicyState.CHALLENGER, PolicyState.CANARY,
                PolicyState.ACTIVE,
            )
        )
    ]  # fmt: skip
    assert [p.version for p in promoted_versions(policies)] == ["v0001", "v0003", "v0006"]
