"""The log of completions: written before an answer is sent, read by the trainer and the report."""

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from bond_core.holdout import Split
from bond_core.store.attempts import supersede_earlier
from bond_core.store.claims import Lease, claim_learnable
from bond_core.store.database import Database, RowRefusedError, in_chunks, refused
from bond_core.store.idempotency import settle
from bond_core.store.keeping_tables import completion_metadata, metadata_rows
from bond_core.store.prepared import PreparedRows
from bond_core.store.records import Annotation, ArmSummary, CompletionRecord, Source
from bond_core.store.rows import CompletionRows, Row, decode, decode_messages, encode, finite
from bond_core.store.settlement import Settlement
from bond_core.store.tables import EXACT_BEST_OF, UNSCORED, completions, contents
from bond_core.store.traffic import summarise_traffic
from bond_core.store.writer import GroupCommit
from bond_core.types import Message, raw_prompt

_PROMPTS_PAGE = 512
"""Rows that are read at once in search of distinct prompts."""
_ANNOTATIONS = ("score", "judge_score", "gold_score", "log_ratio")

JOINED = sa.select(
    completions,
    contents.c.messages,
    contents.c.prompt_tokens,
    contents.c.candidates,
    contents.c.candidate_tokens,
    contents.c.metadata,
).join_from(completions, contents)
"""What `decode` reads."""
_insert_content = contents.insert().values(
    # asked for by id: an insertion that returns what it numbered is built anew for each batch
    seq=sa.select(completions.c.seq)
    .where(completions.c.id == sa.bindparam("row_id"))
    .scalar_subquery(),
    **{
        column.name: sa.bindparam(column.name, type_=column.type)
        for column in contents.c
        if column is not contents.c.seq
    },
)
_annotate = (
    completions.update()
    .where(completions.c.id == sa.bindparam("row_id"))
    .values(
        {
            name: sa.func.coalesce(
                sa.bindparam(f"new_{name}", type_=sa.Double), completions.c[name]
            )
            for name in _ANNOTATIONS
        }
    )
)


class Completions:
    """Every completion that was answered, with all its candidates.

    `seq` numbers rows in the order in which they were inserted. With several writers a lower
    number can become visible after a higher one (PostgreSQL numbers a row before it is committed),
    so having seen `seq` says nothing about lower ones: a reader keeps its watermark behind.
    """

    def __init__(
        self,
        database: Database,
        *,
        group_commit_rows: int,
        commit_timeout_s: float,
        queue_rows: int,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._clock = clock
        self._insert = PreparedRows(completions.insert())
        self._insert_content = PreparedRows(_insert_content)
        self._annotate = PreparedRows(_annotate)
        self._records = GroupCommit[CompletionRows, None](
            database,
            self._insert_rows,
            max_rows=group_commit_rows,
            timeout_s=commit_timeout_s,
            max_waiting=queue_rows,
        )

    @property
    def commits(self) -> int:
        """Transactions that `record` has used so far."""
        return self._records.commits

    @property
    def num_waiting(self) -> int:
        """Rows that wait for a transaction."""
        return self._records.num_waiting

    async def record(self, record: CompletionRecord, settlement: Settlement | None = None) -> None:
        """Commit one completion; returns once the row is durable.

        A settlement ends the request's claim on its idempotency key in the same transaction; if
        another holds that claim by now, the row is refused.

        Raises `StoreUnavailableError` when the row was refused or not committed in time. After
        that (and after a cancellation) the row is not in the log, unless its transaction had
        already begun: then it may be there though its caller was answered with an error, never
        the other way round.
        """
        await self._records.submit(encode(record, settlement))

    async def record_many(self, records: Iterable[CompletionRecord]) -> None:
        """Commit many completions in one transaction: all of them, or none.

        Raises `StoreUnavailableError` for none.
        """
        rows = [encode(record) for record in records]

        def insert(connection: Connection) -> None:
            for chunk in in_chunks(rows):
                self._insert_rows(connection, chunk)

        try:
            await self._database.write(insert)
        except (SQLAlchemyError, RowRefusedError) as error:
            raise refused(error) from error

    async def annotate(self, annotations: Sequence[Annotation]) -> None:
        """Set the numbers that are given, leave the others as they are; in one transaction.

        Raises `ScoringError` for a number that is not finite, `StoreUnavailableError`.
        """
        rows: list[Row] = [
            {
                "row_id": annotation.id,
                **{f"new_{name}": finite(name, getattr(annotation, name)) for name in _ANNOTATIONS},
            }
            # in one order, so that two gateways that sweep the same rows cannot block each other
            for annotation in sorted(annotations, key=lambda annotation: annotation.id)
        ]
        if not rows:
            return
        try:
            await self._database.write(lambda connection: self._annotate.run(connection, rows))
        except (SQLAlchemyError, RowRefusedError) as error:
            raise refused(error) from error

    async def get(self, id: str) -> CompletionRecord | None:
        """The completion of this id."""

        def select(connection: Connection) -> CompletionRecord | None:
            row = connection.execute(JOINED.where(completions.c.id == id)).mappings().first()
            return None if row is None else decode(row)

        return await self._database.read(select)

    async def get_many(self, ids: Sequence[str]) -> list[CompletionRecord]:
        """Those of these completions that exist, oldest first."""

        def select(connection: Connection) -> list[CompletionRecord]:
            found: list[CompletionRecord] = []
            for chunk in in_chunks(ids):
                found.extend(_records(connection, JOINED.where(completions.c.id.in_(chunk))))
            return sorted(found, key=lambda record: record.seq)

        return await self._database.read(select)

    async def with_content(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids whose rows are there with their content."""

        def select(connection: Connection) -> set[str]:
            found: set[str] = set()
            for chunk in in_chunks(ids):
                kept = sa.select(completions.c.id).where(
                    completions.c.id.in_(chunk), completions.c.has_content
                )
                found.update(connection.execute(kept).scalars())
            return found

        return await self._database.read(select)

    async def unscored(self, limit: int, *, after_seq: int = 0) -> list[CompletionRecord]:
        """Answered rows with their content kept that lack a score, oldest first.

        A distilled row at standard sampling also waits for its log-ratio. A row that cannot be
        scored stays here: step over it with `after_seq`.
        """
        query = JOINED.where(UNSCORED, completions.c.seq > after_seq)
        return await self._database.read(
            lambda c: _records(c, query.order_by(completions.c.seq).limit(limit))
        )

    async def claim(
        self,
        holder: str,
        limit: int,
        lease_s: float,
        *,
        after_seq: int = 0,
        exclude: Collection[int] = (),
    ) -> list[CompletionRecord]:
        """Rows that the trainer may learn from, now held by `holder` for `lease_s` seconds.

        They have consent, content, standard sampling, the train split, status ok, and are not
        degraded; they come in the order of `seq`. Rows that another holder has claimed are left
        out until its lease ends; the holder's own are given again, with a new lease.

        What was consumed is the caller's to know: `after_seq` is a watermark below which it wants
        nothing more, `exclude` what it has consumed above. Because a lower `seq` can become
        visible after a higher one, and a row that is just being annotated is passed over, the
        watermark should stay behind the newest row consumed.
        """
        consumed = frozenset(exclude)

        def take(connection: Connection) -> list[int]:
            lease = Lease(holder, now=self._clock(), until=self._clock() + lease_s)
            return claim_learnable(connection, lease, limit, after_seq, consumed)

        seqs = await self._database.write(take)
        return await self._database.read(lambda connection: _by_seq(connection, seqs))

    async def winners(
        self, best_of_at_least: int, limit: int, *, exclude: Collection[int] = ()
    ) -> list[CompletionRecord]:
        """Logged Best-of-N rows whose N candidates are exactly N draws from the reference.

        All candidates present and scored, N at least `best_of_at_least`, otherwise as `claim`;
        newest first.
        """
        excluded = frozenset(exclude)
        query = sa.select(completions.c.seq).where(
            EXACT_BEST_OF, completions.c.best_of >= best_of_at_least
        )

        def select(connection: Connection) -> list[CompletionRecord]:
            newest_first = connection.execute(query.order_by(completions.c.seq.desc())).scalars()
            kept = (seq for seq in newest_first if seq not in excluded)
            found = _by_seq(connection, list(itertools.islice(kept, limit)))
            return found[::-1]

        return await self._database.read(select)

    async def prompts_of(self, split: Split, limit: int) -> list[tuple[Message, ...]]:
        """The oldest prompts on one side of the held-out split, one per first user message.

        Rows whose content is kept with consent; whether and how they were answered plays no part.
        Raw text is left out: it is no conversation, and nothing is trained for it.
        Repetitions do not count towards `limit`.
        """
        query = (
            sa.select(completions.c.seq, contents.c.messages)
            .join_from(completions, contents)
            .where(
                completions.c.split == split.value,
                completions.c.may_train,
                contents.c.messages.is_not(None),
            )
            .order_by(completions.c.seq)
            .limit(_PROMPTS_PAGE)
        )
        found: dict[str, tuple[Message, ...]] = {}
        after_seq = 0
        while len(found) < limit:
            page = query.where(completions.c.seq > after_seq)
            rows = await self._database.read(lambda c, page=page: c.execute(page).all())
            for _, encoded in rows:
                messages = decode_messages(encoded)
                if raw_prompt(messages) is None:
                    found.setdefault(_opening(messages), messages)
            if len(rows) < _PROMPTS_PAGE:
                break
            after_seq = rows[-1].seq
        return list(found.values())[:limit]

    async def count(self) -> int:
        """Rows in the log."""
        query = sa.select(sa.func.count()).select_from(completions)
        return await self._database.read(lambda connection: connection.execute(query).scalar_one())

    async def summarise(
        self, *, source: Source = "traffic", since: float | None = None, by_version: bool = False
    ) -> list[ArmSummary]:
        """Traffic per arm (and per policy version, if asked), since a time in Unix seconds."""
        return await self._database.read(
            lambda connection: summarise_traffic(connection, source, since, by_version)
        )

    def _insert_rows(self, connection: Connection, rows: Sequence[CompletionRows]) -> list[None]:
        """The rows of both tables, and what hangs on them, in the connection's transaction."""
        self._insert.run(connection, [row.main for row in rows])
        bulk = [{"row_id": row.main["id"], **row.content} for row in rows]
        self._insert_content.run(connection, bulk)
        if metadata := {row["row_id"]: row["metadata"] for row in bulk if row["metadata"]}:
            numbered = sa.select(completions.c.seq, completions.c.id)
            pairs = [
                pair
                for chunk in in_chunks(list(metadata))
                for seq, id in connection.execute(numbered.where(completions.c.id.in_(chunk)))
                for pair in metadata_rows(seq, metadata[id])
            ]
            connection.execute(completion_metadata.insert(), pairs)
        for row in rows:
            if row.settlement is not None:
                settle(connection, row.settlement, row.main["id"])
        supersede_earlier(connection, [row.main for row in rows], self._clock())
        return [None] * len(rows)

    async def close(self) -> None:
        """Commit what waits."""
        await self._records.close()


def _opening(messages: Sequence[Message]) -> str:
    """What the held-out split goes by: the first user message, white space collapsed."""
    first = next((m for m in messages if m.role == "user"), messages[0])
    return " ".join(first.content.split())


def _by_seq(connection: Connection, seqs: Sequence[int]) -> list[CompletionRecord]:
    found: list[CompletionRecord] = []
    for chunk in in_chunks(sorted(seqs)):
        query = JOINED.where(completions.c.seq.in_(chunk)).order_by(completions.c.seq)
        found.extend(_records(connection, query))
    return found


def _records(
    connection: Connection, query: sa.Select[tuple[object, ...]]
) -> list[CompletionRecord]:
    return [decode(row) for row in connection.execute(query).mappings()]
