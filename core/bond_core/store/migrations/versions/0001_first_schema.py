"""The first schema, with the reference registered as the active policy."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UNSCORED = (
    "scorable AND (score IS NULL"
    " OR (arm = 'distilled' AND standard_sampling AND log_ratio IS NULL))"
)


def upgrade() -> None:
    """Create every table; `v0000` is active and the alias names it."""
    _create_completions()
    _create_policies()
    _create_rest()
    _insert_reference()


def downgrade() -> None:
    """Drop every table."""
    for table in (
        "leases",
        "training",
        "evaluations",
        "counters",
        "aliases",
        "policies",
        "contents",
        "completions",
    ):
        op.drop_table(table)


def _create_completions() -> None:
    op.create_table(
        "completions",
        sa.Column("seq", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("requested_model", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("best_of", sa.Integer(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("standard_sampling", sa.Boolean(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("may_train", sa.Boolean(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("chosen", sa.JSON(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("degraded", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("queue_s", sa.Double, nullable=False),
        sa.Column("generate_s", sa.Double, nullable=False),
        sa.Column("score_s", sa.Double, nullable=False),
        sa.Column("latency_s", sa.Double, nullable=False),
        sa.Column("score", sa.Double, nullable=True),
        sa.Column("judge_score", sa.Double, nullable=True),
        sa.Column("gold_score", sa.Double, nullable=True),
        sa.Column("log_ratio", sa.Double, nullable=True),
        sa.Column("generated_tokens", sa.Integer(), nullable=False),
        sa.Column("scorable", sa.Boolean(), nullable=False),
        sa.Column("learnable", sa.Boolean(), nullable=False),
        sa.Column("exact_best_of", sa.Boolean(), nullable=False),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("claimed_until", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("seq", name="pk_completions"),
        sa.UniqueConstraint("id", name="uq_completions_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_completions_created_at", "completions", ["created_at"], unique=False)
    op.create_index(
        "ix_completions_exact_best_of",
        "completions",
        ["seq"],
        unique=False,
        sqlite_where=sa.text("exact_best_of"),
        postgresql_where=sa.text("exact_best_of"),
    )
    op.create_index(
        "ix_completions_learnable",
        "completions",
        ["seq"],
        unique=False,
        sqlite_where=sa.text("learnable"),
        postgresql_where=sa.text("learnable"),
    )
    op.create_index(
        "ix_completions_unscored",
        "completions",
        ["seq"],
        unique=False,
        sqlite_where=sa.text(UNSCORED),
        postgresql_where=sa.text(UNSCORED),
    )
    op.create_table(
        "contents",
        sa.Column("seq", SEQUENCE, autoincrement=False, nullable=False),
        sa.Column("messages", sa.JSON(), nullable=True),
        sa.Column("prompt_tokens", sa.LargeBinary(), nullable=True),
        sa.Column("candidates", sa.JSON(), nullable=True),
        sa.Column("candidate_tokens", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["seq"], ["completions.seq"], name="fk_contents_seq", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", name="pk_contents"),
    )


def _create_policies() -> None:
    op.create_table(
        "policies",
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evaluation", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["parent"], ["policies.version"], name="fk_policies_parent"),
        sa.PrimaryKeyConstraint("version", name="pk_policies"),
    )
    op.create_index(
        "uq_policies_active",
        "policies",
        ["state"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "aliases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(["version"], ["policies.version"], name="fk_aliases_version"),
        sa.PrimaryKeyConstraint("name", name="pk_aliases"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )


def _create_rest() -> None:
    op.create_table(
        "evaluations",
        sa.Column("id", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_evaluations_version", "evaluations", ["version"], unique=False)
    op.create_table(
        "training",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("heartbeat_at", sa.Double, nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name="pk_training"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )


def _insert_reference() -> None:
    now = time.time()
    policies = sa.table(
        "policies",
        sa.column("version", sa.Text),
        sa.column("state", sa.Text),
        sa.column("path", sa.Text),
        sa.column("step", sa.Integer),
        sa.column("created_at", sa.Double),
        sa.column("updated_at", sa.Double),
        sa.column("reason", sa.Text),
        sa.column("evaluation", sa.JSON),
    )
    reference: dict[str, object] = {
        "version": "v0000",
        "state": "active",
        "path": "",
        "step": 0,
        "created_at": now,
        "updated_at": now,
        "reason": "the reference itself",
        "evaluation": dict[str, object](),
    }
    op.bulk_insert(policies, [reference])
    aliases = sa.table(
        "aliases",
        sa.column("name", sa.Text),
        sa.column("version", sa.Text),
        sa.column("updated_at", sa.Double),
    )
    op.bulk_insert(aliases, [{"name": "active", "version": "v0000", "updated_at": now}])
    counters = sa.table("counters", sa.column("name", sa.Text), sa.column("value", sa.Integer))
    op.bulk_insert(counters, [{"name": "policy_version", "value": 0}])
