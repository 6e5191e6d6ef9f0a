"""Leases: at most one holder of a name, until it lets go or its time runs out."""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.store.database import Database
from bond_core.store.tables import leases
from bond_core.store.upsert import upsert


class Leases:
    """Leases by name. Time is each process's own clock: keep hosts in step, to well under a ttl."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def acquire(self, name: str, holder: str, ttl_s: float) -> bool:
        """Take the lease, or renew one's own; False while another holder has it."""

        def take(connection: Connection) -> bool:
            now = self._clock()
            row = {"name": name, "holder": holder, "expires_at": now + ttl_s}
            free = sa.or_(leases.c.holder == holder, leases.c.expires_at <= now)
            statement = upsert(connection, leases, row, where=free).returning(leases.c.holder)
            return connection.execute(statement).first() is not None

        return await self._database.write(take)

    async def release(self, name: str, holder: str) -> None:
        """Give the lease up, if it is still one's own."""
        statement = leases.delete().where(leases.c.name == name, leases.c.holder == holder)
        await self._database.write(lambda c: c.execute(statement) and None)

    async def held(self) -> list[str]:
        """The names that somebody holds now: gateways hold `controller`, a trainer `trainer`."""
        query = sa.select(leases.c.name).where(leases.c.expires_at > self._clock())
        ordered = query.order_by(leases.c.name)
        return await self._database.read(lambda c: list(c.execute(ordered).scalars()))
