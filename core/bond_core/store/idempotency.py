"""Idempotency keys: claims on them while a request runs, its answer afterwards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.store.database import Database, RowRefusedError, in_chunks
from bond_core.store.keeping_tables import idempotency_keys
from bond_core.store.settlement import KeptAnswer, Settlement
from bond_core.store.upsert import upsert

_key = idempotency_keys.c
_IN_FLIGHT = _key.completion_id.is_(None)


@dataclass(frozen=True, slots=True)
class KeyState:
    """What the store knows of a key after an attempt to claim it."""

    fingerprint: str
    """Of the request that holds the key."""
    holder: str
    completion_id: str | None = None
    """Set once it has been answered."""
    answer: KeptAnswer | None = None


class IdempotencyKeys:
    """One row per key. Time is each process's own clock, as for `Leases`."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def claim(self, scope: str, fingerprint: str, holder: str, lease_s: float) -> KeyState:
        """Take a key that is free, or whose lease or answer has run out.

        Returns what is there afterwards: the claim is the caller's if `holder` is.
        """

        def take(connection: Connection) -> KeyState:
            now = self._clock()
            row = {
                "scope": scope,
                "fingerprint": fingerprint,
                "holder": holder,
                "expires_at": now + lease_s,
                "completion_id": None,
                "media_type": None,
                "headers": None,
                "answer": None,
            }
            connection.execute(upsert(connection, idempotency_keys, row, _key.expires_at <= now))
            found = sa.select(idempotency_keys).where(_key.scope == scope)
            return _state(connection.execute(found).mappings().one())

        return await self._database.write(take)

    async def look(self, scope: str) -> KeyState | None:
        """What is known of a key, without claiming it; None if nothing is (any more)."""
        query = sa.select(idempotency_keys).where(
            _key.scope == scope, _key.expires_at > self._clock()
        )

        def select(connection: Connection) -> KeyState | None:
            row = connection.execute(query).mappings().first()
            return None if row is None else _state(row)

        return await self._database.read(select)

    async def renew(self, holders: Sequence[str], lease_s: float) -> None:
        """Extend the leases of claims that are still in flight."""

        def extend(connection: Connection) -> None:
            for chunk in in_chunks(holders):
                connection.execute(
                    idempotency_keys.update()
                    .where(_key.holder.in_(chunk), _IN_FLIGHT)
                    .values(expires_at=self._clock() + lease_s)
                )

        await self._database.write(extend)

    async def release(self, scope: str, holder: str) -> None:
        """Free a key whose request failed; one that has been answered stays."""
        statement = idempotency_keys.delete().where(
            _key.scope == scope, _key.holder == holder, _IN_FLIGHT
        )
        await self._database.write(lambda c: c.execute(statement) and None)


def settle(connection: Connection, settlement: Settlement, completion_id: str) -> None:
    """End a claim with its answer, in the transaction of the completion's row.

    Raises `RowRefusedError` if the claim has run out and another holder took the key: the answer
    must not be given twice.
    """
    answer = settlement.answer
    changed = connection.execute(
        idempotency_keys.update()
        .where(_key.scope == settlement.scope, _key.holder == settlement.holder, _IN_FLIGHT)
        .values(
            completion_id=completion_id,
            expires_at=settlement.keep_until,
            media_type=answer.media_type if answer else None,
            headers=dict(answer.headers) if answer else None,
            answer=answer.body if answer else None,
        )
    )
    if changed.rowcount != 1:
        raise RowRefusedError(
            "its Idempotency-Key was taken over by a later attempt while it waited; that one's "
            "answer counts"
        )


def _state(row: sa.RowMapping) -> KeyState:
    answer = None
    if row["answer"] is not None:
        answer = KeptAnswer(bytes(row["answer"]), row["media_type"], row["headers"] or {})
    return KeyState(row["fingerprint"], row["holder"], row["completion_id"], answer)
