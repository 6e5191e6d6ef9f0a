"""Statements that are run for many rows, compiled once per database.

SQLAlchemy keeps what it compiled too, but takes every value of every row through layers that cost
more than the database's own work on the row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from bond_core.store.database import RowRefusedError

Encode = Callable[[Any], Any] | None


@dataclass(frozen=True, slots=True)
class _Compiled:
    sql: str
    values: tuple[tuple[str, Encode], ...]
    """The row's key of each parameter, in their order, and what its type makes of a value."""


class PreparedRows:
    """An insertion or update whose only parameters are the values of a row; for the connections of
    one database."""

    def __init__(self, statement: sa.Insert | sa.Update) -> None:
        self._statement = statement
        self._compiled: _Compiled | None = None

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run it for each row, all of which have the keys of the first.

        Raises as `Connection.execute` does, and `RowRefusedError` for a value that has no form in
        its column.
        """
        if self._compiled is None:
            self._compiled = _compile(self._statement, connection.dialect, list(rows[0]))
        values = self._compiled.values
        try:
            encoded = [
                tuple([row[key] if encode is None else encode(row[key]) for key, encode in values])
                for row in rows
            ]
        except Exception as error:  # whatever a type raises, it is of this row alone
            raise RowRefusedError(f"a value cannot be stored: {error}") from error
        connection.exec_driver_sql(self._compiled.sql, encoded)


def _compile(statement: sa.Insert | sa.Update, dialect: Dialect, keys: Sequence[str]) -> _Compiled:
    compiled = statement.compile(dialect=dialect, column_keys=list(keys), for_executemany=True)
    assert isinstance(compiled, SQLCompiler)
    assert compiled.positiontup is not None, f"{dialect.name} has no positional parameters"
    values = tuple(
        (key, compiled.binds[key].type.dialect_impl(dialect).bind_processor(dialect))
        for key in compiled.positiontup
    )
    return _Compiled(compiled.string, values)
