"""What keys have used of their limits, shared by several gateways through the database.

One row per key holds the levels of its buckets and is the lock under which they change; one row
per key and gateway holds how many of its requests run there, for as long as that gateway renews
it. Times are each gateway's clock: one that runs ahead by d refills d early, once.
"""

from collections.abc import Callable, Mapping

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from bond_core.store import allowance
from bond_core.store.access_records import KeyLimits
from bond_core.store.access_tables import key_running, key_usage
from bond_core.store.allowance import Refusal, Usage
from bond_core.store.database import Database
from bond_core.store.upsert import upsert

RUNNING_TTL_S = 30.0
"""How long the requests of a gateway that died keep their places."""
FORGET_AFTER_S = 3600.0


class KeyUsage:
    """Short transactions, one per change."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def admit(self, key_id: str, limits: KeyLimits, holder: str) -> Usage | Refusal:
        """Take one request and a place for it at this gateway, or say what is in the way."""

        def take(connection: Connection) -> Usage | Refusal:
            usage = self._locked(connection, key_id, limits)
            taken = allowance.admit(usage, limits)
            if isinstance(taken, Usage):
                _write(connection, key_id, taken)
                if limits.concurrency is not None:
                    self._add_running(connection, key_id, holder, 1)
            return taken

        return await self._database.write(take)

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int) -> Usage | Refusal:
        """Take tokens that are about to be drawn, or say how long to wait for them."""

        def take(connection: Connection) -> Usage | Refusal:
            taken = allowance.reserve(self._locked(connection, key_id, limits), limits, tokens)
            if isinstance(taken, Usage):
                _write(connection, key_id, taken)
            return taken

        return await self._database.write(take)

    async def settle(
        self, key_id: str, limits: KeyLimits, back: int, holder: str, *, ended: bool
    ) -> Usage:
        """Give back tokens that were not drawn and, if the request has ended, its place."""

        def give(connection: Connection) -> Usage:
            usage = allowance.settle(self._locked(connection, key_id, limits), limits, back)
            _write(connection, key_id, usage)
            if ended and limits.concurrency is not None:
                self._add_running(connection, key_id, holder, -1)
            return usage

        return await self._database.write(give)

    async def renew(self, holder: str, ended: Mapping[str, int]) -> None:
        """Say that a gateway is alive, and give up the places of requests whose end could not be
        told before."""

        def publish(connection: Connection) -> None:
            now = self._clock()
            for key_id, number in sorted(ended.items()):
                self._add_running(connection, key_id, holder, -number)
            idle = sa.and_(key_running.c.holder == holder, key_running.c.running == 0)
            gone = key_running.c.expires_at <= now - FORGET_AFTER_S
            connection.execute(key_running.delete().where(sa.or_(idle, gone)))
            connection.execute(
                key_running.update()
                .where(key_running.c.holder == holder)
                .values(expires_at=now + RUNNING_TTL_S)
            )

        await self._database.write(publish)

    async def leave(self, holder: str) -> None:
        """Give up all places of a gateway that ends."""
        statement = key_running.delete().where(key_running.c.holder == holder)
        await self._database.write(lambda c: c.execute(statement) and None)

    def _locked(self, connection: Connection, key_id: str, limits: KeyLimits) -> Usage:
        now = self._clock()
        query = sa.select(key_usage).where(key_usage.c.key_id == key_id).with_for_update()
        row = connection.execute(query).mappings().first()
        if row is None:
            _begin(connection, key_id, allowance.full(limits, round(now * 1e6)))
            row = connection.execute(query).mappings().one()
        usage = Usage(row["requests"], row["tokens"], row["at_us"])
        usage = allowance.refilled(usage, limits, round(now * 1e6))
        if limits.concurrency is None:
            return usage
        alive = sa.select(sa.func.coalesce(sa.func.sum(key_running.c.running), 0)).where(
            key_running.c.key_id == key_id, key_running.c.expires_at > now
        )
        running = int(connection.execute(alive).scalar_one())
        return Usage(usage.requests, usage.tokens, usage.at_us, running)

    def _add_running(self, connection: Connection, key_id: str, holder: str, number: int) -> None:
        # only the gateway itself writes its row, so the count holds also after a late renewal
        mine = sa.and_(key_running.c.key_id == key_id, key_running.c.holder == holder)
        found = connection.execute(sa.select(key_running.c.running).where(mine)).scalar() or 0
        row = {
            "key_id": key_id,
            "holder": holder,
            "running": max(0, found + number),
            "expires_at": self._clock() + RUNNING_TTL_S,
        }
        connection.execute(upsert(connection, key_running, row))


def _begin(connection: Connection, key_id: str, usage: Usage) -> None:
    """Insert a key's first row, unless another gateway is just doing so."""
    row = {
        "key_id": key_id,
        "requests": usage.requests,
        "tokens": usage.tokens,
        "at_us": usage.at_us,
    }
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert(key_usage).values(row).on_conflict_do_nothing())


def _write(connection: Connection, key_id: str, usage: Usage) -> None:
    connection.execute(
        key_usage.update()
        .where(key_usage.c.key_id == key_id)
        .values(requests=usage.requests, tokens=usage.tokens, at_us=usage.at_us)
    )
