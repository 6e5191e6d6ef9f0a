"""The versions of a store whose tables may be of another release."""

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.store.tables import policies
from bond_core.types import REFERENCE_VERSION, PolicyState


def version_states(connection: Connection) -> dict[str, PolicyState]:
    """Every version but the reference and its state, by two columns that every schema has."""
    query = sa.select(policies.c.version, policies.c.state).where(
        policies.c.version != REFERENCE_VERSION
    )
    rows = connection.execute(query.order_by(policies.c.version)).all()
    return {version: PolicyState(state) for version, state in rows}


def move_adapters(connection: Connection, adapters_dir: Path) -> None:
    """Say of every version that its directory is in this folder."""
    for version in version_states(connection):
        path = str(adapters_dir / version)
        connection.execute(policies.update().where(policies.c.version == version).values(path=path))
