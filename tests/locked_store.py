"""A store whose SQLite file another process has locked, and the moment in which a commit begins."""

import asyncio
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from bond_core.store import Store


@contextmanager
def locked(store: Any, commit_timeout_s: float | None = None) -> Generator[sqlite3.Connection]:
    """Hold the only write lock of the store's file within the block.

    Meanwhile commits are given up after `commit_timeout_s`. Only meanwhile: how long a commit takes
    that nobody hinders, a busy machine decides.
    """
    other = sqlite3.connect(store.database.path, isolation_level=None)
    waiters = (store.database, store.completions._records)
    usual = [waiter._timeout_s for waiter in waiters]
    try:
        other.execute("BEGIN IMMEDIATE")
        for waiter in waiters:
            waiter._timeout_s = commit_timeout_s or waiter._timeout_s
        yield other
    finally:
        if other.in_transaction:
            other.execute("ROLLBACK")
        other.close()
        for waiter, timeout_s in zip(waiters, usual, strict=True):
            waiter._timeout_s = timeout_s


def transaction_begins(store: Store) -> asyncio.Event:
    """Set when the store next asks for a transaction, with the rows that are to go into it."""
    return _called(store.database, "write")


def row_is_recorded(store: Store) -> asyncio.Event:
    """Set when the next row of the log is on its way to its commit."""
    return _called(store.completions, "record")


def _called(owner: Any, name: str) -> asyncio.Event:
    called, call = asyncio.Event(), getattr(owner, name)

    async def noted(*args: Any, **options: Any) -> Any:
        called.set()
        return await call(*args, **options)

    setattr(owner, name, noted)
    return called
