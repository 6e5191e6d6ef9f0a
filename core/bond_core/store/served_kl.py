"""How far the answers of a served version lie from the reference, from the newest rows of the log.

The mean over answers of log policy(answer) - log reference(answer) estimates, without bias, the KL
divergence of the policy from the reference (k1 in Schulman's "Approximating KL Divergence").
"""

import math
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.store.tables import completions
from bond_core.types import Arm

NEWEST_ROWS = 2000
"""Rows of the log that are looked at, found by their primary key: a few milliseconds."""

_row = completions.c


@dataclass(frozen=True, slots=True)
class ServedKL:
    """The KL of a served version to the reference, in nats per answer."""

    mean: float
    standard_error: float
    """Of the mean, taking answers as independent."""
    answers: int


def served_kl(
    connection: Connection, version: str, newest_rows: int = NEWEST_ROWS
) -> ServedKL | None:
    """The KL over a version's measured answers among the newest rows; None with less than two."""
    newest = sa.select(_row.seq).order_by(_row.seq.desc()).limit(newest_rows).subquery()
    query = (
        sa.select(_row.log_ratio)
        .join(newest, newest.c.seq == _row.seq)
        .where(
            _row.arm == Arm.DISTILLED.value,
            _row.version == version,
            _row.log_ratio.is_not(None),
            ~_row.superseded,
        )
    )
    ratios = [float(value) for value in connection.execute(query).scalars()]
    count = len(ratios)
    if count < 2:
        return None
    mean = math.fsum(ratios) / count
    variance = math.fsum((ratio - mean) ** 2 for ratio in ratios) / (count - 1)
    return ServedKL(mean, math.sqrt(variance / count), count)
