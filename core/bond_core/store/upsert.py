"""Insert or replace, in the words of both databases."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite


def upsert(
    connection: Connection,
    table: sa.Table,
    row: dict[str, Any],
    where: sa.ColumnElement[bool] | None = None,
) -> sqlite.Insert | postgresql.Insert:
    """An insert that overwrites the row of the same primary key, if `where` holds for it."""
    key = [column.name for column in table.primary_key]
    others = {name: value for name, value in row.items() if name not in key}
    if connection.dialect.name == "postgresql":
        statement = postgresql.insert(table).values(row)
        return statement.on_conflict_do_update(index_elements=key, set_=others, where=where)
    statement = sqlite.insert(table).values(row)
    return statement.on_conflict_do_update(index_elements=key, set_=others, where=where)
