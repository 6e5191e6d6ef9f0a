"""Tables beside the log: answers kept for repeated requests, the callers' metadata, deletions."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from bond_core.store.tables import Json, PlainText, Sequence, metadata, storable

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    # SHA-256 of caller and key: neither is kept.
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    # While in flight the end of the lease, afterwards the end of the answer's life.
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
    sa.Column("completion_id", PlainText, index=True),
    sa.Column("media_type", sa.Text),
    sa.Column("headers", Json),
    sa.Column("answer", sa.LargeBinary),
)

completion_metadata = sa.Table(
    "completion_metadata",
    metadata,
    sa.Column(
        "seq",
        Sequence,
        sa.ForeignKey("completions.seq", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("key", PlainText, primary_key=True),
    sa.Column("value", PlainText, nullable=False),
)
sa.Index(
    "ix_completion_metadata_key",
    completion_metadata.c.key,
    completion_metadata.c.value,
    completion_metadata.c.seq,
)

deletions = sa.Table(
    "deletions",
    metadata,
    sa.Column("id", Sequence, primary_key=True, autoincrement=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("subject_hash", sa.Text, nullable=False, index=True),
    sa.Column("num_rows", sa.Integer, nullable=False),
    sa.Column("num_learnable", sa.Integer, nullable=False),
    sa.Column("first_seq", Sequence),
    sa.Column("last_seq", Sequence),
    sa.Column("versions", Json, nullable=False),
    sqlite_autoincrement=True,
)


def metadata_rows(seq: int, pairs: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """The rows by which a completion is found by its metadata."""
    unique = {storable(key): value for key, value in (pairs or {}).items()}
    return [{"seq": seq, "key": key, "value": value} for key, value in unique.items()]
