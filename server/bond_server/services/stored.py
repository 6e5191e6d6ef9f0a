"""Stored completions as their callers see them, and what becomes of the versions when they go."""

import logging
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace

from bond_core.errors import InvalidRequestError, UnknownCompletionError
from bond_core.store import Store
from bond_core.store.deletions import DeletionRecord, subject_hash
from bond_core.store.records import CompletionRecord
from bond_core.store.stored import StoredQuery
from bond_server.ids import COMPLETION_PREFIX, TEXT_COMPLETION_PREFIX
from bond_server.services.lineage import versions_that_saw
from bond_server.services.redaction import RedactionError, Redactor

logger = logging.getLogger(__name__)

EXPORT_PAGE = 200
"""Rows of an export that are in memory at once."""


class StoredService:
    """Finds, changes, deletes and exports. Where there is a `key`, only what that API key asked for
    is there; None is whoever asked."""

    def __init__(self, store: Store, redactor: Redactor | None = None) -> None:
        self._store = store
        self._redactor = redactor

    async def page(
        self, query: StoredQuery, after: str | None
    ) -> tuple[list[CompletionRecord], bool]:
        """A page behind the completion `after`, and whether there is more."""
        query = replace(
            query, after_seq=await self._seq_of(after, query.key), limit=query.limit + 1
        )
        found = await self._store.stored.page(query)
        return found[: query.limit - 1], len(found) == query.limit

    async def get(self, id: str, key: str | None) -> CompletionRecord:
        """A stored completion, if `key` asked for it. Raises `UnknownCompletionError`."""
        return _there(await self._store.stored.get(_row_of(id), key), id)

    async def set_metadata(
        self, id: str, pairs: Mapping[str, str], key: str | None
    ) -> CompletionRecord:
        """Replace its metadata, by what may be kept of it. Raises `UnknownCompletionError`."""
        if self._redactor is not None:
            try:
                pairs = await self._redactor.redacted_pairs(pairs)
            except RedactionError as error:
                logger.error("new metadata of %s is not kept: %s", id, error)
                pairs = {}
        return _there(await self._store.stored.set_metadata(_row_of(id), pairs, key), id)

    async def delete(self, id: str, key: str | None) -> None:
        """Delete it whole. Raises `UnknownCompletionError`."""
        if key is not None:
            await self.get(id, key)
        deleted = await self._store.deletions.delete_completion(_row_of(id))
        if deleted is None:
            raise UnknownCompletionError(id)
        await self._note_versions(deleted)

    async def delete_user(self, user: str) -> DeletionRecord:
        """Delete everything of a user; the account names the versions that had seen it."""
        return await self._note_versions(await self._store.deletions.delete_user(user))

    async def deletions(self, limit: int, user: str | None) -> list[DeletionRecord]:
        """The latest deletions, with the versions that are known by now to have seen the rows: a
        learner may publish long after it has learned."""
        wanted = None if user is None else subject_hash(user)
        found = await self._store.deletions.latest(limit, wanted)
        return [replace(record, versions=await self._versions(record)) for record in found]

    async def export(
        self, query: StoredQuery, after: str | None
    ) -> AsyncGenerator[list[CompletionRecord]]:
        """Everything that matches, oldest first, page by page. Raises `InvalidRequestError` for
        an unknown `after` before the first page."""
        last = await self._seq_of(after, query.key)
        while True:
            page = await self._store.stored.page(
                replace(query, after_seq=last, limit=EXPORT_PAGE, descending=False)
            )
            yield page
            if len(page) < EXPORT_PAGE:
                return
            last = page[-1].seq

    async def _note_versions(self, record: DeletionRecord) -> DeletionRecord:
        versions = await self._versions(record)
        await self._store.deletions.set_versions(record.id, versions)
        return replace(record, versions=versions)

    async def _versions(self, record: DeletionRecord) -> tuple[str, ...]:
        if record.first_seq is None or record.last_seq is None:
            return record.versions
        now = await versions_that_saw(self._store.policies, record.first_seq, record.last_seq)
        return tuple(dict.fromkeys([*record.versions, *now]))

    async def _seq_of(self, after: str | None, key: str | None) -> int | None:
        if after is None:
            return None
        record = await self._store.completions.get(_row_of(after))
        if record is None or key not in (None, record.key):
            raise InvalidRequestError(
                f"after names {after!r}, which is not there (any more): begin from the start, or "
                "with another id",
                param="after",
            )
        return record.seq


def _row_of(id: str) -> str:
    for prefix in (COMPLETION_PREFIX, TEXT_COMPLETION_PREFIX):
        if id.startswith(prefix):
            return id.removeprefix(prefix)
    return id


def _there(record: CompletionRecord | None, id: str) -> CompletionRecord:
    if record is None:
        raise UnknownCompletionError(id)
    return record
