"""What the trainer last said of itself."""

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.store.database import Database
from bond_core.store.records import TrainingRecord
from bond_core.store.tables import training
from bond_core.store.upsert import upsert


class Training:
    """One row per training run, overwritten by each report."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def report(self, record: TrainingRecord) -> None:
        """Insert the run's row, or replace it."""
        row = {
            "run_id": record.run_id,
            "state": record.state,
            "step": record.step,
            "started_at": record.started_at,
            "heartbeat_at": record.heartbeat_at,
            "metrics": record.metrics,
            "counts": record.counts,
            "error": record.error,
        }
        await self._database.write(lambda c: c.execute(upsert(c, training, row)) and None)

    async def latest(self) -> TrainingRecord | None:
        """The run that reported last."""
        query = sa.select(training).order_by(training.c.heartbeat_at.desc()).limit(1)

        def select(connection: Connection) -> TrainingRecord | None:
            row = connection.execute(query).mappings().first()
            return None if row is None else TrainingRecord(**row)

        return await self._database.read(select)
