"""SQLite: one writer connection on its own thread, a few readers beside it, WAL between them.

The driver is the standard library's, on threads of ours: one hop per transaction. An asyncio
driver hops once per call into SQLite, about ten times per transaction, and takes six times as long.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from bond_core.errors import ConfigError, StoreUnavailableError
from bond_core.json_text import dump_json
from bond_core.store.database import Durability, T, Work, is_unavailable, unavailable

READERS = 2
_LONGEST_WAIT_S = 5.0
_RETRY_AFTER_S = 0.01
_WAL_KEPT_BYTES = 64 * 1024 * 1024
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


class _BusyError(Exception):
    """A transaction could not begin, because another process has the lock."""


class SQLiteDatabase:
    """A database file. Any number of processes may read it; writers take turns."""

    def __init__(self, url: sa.URL, durability: Durability, timeout_s: float) -> None:
        self.path = database_file(url)
        self._timeout_s = timeout_s
        self._synchronous = "NORMAL" if durability == "process" else "FULL"
        self._writer = self._engine(begin="BEGIN IMMEDIATE", pool_size=1)
        self._readers = self._engine(begin="BEGIN", pool_size=READERS)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="bond-store-write")
        self._read_threads = ThreadPoolExecutor(READERS, thread_name_prefix="bond-store-read")
        self._kept: Connection | None = None
        self._closed = False

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a reader's thread, against one snapshot."""
        return await self._run(
            self._read_threads, partial(self._transact, self._readers.begin, work)
        )

    async def write(self, work: Work[T], timeout_s: float | None = None) -> T:
        """Run `work` on the writer's thread, in a transaction that begins as a writer.

        `BEGIN IMMEDIATE` waits for the lock; a read that turns into a write fails at once.
        Cancelling the caller does not stop the thread: the transaction ends whole, either way.
        """
        limit = self._timeout_s if timeout_s is None else timeout_s
        return await self._run(
            self._write_thread,
            partial(self._transact, self._begun, work, limit, time.monotonic()),
        )

    async def close(self) -> None:
        """Finish what runs, then close; the last process to leave folds the WAL into the file."""
        if self._closed:
            return
        self._closed = True

        def finish() -> None:
            for threads in (self._read_threads, self._write_thread):
                threads.shutdown()
            if self._kept is not None:
                self._kept.close()
            for engine in (self._readers, self._writer):
                engine.dispose()

        await asyncio.to_thread(finish)

    async def _run(self, threads: ThreadPoolExecutor, job: "partial[T]") -> T:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, job)
        except DBAPIError as error:
            if is_unavailable(error):
                raise unavailable(error) from error
            raise
        except PoolTimeoutError as error:
            raise unavailable(error) from error

    @contextmanager
    def _begun(self) -> Generator[Connection]:
        """A transaction of the writer's thread, over a connection that is kept until one fails: to
        take it out of its pool each time costs as much as half a row."""
        connection = self._kept or self._writer.connect()
        self._kept = None
        try:
            with connection.begin():
                yield connection
        except BaseException:
            connection.close()
            raise
        self._kept = connection

    def _transact(
        self,
        begun: Callable[[], AbstractContextManager[Connection]],
        work: Work[T],
        limit_s: float | None = None,
        since: float | None = None,
    ) -> T:
        """`since` is when the caller began to wait, which may be long before its turn: who is past
        its time by then is told so, or each would wait for the lock after all before it."""
        allowed = self._timeout_s if limit_s is None else limit_s
        deadline = (time.monotonic() if since is None else since) + allowed
        if since is not None and time.monotonic() >= deadline:
            raise StoreUnavailableError(
                f"{self.path} was written to by others for {allowed:g} s, or they waited for its "
                "lock; check the disk, and what else has it open"
            )
        while True:
            try:
                with begun() as connection:
                    return work(connection)
            except (DBAPIError, _BusyError) as error:
                if isinstance(error, DBAPIError) and not _is_busy(error.orig):
                    raise
                if self._closed or time.monotonic() >= deadline:
                    raise StoreUnavailableError(
                        f"{self.path} stayed locked by another process for {allowed:g} s; end what "
                        "holds it, or move to PostgreSQL (store.url)"
                    ) from error
                time.sleep(_RETRY_AFTER_S)

    def _engine(self, begin: str, pool_size: int) -> Engine:
        engine = sa.create_engine(
            sa.URL.create("sqlite+pysqlite", database=str(self.path)),
            connect_args={
                "timeout": min(self._timeout_s, _LONGEST_WAIT_S),
                "check_same_thread": False,
            },
            pool_size=pool_size,
            max_overflow=0,
            json_serializer=dump_json,
            hide_parameters=True,  # they are people's words, and errors are logged
        )
        reads_only = begin == "BEGIN"

        def on_connect(connection: sqlite3.Connection, _record: Any) -> None:
            self._configure(connection, reads_only)

        def on_begin(connection: Connection) -> None:
            driver: Any = connection.connection.dbapi_connection
            try:
                driver.execute(begin)
            except sqlite3.Error as error:
                if _is_busy(error):  # it has been waited for
                    raise _BusyError from error
                connection.exec_driver_sql(begin)  # once more, for an error of the usual kind

        event.listen(engine, "connect", on_connect)
        event.listen(engine, "begin", on_begin)
        return engine

    def _configure(self, connection: sqlite3.Connection, reads_only: bool) -> None:
        connection.isolation_level = None  # the driver's own BEGIN would be a deferred one
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise ConfigError(
                f"{self.path} cannot use SQLite's write-ahead log (journal mode {mode!r}); put "
                "data_dir on a local disk, or use PostgreSQL (store.url)"
            )
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")  # what is deleted is not left in free pages
        connection.execute(f"PRAGMA journal_size_limit={_WAL_KEPT_BYTES}")
        if reads_only:
            connection.execute("PRAGMA query_only=ON")


def database_file(url: sa.URL) -> Path:
    """The file of a SQLite URL. Raises `ConfigError` for a database in memory."""
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ConfigError(
            f"store.url {url} names no file; gateway and trainer share the store, so it must be a "
            "file, such as sqlite+aiosqlite:////var/lib/bond/bond.db"
        )
    return Path(url.database)


def _is_busy(error: BaseException | None) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(code, int) and (code & 0xFF) in _BUSY
