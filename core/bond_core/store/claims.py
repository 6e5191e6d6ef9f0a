"""Claims: leases on rows of the log, so that two learners do not learn from the same ones."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.store.database import CHUNK, in_chunks
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
    """
    free = sa.or_(
        completions.c.claimed_by.is_(None),
        completions.c.claimed_by == lease.holder,
        completions.c.claimed_until <= lease.now,
    )
    page = (
        sa.select(completions.c.seq)
        .where(LEARNABLE, free)
        .order_by(completions.c.seq)
        .limit(CHUNK)
        .with_for_update(skip_locked=True)
    )
    taken: list[int] = []
    last = after_seq
    while len(taken) < limit:
        found = connection.execute(page.where(completions.c.seq > last)).scalars().all()
        if not found:
            break
        taken.extend(seq for seq in found if seq not in consumed)
        last = found[-1]
    del taken[limit:]
    for chunk in in_chunks(taken):
        connection.execute(
            completions.update()
            .where(completions.c.seq.in_(chunk))
            .values(claimed_by=lease.holder, claimed_until=lease.until)
        )
    return taken
