"""What `bond keys list` shows of each key."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from bond_core.store import ApiKey

PIPE_WIDTH = 100_000
"""Columns where no terminal is: what reads lines gets every key in one."""

_HEADINGS = ("name", "scopes", "state", "created", "last used", "limits", "keeps")


def keys_table(rows: Iterable[list[str]]) -> Table:
    """A table of rows; in a narrow terminal all but the ids are folded."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("key", no_wrap=True, min_width=12)
    for heading in _HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def key_row(key: "ApiKey", now: float) -> list[str]:
    """The cells of one key, in words."""
    limits = key.limits
    shown = [
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.concurrency, "at once"),
    ]
    consent = [
        ("" if key.log_content is None else ("content" if key.log_content else "no content")),
        ("" if key.train is None else ("trains" if key.train else "never trains")),
    ]
    return [
        key.id,
        key.name,
        ", ".join(sorted(key.scopes)),
        key.why_refused(now) or (f"until {_day(key.expires_at)}" if key.expires_at else "valid"),
        _day(key.created_at),
        "never" if key.last_used_at is None else _day(key.last_used_at),
        ", ".join(f"{number} {what}" for number, what in shown if number is not None) or "none",
        ", ".join(part for part in consent if part) or "as deployed",
    ]


def json_line(key: "ApiKey", now: float) -> str:
    """One key as a line of JSON; times are Unix seconds, null is none, or as deployed."""
    values = {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "valid": key.why_refused(now) is None,
        "why_refused": key.why_refused(now),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
        "requests_per_minute": key.limits.requests_per_minute,
        "tokens_per_minute": key.limits.tokens_per_minute,
        "concurrency": key.limits.concurrency,
        "log_content": key.log_content,
        "train": key.train,
    }
    return json.dumps(values)


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
