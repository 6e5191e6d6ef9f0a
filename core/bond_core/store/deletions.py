"""Deletion of what was kept: by id, by user, by age; and the account of what was deleted.

Every transaction deletes a bounded number of rows, so that those of answers come in between. A
deleted row is gone whole: its content, its metadata, the answer kept under its idempotency key.
SQLite overwrites what it deletes (`secure_delete`) and uses the space again.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.store.database import Database, in_chunks
from bond_core.store.keeping_tables import completion_metadata, deletions, idempotency_keys
from bond_core.store.tables import completions, contents

Subject = Literal["completion", "user"]

SCAN_ROWS = 20_000
"""Row numbers that are looked through at once for a user's rows."""

_row = completions.c
_found = (_row.seq, _row.id, _row.learnable)
Found = Any  # a row of these three


@dataclass(frozen=True, slots=True)
class DeletionRecord:
    """What was deleted for one request, without saying whose it was."""

    id: int
    created_at: float
    subject: Subject
    subject_hash: str
    """SHA-256 of the user's name or the completion's id: it answers whether somebody known was
    deleted, and names nobody."""
    num_rows: int
    num_learnable: int
    """Of these, rows that the trainer could have learned from."""
    first_seq: int | None
    last_seq: int | None
    """The outermost learnable rows."""
    versions: tuple[str, ...]
    """Policy versions whose window of the log covers them, when they were deleted."""


class Deletions:
    """Deletes in chunks, and keeps account."""

    def __init__(
        self, database: Database, clock: Callable[[], float], chunk_rows: int = 200
    ) -> None:
        self._database = database
        self._clock = clock
        self._chunk_rows = chunk_rows

    async def delete_completion(self, id: str) -> DeletionRecord | None:
        """Delete one stored completion; None if there is none of that id."""

        def delete(connection: Connection) -> DeletionRecord | None:
            query = sa.select(*_found).where(_row.id == id, _row.stored).with_for_update()
            rows = connection.execute(query).all()
            if not rows:
                return None
            number = _open_account(connection, "completion", id, self._clock())
            _delete(connection, number, rows)
            return _account(connection, number)

        return await self._database.write(delete)

    async def delete_user(self, user: str) -> DeletionRecord:
        """Delete every row of a user: whose `user`, `safety_identifier` or unit is that name.

        Requests of theirs that run meanwhile may leave rows; delete again when they have ended.
        """
        number = await self._database.write(lambda c: _open_account(c, "user", user, self._clock()))
        theirs = sa.or_(_row.end_user == user, _row.safety_identifier == user, _row.unit == user)
        last = await self._database.read(_last_seq)
        for start in range(0, last, SCAN_ROWS):
            window = _row.seq.between(start + 1, min(start + SCAN_ROWS, last))
            query = sa.select(*_found).where(window, theirs).order_by(_row.seq)
            found = await self._database.read(lambda c, query=query: c.execute(query).all())
            for at in range(0, len(found), self._chunk_rows):
                rows = found[at : at + self._chunk_rows]
                await self._database.write(lambda c, rows=rows: _delete(c, number, rows))
        return await self._database.read(lambda c: _account(c, number))

    async def set_versions(self, id: int, versions: Sequence[str]) -> None:
        """Note which policy versions had seen what was deleted."""
        statement = deletions.update().where(deletions.c.id == id)
        await self._database.write(
            lambda c: c.execute(statement.values(versions=list(versions))) and None
        )

    async def latest(self, limit: int, subject_hash: str | None = None) -> list[DeletionRecord]:
        """The newest deletions first."""
        query = sa.select(deletions).order_by(deletions.c.id.desc()).limit(limit)
        if subject_hash is not None:
            query = query.where(deletions.c.subject_hash == subject_hash)

        def select(connection: Connection) -> list[DeletionRecord]:
            return [_record(row) for row in connection.execute(query).mappings()]

        return await self._database.read(select)

    async def expire_contents(self, before: float, limit: int) -> int:
        """Take the content out of rows that arrived before a time; returns how many had some."""

        def expire(connection: Connection) -> int:
            old = (
                sa.select(_row.seq)
                .where(_row.has_content, _row.created_at < before)
                .order_by(_row.created_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            seqs = connection.execute(old).scalars().all()
            for chunk in in_chunks(seqs):
                _empty(connection, chunk)
            return len(seqs)

        return await self._database.write(expire)

    async def expire_rows(self, before: float, limit: int) -> int:
        """Delete rows that arrived before a time; returns how many."""

        def expire(connection: Connection) -> int:
            old = (
                sa.select(*_found)
                .where(_row.created_at < before)
                .order_by(_row.created_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            return len(_remove(connection, connection.execute(old).all()))

        return await self._database.write(expire)

    async def expire_answers(self, limit: int) -> int:
        """Delete answers under idempotency keys, and claims, whose time is over."""
        key = idempotency_keys.c
        old = sa.select(key.scope).where(key.expires_at <= self._clock()).limit(limit)
        statement = idempotency_keys.delete().where(key.scope.in_(old))
        return await self._database.write(lambda c: c.execute(statement).rowcount)


def subject_hash(name: str) -> str:
    """How the account knows a user or a completion."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _open_account(connection: Connection, subject: Subject, name: str, now: float) -> int:
    row = {
        "created_at": now,
        "subject": subject,
        "subject_hash": subject_hash(name),
        "num_rows": 0,
        "num_learnable": 0,
        "versions": list[str](),
    }
    return connection.execute(deletions.insert().values(row).returning(deletions.c.id)).scalar_one()


def _delete(connection: Connection, number: int, rows: Sequence[Found]) -> None:
    """Delete these rows and note it in the account, together; those that somebody else has deleted
    since they were found are in the account of that deletion."""
    rows = _remove(connection, rows)
    account = _account(connection, number)
    learnable = [row.seq for row in rows if row.learnable]
    ends = [seq for seq in (account.first_seq, account.last_seq, *learnable) if seq is not None]
    connection.execute(
        deletions.update()
        .where(deletions.c.id == number)
        .values(
            num_rows=account.num_rows + len(rows),
            num_learnable=account.num_learnable + len(learnable),
            first_seq=min(ends, default=None),
            last_seq=max(ends, default=None),
        )
    )


def _remove(connection: Connection, rows: Sequence[Found]) -> list[Found]:
    """Delete rows; returns those that were still there."""
    removed: list[Found] = []
    for chunk in in_chunks(rows):
        connection.execute(
            idempotency_keys.delete().where(
                idempotency_keys.c.completion_id.in_([row.id for row in chunk])
            )
        )
        # contents and metadata go with their row
        theirs = completions.delete().where(_row.seq.in_([row.seq for row in chunk]))
        removed += connection.execute(theirs.returning(*_found)).all()
    return removed


def _empty(connection: Connection, seqs: Sequence[int]) -> None:
    """Leave of rows what is counted and measured; nothing can be learned from them any more."""
    ids = sa.select(_row.id).where(_row.seq.in_(seqs))
    connection.execute(idempotency_keys.delete().where(idempotency_keys.c.completion_id.in_(ids)))
    connection.execute(
        contents.update()
        .where(contents.c.seq.in_(seqs))
        .values(
            messages=None,
            prompt_tokens=None,
            candidates=None,
            candidate_tokens=None,
            metadata=None,
        )
    )
    connection.execute(completion_metadata.delete().where(completion_metadata.c.seq.in_(seqs)))
    _empty_params(connection, seqs)
    connection.execute(
        completions.update()
        .where(_row.seq.in_(seqs))
        .values(
            has_content=False,
            stored=False,
            may_train=False,
            scorable=False,
            learnable=False,
            exact_best_of=False,
            error=None,  # it may quote what was said
        )
    )


def _empty_params(connection: Connection, seqs: Sequence[int]) -> None:
    """Take stop strings, tools and documents out of sampling parameters: they are words too."""
    found = connection.execute(sa.select(_row.seq, _row.params).where(_row.seq.in_(seqs))).all()
    for seq, params in found:
        if params.get("stop") or params.get("further"):
            emptied: dict[str, Any] = {**params, "stop": list[str](), "further": dict[str, Any]()}
            connection.execute(completions.update().where(_row.seq == seq).values(params=emptied))


def _last_seq(connection: Connection) -> int:
    return connection.execute(sa.select(sa.func.coalesce(sa.func.max(_row.seq), 0))).scalar_one()


def _account(connection: Connection, number: int) -> DeletionRecord:
    query = sa.select(deletions).where(deletions.c.id == number)
    return _record(connection.execute(query).mappings().one())


def _record(row: sa.RowMapping) -> DeletionRecord:
    return DeletionRecord(
        id=row["id"],
        created_at=row["created_at"],
        subject=row["subject"],
        subject_hash=row["subject_hash"],
        num_rows=row["num_rows"],
        num_learnable=row["num_learnable"],
        first_seq=row["first_seq"],
        last_seq=row["last_seq"],
        versions=tuple(row["versions"]),
    )
