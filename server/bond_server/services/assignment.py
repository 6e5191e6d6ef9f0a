"""Which arm answers a unit: a hash of unit and experiment, so that every gateway decides alike and
for ever."""

import hashlib

from bond_core.config import SplitConfig
from bond_core.types import Arm


def position_of(unit: str, experiment: str) -> float:
    """Where a unit falls in [0, 1), uniform over units, by SHA-256 of the experiment and unit."""
    digest = hashlib.sha256(experiment.encode() + b"\x00" + unit.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign(unit: str, experiment: str, split: SplitConfig) -> Arm:
    """The arm of a unit under a split; shares are relative to their sum."""
    shares = {
        Arm.REFERENCE: split.reference,
        Arm.BON: split.bon,
        Arm.DISTILLED: split.distilled,
    }
    remaining = position_of(unit, experiment) * sum(shares.values())
    positive = [(arm, share) for arm, share in shares.items() if share > 0]
    for arm, share in positive:
        if remaining < share:
            return arm
        remaining -= share
    return positive[-1][0]  # rounding can leave a rest of the last share
