"""One request sent several times counts once: the last attempt stands for all.

Clients that retry number their attempts. Attempts belong together if caller, route and body are
the same; which attempt repeats which is settled by their order of arrival, so that it does not
matter in which order, or by which gateway, their rows are committed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import ARRAY

from bond_core.store.database import Database
from bond_core.store.tables import completions

WINDOW_S = 1800.0
"""Attempts further apart are requests of their own: the SDKs give up 600 s after each of three."""
SOONEST_RETRY_S = 0.25
"""No client waits for less before it sends a request again; a younger row was not overtaken."""
_MOST_ATTEMPTS = 1000
"""Rows looked at together, the newest, where one body is sent over and over."""

_row = completions.c


def supersede_earlier(
    connection: Connection, rows: Sequence[Mapping[str, Any]], now: float
) -> None:
    """Mark the attempts that another one repeats, after `rows` have been inserted."""
    numbered = [row for row in rows if row["request_digest"] is not None]
    late = [row for row in numbered if row["retry"] or now - row["created_at"] >= SOONEST_RETRY_S]
    if not late:
        return
    if connection.dialect.name == "postgresql":
        _wait_for_each_other(connection, {row["request_digest"] for row in late})
    for row in late:
        _supersede_earlier(connection, row)


def _wait_for_each_other(connection: Connection, digests: set[str]) -> None:
    """Let the transactions of two attempts, of two gateways say, come one after the other: neither
    would see the row of the other before its end, and both would count."""
    ordered = sa.func.unnest(sa.cast(sorted(digests), ARRAY(sa.Text()))).column_valued("digest")
    lock = sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(ordered, 0))
    connection.execute(sa.select(lock))  # in one order, so that none waits for one that waits


def _supersede_earlier(connection: Connection, row: Mapping[str, Any]) -> None:
    same = _row.request_digest == row["request_digest"]
    if row["retry"] == 0:
        overtaken = sa.select(_row.seq).where(same, _row.retry > 0).limit(1)
        if connection.execute(overtaken).first() is None:
            return
    near = _row.created_at.between(row["created_at"] - WINDOW_S, row["created_at"] + WINDOW_S)
    query = (
        sa.select(_row.seq, _row.retry, _row.superseded)
        .where(same, near)
        .order_by(_row.created_at.desc(), _row.seq.desc())
        .limit(_MOST_ATTEMPTS)
    )
    newest_first = connection.execute(query).all()
    repeated = repeated_attempts([(found.seq, found.retry) for found in reversed(newest_first)])
    for value in (True, False):
        wrong = [
            found.seq
            for found in newest_first
            if (found.seq in repeated) is value and found.superseded is not value
        ]
        if wrong:
            connection.execute(
                completions.update().where(_row.seq.in_(wrong)).values(superseded=value)
            )


def repeated_attempts(attempts: Sequence[tuple[int, int]]) -> set[int]:
    """Of (row, retry number) in order of arrival, the rows that a later attempt repeats.

    Each attempt repeats the newest one before it that has a lower number and that no other
    attempt repeats.
    """
    standing: list[tuple[int, int]] = []
    repeated: set[int] = set()
    for seq, retry in attempts:
        earlier = next((a for a in reversed(standing) if a[1] < retry), None)
        if earlier is not None:
            standing.remove(earlier)
            repeated.add(earlier[0])
        standing.append((seq, retry))
    return repeated


class Attempts:
    """Looks up what an earlier attempt at a request was assigned by."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def unit_of(self, digest: str, now: float) -> str | None:
        """The unit of the newest attempt within the window; None if there is no row of one."""
        query = (
            sa.select(_row.unit)
            .where(_row.request_digest == digest, _row.created_at >= now - WINDOW_S)
            .order_by(_row.created_at.desc())
            .limit(1)
        )
        return await self._database.read(lambda c: c.execute(query).scalar_one_or_none())
