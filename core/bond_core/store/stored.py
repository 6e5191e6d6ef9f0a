"""Completions as their callers find them again: by id, by model and metadata, page by page."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.store.completions import JOINED
from bond_core.store.database import Database
from bond_core.store.keeping_tables import completion_metadata, metadata_rows
from bond_core.store.records import CompletionRecord
from bond_core.store.rows import decode
from bond_core.store.tables import completions, contents, storable

_row = completions.c


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredQuery:
    """Which completions, and which page of them."""

    model: str | None = None
    key: str | None = None
    """Only what this API key asked for; None is whoever asked."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """Pairs that a completion must have, all of them."""
    since: float | None = None
    until: float | None = None
    """Unix seconds of arrival: from, and up to but without."""
    after_seq: int | None = None
    descending: bool = False
    limit: int = 20
    only_stored: bool = True
    """False gives every row whose content is kept, also those that were not asked to be stored."""


class StoredCompletions:
    """Reads and changes what callers may see of the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, query: StoredQuery) -> list[CompletionRecord]:
        """At most `limit` completions in the order of the log, or the other way round."""
        statement = JOINED.where(*_conditions(query)).limit(query.limit)
        order = _row.seq.desc() if query.descending else _row.seq.asc()

        def select(connection: Connection) -> list[CompletionRecord]:
            found = connection.execute(statement.order_by(order)).mappings()
            return [decode(row) for row in found]

        return await self._database.read(select)

    async def get(self, id: str, key: str | None = None) -> CompletionRecord | None:
        """A stored completion; None if there is none of that id, or it is not stored, or another
        key asked for it than the one that is given."""
        return await self._database.read(lambda c: _get(c, id, key))

    async def set_metadata(
        self, id: str, pairs: Mapping[str, str], key: str | None = None
    ) -> CompletionRecord | None:
        """Replace a stored completion's metadata; returns it as it is then. See `get`."""

        def replace(connection: Connection) -> CompletionRecord | None:
            found = sa.select(_row.seq).where(*_is(id, key)).with_for_update()
            seq = connection.execute(found).scalar_one_or_none()
            if seq is None:
                return None
            connection.execute(
                contents.update().where(contents.c.seq == seq).values(metadata=dict(pairs) or None)
            )
            connection.execute(completion_metadata.delete().where(completion_metadata.c.seq == seq))
            if rows := metadata_rows(seq, pairs):
                connection.execute(completion_metadata.insert(), rows)
            return _get(connection, id, key)

        return await self._database.write(replace)


def _get(connection: Connection, id: str, key: str | None) -> CompletionRecord | None:
    row = connection.execute(JOINED.where(*_is(id, key))).mappings().first()
    return None if row is None else decode(row)


def _is(id: str, key: str | None) -> list[sa.ColumnElement[bool]]:
    return [_row.id == id, _row.stored, *([] if key is None else [_row.key == key])]


def _conditions(query: StoredQuery) -> list[sa.ColumnElement[bool]]:
    visible = _row.stored if query.only_stored else _row.has_content
    conditions: list[sa.ColumnElement[bool]] = [visible]
    if query.model is not None:
        conditions.append(_row.requested_model == query.model)
    if query.key is not None:
        conditions.append(_row.key == query.key)
    if query.since is not None:
        conditions.append(_row.created_at >= query.since)
    if query.until is not None:
        conditions.append(_row.created_at < query.until)
    if query.after_seq is not None:
        later = _row.seq < query.after_seq if query.descending else _row.seq > query.after_seq
        conditions.append(later)
    pair = completion_metadata.c
    for key, value in query.metadata.items():
        found = sa.select(pair.seq).where(pair.key == storable(key), pair.value == storable(value))
        conditions.append(_row.seq.in_(found))
    return conditions
