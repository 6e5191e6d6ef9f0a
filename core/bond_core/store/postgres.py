"""PostgreSQL through asyncpg, for more than one gateway."""

import asyncio
from typing import Generic

import asyncpg  # pyright: ignore[reportMissingTypeStubs]  # it has none
import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine

from bond_core.errors import StoreUnavailableError
from bond_core.json_text import dump_json
from bond_core.store.database import Durability, T, Work, is_unavailable, unavailable

CONNECTIONS = 8
_ATTEMPTS = 3
_CONTENTION = frozenset({"40001", "40P01"})


class PostgresDatabase:
    """A database server, over a pool of connections."""

    def __init__(self, url: sa.URL, durability: Durability, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._closed = False
        query = dict(url.query)
        if "sslmode" in query:  # libpq's name for what asyncpg calls ssl
            query["ssl"] = query.pop("sslmode")
        self._engine = create_async_engine(
            url.set(drivername="postgresql+asyncpg", query=query),
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=timeout_s,
            json_serializer=dump_json,
            hide_parameters=True,  # they are people's words, and errors are logged
            connect_args={
                "timeout": timeout_s,
                "server_settings": {
                    "application_name": "bondserve",
                    "synchronous_commit": "off" if durability == "process" else "on",
                },
            },
        )

    async def read(self, work: Work[T]) -> T:
        """Run `work` in a transaction that is rolled back at its end."""
        return await self._run(work, commit=False, timeout_s=self._timeout_s)

    async def write(self, work: Work[T], timeout_s: float | None = None) -> T:
        """Run `work` in a transaction, commit it."""
        limit = self._timeout_s if timeout_s is None else timeout_s
        return await self._run(work, commit=True, timeout_s=limit)

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        await self._engine.dispose()

    async def _run(self, work: Work[T], *, commit: bool, timeout_s: float) -> T:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                return await self._attempts(work, commit)
        except DBAPIError as error:
            if is_unavailable(error) or _is_of_the_url(error):
                raise unavailable(error) from error
            raise
        except TimeoutError as error:
            waited_s = timeout_s if limit.expired() else self._timeout_s  # the latter to connect
            raise StoreUnavailableError(
                f"PostgreSQL did not answer within {waited_s:g} s; check its load and its locks"
            ) from error
        except (OSError, PoolTimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise unavailable(error) from error

    async def _attempts(self, work: Work[T], commit: bool) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            transaction = _Transaction(work, commit)
            try:
                async with self._engine.connect() as connection:
                    return await connection.run_sync(transaction)
            except DBAPIError as error:
                if attempt == _ATTEMPTS or not transaction.may_repeat(error):
                    raise
        raise AssertionError("the last attempt returns or raises")


def _is_of_the_url(error: DBAPIError) -> bool:
    """Whether asyncpg could not use what the URL says: a root certificate that lacks, say."""
    return isinstance(getattr(error.orig, "__cause__", None), asyncpg.ClientConfigurationError)


class _Transaction(Generic[T]):
    """Runs the work once, and remembers whether its commit had begun."""

    def __init__(self, work: Work[T], commit: bool) -> None:
        self._work = work
        self._commit = commit
        self._committing = False

    def __call__(self, connection: Connection) -> T:
        transaction = connection.begin()
        try:
            result = self._work(connection)
            self._committing = self._commit
        except BaseException:
            transaction.rollback()
            raise
        if self._commit:
            transaction.commit()
        else:
            transaction.rollback()
        return result

    def may_repeat(self, error: DBAPIError) -> bool:
        """After contention; after a lost connection only if nothing can have been committed."""
        if getattr(error.orig, "sqlstate", None) in _CONTENTION:
            return True
        return error.connection_invalidated and not self._committing
