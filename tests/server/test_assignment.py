"""Arms are assigned by a hash of unit and experiment: the same for ever, in the shares set."""

import pytest

from bond_core.config import SplitConfig
from bond_core.types import Arm
from bond_server.services.assignment import assign, position_of

UNITS = [f"user-{index}" for index in range(20_000)]


def test_position_is_the_first_eight_bytes_of_the_digest() -> None:
    # printf 'bondserve\0alice' | sha256sum
    assert position_of("alice", "bondserve") == 0.5735441693965461
    assert position_of("alice", "another") != position_of("alice", "bondserve")


def test_a_unit_keeps_its_arm() -> None:
    split = SplitConfig(reference=1, bon=1, distilled=1)
    first = [assign(unit, "rerank", split) for unit in UNITS[:200]]
    assert [assign(unit, "rerank", split) for unit in UNITS[:200]] == first
    assert set(first) == set(Arm)


def test_another_experiment_draws_anew() -> None:
    split = SplitConfig()
    same = sum(assign(u, "a", split) is assign(u, "b", split) for u in UNITS)
    assert 0.48 < same / len(UNITS) < 0.52


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.0, 0.5, 0.5), (0.0, 0.5, 0.5)),
        ((1.0, 1.0, 2.0), (0.25, 0.25, 0.5)),
        ((0.2, 0.0, 0.6), (0.25, 0.0, 0.75)),
        ((0.0, 0.0, 3.0), (0.0, 0.0, 1.0)),
    ],
)
def test_shares_are_relative_to_their_sum(
    shares: tuple[float, float, float], expected: tuple[float, float, float]
) -> None:
    split = SplitConfig(reference=shares[0], bon=shares[1], distilled=shares[2])
    arms = [assign(unit, "bondserve", split) for unit in UNITS]
    for arm, share in zip(Arm, expected, strict=True):
        # four standard errors of a share of one half are 0.014
        assert arms.count(arm) / len(arms) == pytest.approx(share, abs=0.014)
        assert (arm in arms) == (share > 0)


def test_a_larger_share_only_adds_units() -> None:
    small = SplitConfig(bon=0.9, distilled=0.1)
    large = SplitConfig(bon=0.6, distilled=0.4)
    moved_back = [
        unit
        for unit in UNITS
        if assign(unit, "s", small) is Arm.DISTILLED and assign(unit, "s", large) is Arm.BON
    ]
    assert moved_back == []
