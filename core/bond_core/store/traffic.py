"""Traffic aggregated per arm, in the database: only numbers leave it."""

import math
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.store.records import ArmSummary
from bond_core.store.tables import completions
from bond_core.types import Arm

_row = completions.c
_answered = _row.status == "ok"


def summarise_traffic(
    connection: Connection, source: str, since: float | None, by_version: bool
) -> list[ArmSummary]:
    """One summary per arm that has rows, in the order of `Arm`.

    Means are over answered rows that have the number. Failed and cancelled requests count as
    requests of their arm; latency and tokens are those of answered ones. Requests that asked for
    Best-of-N of the distilled policy are in the log, and not in these figures; of a request that
    its client sent again, only the last attempt is.
    """
    # Best-of-N of the distilled policy is neither arm of the comparison: it would flatter the one.
    plain = sa.or_(_row.arm == Arm.BON.value, _row.best_of == _row.n)
    window: list[sa.ColumnElement[bool]] = [_row.source == source, plain, ~_row.superseded]
    if since is not None:
        window.append(_row.created_at >= since)
    keys = [_row.arm, _row.version] if by_version else [_row.arm]
    query = (
        sa.select(
            *keys,
            sa.func.count().label("requests"),
            _count(_row.status == "failed").label("failed"),
            _count(_row.status == "cancelled").label("cancelled"),
            _count(_answered).label("answered"),
            _mean(_row.score).label("score_mean"),
            _mean(_row.gold_score).label("gold_mean"),
            _mean(_row.log_ratio).label("log_ratio_mean"),
            _mean(_row.generated_tokens).label("tokens"),
        )
        .where(*window)
        .group_by(*keys)
    )
    summaries: list[ArmSummary] = []
    for group in connection.execute(query).mappings().all():
        same = [*window, _answered, *(key == group[key.name] for key in keys)]
        summaries.append(
            ArmSummary(
                arm=Arm(group["arm"]),
                version=group["version"] if by_version else None,
                requests=group["requests"],
                failed=group["failed"],
                cancelled=group["cancelled"],
                score_mean=group["score_mean"],
                gold_mean=group["gold_mean"],
                log_ratio_mean=group["log_ratio_mean"],
                tokens_per_answer=group["tokens"],
                latency_p50_s=_latency(connection, same, group["answered"], 0.50),
                latency_p95_s=_latency(connection, same, group["answered"], 0.95),
            )
        )
    order = list(Arm)
    return sorted(summaries, key=lambda s: (order.index(s.arm), s.version or ""))


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)


def _mean(column: sa.Column[Any]) -> sa.ColumnElement[float]:
    return sa.func.avg(sa.case((_answered, sa.cast(column, sa.Double))))


def _latency(
    connection: Connection, same: list[sa.ColumnElement[bool]], answered: int, quantile: float
) -> float | None:
    """The nearest-rank quantile: the smallest latency that a share `quantile` stays within."""
    if answered == 0:
        return None
    rank = math.ceil(quantile * answered)
    query = sa.select(_row.latency_s).where(*same).order_by(_row.latency_s)
    return connection.execute(query.offset(rank - 1).limit(1)).scalar_one_or_none()
