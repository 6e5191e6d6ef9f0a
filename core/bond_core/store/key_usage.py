"""What keys have used of their limits, shared by several gateways through the database.

One row per key holds the levels of its buckets and is the lock under which they change; one row
per key and gateway holds how many of its requests run there, for as long as that gateway renews
it. Times are each gateway's clock: one that runs ahead by d refills d early, once.
"""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from bond_core.store import allowance
from bond_core.store.access_records import KeyLimits
from bond_core.store.access_tables import key_running, key_usage
from bond_core.store.allowance import Refusal, Usage
from bond_core.store.database import Database

RUNNING_TTL_S = 30.0
"""How long the requests of a gateway that died keep their places."""
FORGET_AFTER_S = 3600.0

Outcome = tuple[Usage, Refusal | None]
"""The usage as it now stands, and what was in the way."""


class KeyUsage:
    """Short transactions, one per change."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def admit(self, key_id: str, limits: KeyLimits, holder: str) -> Outcome:
        """Take one request and a place for it at this gateway, or say what is in the way."""

        def take(connection: Connection) -> Outcome:
            usage = self._locked(connection, key_id, limits)
            taken = allowance.admit(usage, limits)
            if isinstance(taken, Refusal):
                return usage, taken
            _write(connection, key_id, taken)
            if limits.concurrency is not None:
                self._add_running(connection, key_id, holder, 1)
            return taken, None

        return await self._database.write(take)

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int) -> Outcome:
        """Take tokens that are about to be drawn, or say how long to wait for them."""

        def take(connection: Connection) -> Outcome:
            usage = self._locked(connection, key_id, limits)
            taken = allowance.reserve(usage, limits, tokens)
            if isinstance(taken, Refusal):
                return usage, taken
            _write(connection, key_id, taken)
            return taken, None

        return await self._database.write(take)

    async def end(
        self, key_id: str, limits: KeyLimits, back: int, holder: str, *, counts: bool = True
    ) -> Usage:
        """Give up a request's place, and give back the tokens that it did not draw; one that does
        not count is given back too."""

        def give(connection: Connection) -> Usage:
            before = self._locked(connection, key_id, limits)
            usage = allowance.settle(before, limits, back, counts=counts)
            _write(connection, key_id, usage)
            if limits.concurrency is not None:
                self._add_running(connection, key_id, holder, -1)
            return allowance.ended(usage)

        return await self._database.write(give)

    async def renew(self, holder: str, count_of: Callable[[str], int | None]) -> None:
        """Say that a gateway is alive, and correct its counts where a step failed half way.

        `count_of` tells how many requests of a key run there, or None while a step of one is on
        its way to the store; it is asked while nobody else can count, so its answer holds.
        """
        mine = key_running.c.holder == holder
        keys = await self._database.read(
            lambda c: c.execute(sa.select(key_running.c.key_id).where(mine)).scalars().all()
        )
        for key_id in keys:
            await self._database.write(
                lambda c, key_id=key_id: self._renew_key(c, key_id, holder, count_of)
            )
        gone = key_running.c.expires_at <= self._clock() - FORGET_AFTER_S
        await self._database.write(lambda c: c.execute(key_running.delete().where(gone)) and None)

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

    def _renew_key(
        self,
        connection: Connection,
        key_id: str,
        holder: str,
        count_of: Callable[[str], int | None],
    ) -> None:
        lock = sa.select(key_usage.c.key_id).where(key_usage.c.key_id == key_id)
        connection.execute(lock.with_for_update()).first()
        mine = sa.and_(key_running.c.key_id == key_id, key_running.c.holder == holder)
        count = count_of(key_id)
        if count == 0:
            connection.execute(key_running.delete().where(mine))
            return
        values: dict[str, float] = {"expires_at": self._clock() + RUNNING_TTL_S}
        if count is not None:
            values["running"] = count
        connection.execute(key_running.update().where(mine).values(values))

    def _add_running(self, connection: Connection, key_id: str, holder: str, number: int) -> None:
        # only the gateway itself writes its row, so the count holds also after a late renewal
        after = key_running.c.running + number
        row = {
            "key_id": key_id,
            "holder": holder,
            "running": max(0, number),
            "expires_at": self._clock() + RUNNING_TTL_S,
        }
        statement = _insert(connection, key_running).values(row)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["key_id", "holder"],
                set_={
                    "running": sa.case((after < 0, 0), else_=after),
                    "expires_at": row["expires_at"],
                },
            )
        )


def _begin(connection: Connection, key_id: str, usage: Usage) -> None:
    """Insert a key's first row, unless another gateway is just doing so."""
    row = {
        "key_id": key_id,
        "requests": usage.requests,
        "tokens": usage.tokens,
        "at_us": usage.at_us,
    }
    connection.execute(_insert(connection, key_usage).values(row).on_conflict_do_nothing())


def _insert(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def _write(connection: Connection, key_id: str, usage: Usage) -> None:
    connection.execute(
        key_usage.update()
        .where(key_usage.c.key_id == key_id)
        .values(requests=usage.requests, tokens=usage.tokens, at_us=usage.at_us)
    )
