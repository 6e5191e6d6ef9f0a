"""Claims: leases on rows of the log, so that two learners do not learn from the same ones."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.store.database import CHUNK
from bond_core.store.tables import LEARNABLE, completions


@dataclass(frozen=True, slots=True)
class Lease:
    """Who claims, and from when until when (Unix seconds)."""

    holder: str
    now: float
    until: float


def claim_learnable(
    connection: Connection, lease: Lease, limit: int, after_seq: int, consumed: frozenset[int]
) -> list[int]:
    """Claim up to `limit` rows above `after_seq` that may be learned from; returns their `seq`.

    What is consumed is sifted out here, page by page: no list of thousands reaches the database.
    Only what is taken is locked. Whoever locked a whole page would hide it from every learner
    that claims at the same moment, and one that always came second would get nothing.
    """
    free = sa.and_(
        LEARNABLE,
        sa.or_(
            completions.c.claimed_by.is_(None),
            completions.c.claimed_by == lease.holder,
            completions.c.claimed_until <= lease.now,
        ),
    )
    page = sa.select(completions.c.seq).where(free).order_by(completions.c.seq).limit(CHUNK)
    taken: list[int] = []
    last = after_seq
    while len(taken) < limit:
        found = connection.execute(page.where(completions.c.seq > last)).scalars().all()
        if not found:
            break
        wanted = [seq for seq in found if seq not in consumed]
        while wanted and (missing := limit - len(taken)) > 0:
            taken.extend(_take(connection, lease, free, wanted[:missing]))
            del wanted[:missing]
        last = found[-1]
    return taken


def _take(
    connection: Connection, lease: Lease, free: sa.ColumnElement[bool], seqs: list[int]
) -> list[int]:
    """Those of the rows that are still free and that nobody is claiming or annotating just now."""
    still = (
        sa.select(completions.c.seq)
        .where(free, completions.c.seq.in_(seqs))
        .order_by(completions.c.seq)
        .with_for_update(skip_locked=True)
    )
    locked = list(connection.execute(still).scalars())
    connection.execute(
        completions.update()
        .where(completions.c.seq.in_(locked))
        .values(claimed_by=lease.holder, claimed_until=lease.until)
    )
    return locked
