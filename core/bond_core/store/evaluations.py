"""What was measured of each version, and when."""

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.holdout import Split
from bond_core.store.database import Database
from bond_core.store.records import EvaluationRecord
from bond_core.store.tables import evaluations


class Evaluations:
    """Evaluations, in the order in which they were made; none is ever changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, record: EvaluationRecord) -> None:
        """Add one evaluation."""
        row = {
            "version": record.version,
            "step": record.step,
            "split": record.split.value,
            "created_at": record.created_at,
            "metrics": record.metrics,
        }
        await self._database.write(lambda c: c.execute(evaluations.insert(), row) and None)

    async def of(self, version: str) -> list[EvaluationRecord]:
        """The evaluations of one version, oldest first."""
        query = sa.select(evaluations).where(evaluations.c.version == version)
        return await self._database.read(lambda c: _records(c, query.order_by(evaluations.c.id)))

    async def latest(self, limit: int) -> list[EvaluationRecord]:
        """The newest evaluations of all versions, newest first."""
        query = sa.select(evaluations).order_by(evaluations.c.id.desc()).limit(limit)
        return await self._database.read(lambda c: _records(c, query))


def _records(
    connection: Connection, query: sa.Select[tuple[object, ...]]
) -> list[EvaluationRecord]:
    return [
        EvaluationRecord(
            version=row["version"],
            step=row["step"],
            split=Split(row["split"]),
            created_at=row["created_at"],
            metrics=row["metrics"],
        )
        for row in connection.execute(query).mappings()
    ]
