"""A migration as the release after this one may have it; REVISION is put in when it is used."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "REVISION"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column with a default and a table, and take a while, with the tables locked."""
    op.add_column("completions", sa.Column("later", sa.Text(), nullable=False, server_default="x"))
    op.create_table("later_things", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("UPDATE completions SET later = 'y'")
    op.execute("SELECT pg_sleep(1)")


def downgrade() -> None:
    """Take both away again."""
    op.drop_table("later_things")
    op.drop_column("completions", "later")
