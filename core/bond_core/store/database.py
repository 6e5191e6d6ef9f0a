"""What the store needs of a database: run a function on a connection, in one transaction.

All SQL is written once, as plain functions of a SQLAlchemy connection; SQLite runs them on its own
threads, PostgreSQL through asyncio. A transaction is as long as its function: nothing can be
awaited inside one, so none is ever held across a network call or a generation.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
)

from bond_core.errors import StoreUnavailableError

Durability = Literal["process", "power"]
T = TypeVar("T")
Work = Callable[[Connection], T]

CHUNK = 500
"""Most rows or values in one statement, well below the limits on bound parameters."""

_ROW_FAULTS = frozenset({"22", "23", "42"})
"""SQLSTATE classes that blame the statement or its values: data, integrity, syntax."""


class RowRefusedError(Exception):
    """What a transaction found makes one row of it wrong; the others may be committed."""


class Database(Protocol):
    """A database that commits what it is given, or says why not.

    Both methods raise `StoreUnavailableError` when the database cannot answer in time; an error
    that blames the values (a violated constraint, say) is SQLAlchemy's.
    """

    async def read(self, work: Work[T]) -> T:
        """Run `work` in a transaction that only reads."""
        ...

    async def write(self, work: Work[T], timeout_s: float | None = None) -> T:
        """Run `work` in a transaction of its own; it is committed when this returns.

        `work` may run more than once: a transaction that was refused for contention is retried.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads. What runs is finished first."""
        ...


def is_unavailable(error: DBAPIError) -> bool:
    """Whether the database is at fault, and not the values it was given."""
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] not in _ROW_FAULTS
    if isinstance(getattr(error.orig, "__cause__", None), ValueError):
        return False  # asyncpg could not encode a value
    return isinstance(error, OperationalError | InterfaceError | InternalError) or (
        type(error) is DatabaseError
    )


def unavailable(error: Exception) -> StoreUnavailableError:
    """The error that callers see, with the driver's own words."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return StoreUnavailableError(
        f"the store cannot answer: {cause}. Check that the database is up, writable and has space."
    )


def refused(error: Exception) -> StoreUnavailableError:
    """The error of a row that the database would not take, with the driver's own words."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return StoreUnavailableError(f"the row was not stored: {cause}")


def in_chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """The values, at most `CHUNK` at a time."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
