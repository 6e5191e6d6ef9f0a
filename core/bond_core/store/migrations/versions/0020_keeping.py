"""What rows say of their request, answers kept for repeated requests, metadata, deletions."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0010"
branch_labels = None
depends_on = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PARTIAL_INDEXES = {
    "ix_completions_stored": (["seq"], "stored"),
    "ix_completions_has_content": (["created_at"], "has_content"),
    "ix_completions_request_digest": (["request_digest", "retry"], "request_digest IS NOT NULL"),
}
COLUMNS = (
    "end_user",
    "safety_identifier",
    "system_fingerprint",
    "has_content",
    "stored",
    "redacted",
    "request_digest",
    "retry",
    "superseded",
)


def upgrade() -> None:
    """Add columns and tables. Rows that are there count as stored where they may be learned from:
    so far `store` decided that, and nothing else did."""
    for name in ("end_user", "safety_identifier", "system_fingerprint", "request_digest"):
        op.add_column("completions", sa.Column(name, sa.Text(), nullable=True))
    for name in ("has_content", "stored", "redacted", "superseded"):
        op.add_column(
            "completions",
            sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()),
        )
    op.add_column(
        "completions",
        sa.Column("retry", sa.Integer(), nullable=False, server_default=sa.text("0")),
    )
    op.add_column("contents", sa.Column("metadata", sa.JSON(), nullable=True))
    op.execute(
        "UPDATE completions SET has_content = true"
        " WHERE seq IN (SELECT seq FROM contents WHERE messages IS NOT NULL)"
    )
    op.execute(
        "UPDATE completions SET stored = true WHERE has_content AND may_train AND status = 'ok'"
    )
    for index, (columns, where) in PARTIAL_INDEXES.items():
        op.create_index(
            index,
            "completions",
            columns,
            unique=False,
            sqlite_where=sa.text(where),
            postgresql_where=sa.text(where),
        )
    _create_tables()


def downgrade() -> None:
    """Drop them again."""
    for table in ("deletions", "completion_metadata", "idempotency_keys"):
        op.drop_table(table)
    for index in PARTIAL_INDEXES:
        op.drop_index(index, table_name="completions")
    op.drop_column("contents", "metadata")
    for name in COLUMNS:
        op.drop_column("completions", name)


def _create_tables() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("completion_id", sa.Text(), nullable=True),
        sa.Column("media_type", sa.Text(), nullable=True),
        sa.Column("headers", sa.JSON(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("scope", name="pk_idempotency_keys"),
    )
    for column in ("expires_at", "completion_id"):
        op.create_index(f"ix_idempotency_keys_{column}", "idempotency_keys", [column], unique=False)
    op.create_table(
        "completion_metadata",
        sa.Column("seq", SEQUENCE, autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["seq"], ["completions.seq"], name="fk_completion_metadata_seq", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", "key", name="pk_completion_metadata"),
    )
    op.create_index(
        "ix_completion_metadata_key", "completion_metadata", ["key", "value", "seq"], unique=False
    )
    op.create_table(
        "deletions",
        sa.Column("id", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("subject_hash", sa.Text(), nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("num_learnable", sa.Integer(), nullable=False),
        sa.Column("first_seq", SEQUENCE, nullable=True),
        sa.Column("last_seq", SEQUENCE, nullable=True),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deletions"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_deletions_subject_hash", "deletions", ["subject_hash"], unique=False)
