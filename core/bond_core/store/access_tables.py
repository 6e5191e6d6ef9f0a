"""The tables of access: API keys, browser sessions, and what each key has used of its limits."""

import sqlalchemy as sa

from bond_core.store.tables import Json, PlainText, metadata

KEYS_COUNTER = "access"
"""The row of `counters` that every change of keys or sessions raises."""

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", PlainText, nullable=False),
    sa.Column("secret_sha256", sa.Text, nullable=False),
    sa.Column("scopes", Json, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("last_used_at", sa.Double),
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("tokens_per_minute", sa.Integer),
    sa.Column("concurrency", sa.Integer),
    sa.Column("log_content", sa.Boolean),
    sa.Column("train", sa.Boolean),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("secret_sha256", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, sa.ForeignKey("api_keys.id"), nullable=False, index=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)

key_usage = sa.Table(
    "key_usage",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
)

key_running = sa.Table(
    "key_running",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, primary_key=True),
    sa.Column("running", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)
