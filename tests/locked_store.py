"""A store that somebody else has locked, and the moment in which a commit begins."""

import asyncio
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

from bond_core.store import Store


@contextmanager
def impatient(store: Any, timeout_s: float) -> Generator[None]:
    """Commits, and all other work, are given up after so short a time within the block.

    Not before and not after it: how long takes what nobody hinders, a busy machine decides.
    """
    waiters = (store.database, store.completions._records)
    usual = [waiter._timeout_s for waiter in waiters]
    for waiter in waiters:
        waiter._timeout_s = timeout_s
    try:
        yield
    finally:
        for waiter, before in zip(waiters, usual, strict=True):
            waiter._timeout_s = before


@contextmanager
def locked(store: Any, commit_timeout_s: float | None = None) -> Generator[sqlite3.Connection]:
    """Hold the only write lock of the store's file within the block, in which commits are given up
    after `commit_timeout_s`."""
    other = sqlite3.connect(store.database.path, isolation_level=None)
    if commit_timeout_s is not None:
        _let_sqlite_wait(store, 0)  # the limit that is asked for counts alone
    try:
        other.execute("BEGIN IMMEDIATE")
        with nullcontext() if commit_timeout_s is None else impatient(store, commit_timeout_s):
            yield other
            if other.in_transaction:
                other.execute("ROLLBACK")
    finally:
        other.close()
        if commit_timeout_s is not None and not store.database._closed:
            _let_sqlite_wait(store, 5000)


def _let_sqlite_wait(store: Any, milliseconds: int) -> None:
    """How long the writer's connection waits for a lock before the store tries again."""

    def set_it() -> None:
        with store.database._begun() as connection:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {milliseconds}").close()

    store.database._write_thread.submit(set_it).result()


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
