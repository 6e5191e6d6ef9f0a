"""Statements for many rows: the same rows as by SQLAlchemy's own way, on both databases."""

import math

import pytest
import sqlalchemy as sa
from databases import OpenStoreAt
from sqlalchemy import Connection

from bond_core.store.database import RowRefusedError
from bond_core.store.prepared import PreparedRows
from bond_core.store.tables import Document, Json, PlainText

_metadata = sa.MetaData()
_things = sa.Table(
    "prepared_things",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("text", PlainText),
    sa.Column("json", Json),
    sa.Column("document", Document),
    sa.Column("flag", sa.Boolean),
    sa.Column("number", sa.Double),
    sa.Column("blob", sa.LargeBinary),
)
ROWS = [
    {
        "id": 1, "text": "a\x00b é", "json": {"k": ["é", None, 1.5]}, "document": {"x": math.inf},
        "flag": True, "number": 1e-300, "blob": b"\x00\xff",
    },
    {
        "id": 2, "text": None, "json": None, "document": {}, "flag": None, "number": None,
        "blob": None,
    },
]  # fmt: skip


async def test_rows_are_as_by_execute(database_url: str, open_store_at: OpenStoreAt) -> None:
    store = await open_store_at(database_url)
    insert = PreparedRows(_things.insert())
    change = PreparedRows(
        _things.update()
        .where(_things.c.id == sa.bindparam("row_id"))
        .values(number=sa.func.coalesce(sa.bindparam("new", type_=sa.Double), _things.c.number))
    )

    def written(connection: Connection) -> tuple[list[sa.Row[tuple[object, ...]]], ...]:
        _metadata.create_all(connection)
        connection.execute(_things.insert(), ROWS)
        expected = connection.execute(sa.select(_things).order_by(_things.c.id)).all()
        connection.execute(_things.delete())
        insert.run(connection, ROWS[:1])
        insert.run(connection, ROWS[1:])  # compiled already
        inserted = connection.execute(sa.select(_things).order_by(_things.c.id)).all()
        change.run(connection, [{"row_id": 1, "new": None}, {"row_id": 2, "new": 2.5}])
        numbers = connection.execute(sa.select(_things.c.number).order_by(_things.c.id)).all()
        return list(expected), list(inserted), list(numbers)

    expected, inserted, numbers = await store.database.write(written)
    assert inserted == expected
    assert inserted[0].text == "a\ufffdb é"
    assert inserted[0].document == {"x": math.inf}
    assert [number for (number,) in numbers] == [1e-300, 2.5]


async def test_a_value_without_a_form_is_its_rows_fault(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(database_url)
    insert = PreparedRows(_things.insert())

    def write(connection: Connection) -> None:
        insert.run(connection, [{**ROWS[0], "json": {"k": object()}}])

    with pytest.raises(RowRefusedError, match="a value cannot be stored"):
        await store.database.write(write)
