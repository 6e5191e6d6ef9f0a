"""The tables: plain SQLAlchemy Core, with types that mean the same on SQLite and PostgreSQL.

A completion is two rows written in one transaction: `completions` holds what is counted, filtered
and annotated, `contents` what is bulky. Annotating and aggregating so never touch the bulk.
"""

import math
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class PlainText(sa.types.TypeDecorator[str]):
    """Text that no user input can make unstorable.

    NUL (which PostgreSQL refuses) and lone surrogates (which have no UTF-8 form) become U+FFFD.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what cannot be stored."""
        return None if value is None else storable(value)


def storable(value: str) -> str:
    """The text as a column of `PlainText` holds it."""
    if value.isascii() and "\x00" not in value:
        return value
    encodable = value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return encodable.replace("\x00", "\ufffd")


class Document(sa.types.TypeDecorator[dict[str, Any]]):
    """A JSON object of metrics. Infinities and NaN, which JSON lacks, travel as strings."""

    impl = sa.JSON
    cache_ok = True

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> Any:
        """Name the non-finite numbers."""
        return _map_leaves(value, _name_non_finite)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any:
        """Turn the names back into numbers."""
        return _map_leaves(value, _restore_non_finite)


def _map_leaves(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        pairs = cast(dict[str, Any], value).items()
        return {key: _map_leaves(item, change) for key, item in pairs}
    if isinstance(value, list | tuple):
        return [_map_leaves(item, change) for item in cast(list[Any], value)]
    return change(value)


def _name_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _restore_non_finite(value: Any) -> Any:
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


Sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""SQLite autoincrements INTEGER only (which has 64 bits there)."""
Json = sa.JSON(none_as_null=True)

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

completions = sa.Table(
    "completions",
    metadata,
    sa.Column("seq", Sequence, primary_key=True, autoincrement=True),
    sa.Column("id", PlainText, nullable=False, unique=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("requested_model", PlainText, nullable=False),
    sa.Column("arm", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("best_of", sa.Integer, nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("params", Json, nullable=False),
    sa.Column("standard_sampling", sa.Boolean, nullable=False),
    sa.Column("split", sa.Text, nullable=False),
    sa.Column("may_train", sa.Boolean, nullable=False),
    sa.Column("unit", PlainText, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("chosen", Json, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("degraded", PlainText),
    sa.Column("error", PlainText),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("queue_s", sa.Double, nullable=False),
    sa.Column("generate_s", sa.Double, nullable=False),
    sa.Column("score_s", sa.Double, nullable=False),
    sa.Column("latency_s", sa.Double, nullable=False),
    sa.Column("score", sa.Double),
    sa.Column("judge_score", sa.Double),
    sa.Column("gold_score", sa.Double),
    sa.Column("log_ratio", sa.Double),
    # Derived when the row is written, from columns that never change afterwards.
    sa.Column("generated_tokens", sa.Integer, nullable=False),  # all candidates together
    sa.Column("scorable", sa.Boolean, nullable=False),
    sa.Column("learnable", sa.Boolean, nullable=False),
    sa.Column("exact_best_of", sa.Boolean, nullable=False),
    sa.Column("claimed_by", PlainText),
    sa.Column("claimed_until", sa.Double),
    # Whom it was for, as the request said; what is kept of it; and which attempt it was.
    sa.Column("end_user", PlainText),
    sa.Column("safety_identifier", PlainText),
    sa.Column("system_fingerprint", PlainText),
    sa.Column("has_content", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("stored", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("redacted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("request_digest", sa.Text),
    sa.Column("retry", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("superseded", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("experiment", sa.Text),  # whose split chose the arm
    sqlite_autoincrement=True,
)

UNSCORED = sa.text(
    "scorable AND (score IS NULL"
    " OR (arm = 'distilled' AND standard_sampling AND log_ratio IS NULL))"
)
"""Rows that still wait for a number. The index below holds only them, so it stays small."""
LEARNABLE = sa.text("learnable")
EXACT_BEST_OF = sa.text("exact_best_of")
STORED = sa.text("stored")
HAS_CONTENT = sa.text("has_content")
RETRIED = sa.text("request_digest IS NOT NULL")
"""Rows of clients that number their attempts."""

sa.Index(
    "ix_completions_unscored",
    completions.c.seq,
    sqlite_where=UNSCORED,
    postgresql_where=UNSCORED,
)
sa.Index(
    "ix_completions_learnable",
    completions.c.seq,
    sqlite_where=LEARNABLE,
    postgresql_where=LEARNABLE,
)
sa.Index(
    "ix_completions_exact_best_of",
    completions.c.seq,
    sqlite_where=EXACT_BEST_OF,
    postgresql_where=EXACT_BEST_OF,
)
sa.Index("ix_completions_created_at", completions.c.created_at)
sa.Index("ix_completions_stored", completions.c.seq, sqlite_where=STORED, postgresql_where=STORED)
sa.Index(
    "ix_completions_has_content",
    completions.c.created_at,
    sqlite_where=HAS_CONTENT,
    postgresql_where=HAS_CONTENT,
)
sa.Index(
    "ix_completions_request_digest",
    completions.c.request_digest,
    completions.c.retry,
    sqlite_where=RETRIED,
    postgresql_where=RETRIED,
)

contents = sa.Table(
    "contents",
    metadata,
    sa.Column(
        "seq",
        Sequence,
        sa.ForeignKey("completions.seq", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column("messages", Json),
    sa.Column("prompt_tokens", sa.LargeBinary),
    sa.Column("candidates", Json),
    sa.Column("candidate_tokens", sa.LargeBinary),
    sa.Column("metadata", Json),
)

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("path", PlainText, nullable=False),
    sa.Column("parent", sa.Text, sa.ForeignKey("policies.version")),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("reason", PlainText, nullable=False),
    sa.Column("evaluation", Document, nullable=False),
)
ONE_ACTIVE = sa.text("state = 'active'")
sa.Index(
    "uq_policies_active",
    policies.c.state,
    unique=True,
    sqlite_where=ONE_ACTIVE,
    postgresql_where=ONE_ACTIVE,
)

aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, sa.ForeignKey("policies.version"), nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
)

counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)

evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("id", Sequence, primary_key=True, autoincrement=True),
    sa.Column("version", sa.Text, nullable=False, index=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("split", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("metrics", Document, nullable=False),
    sqlite_autoincrement=True,
)

training = sa.Table(
    "training",
    metadata,
    sa.Column("run_id", PlainText, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("heartbeat_at", sa.Double, nullable=False),
    sa.Column("metrics", Document, nullable=False),
    sa.Column("counts", Document, nullable=False),
    sa.Column("error", PlainText),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", PlainText, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)
