"""Rows name the experiment that their arm was assigned by."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rows that are there keep none: the name under which they were assigned is not known."""
    op.add_column("completions", sa.Column("experiment", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop it again."""
    op.drop_column("completions", "experiment")
