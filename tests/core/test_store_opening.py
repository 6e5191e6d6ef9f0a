"""Opening: which URLs, which settings of the database, how many gateways."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from databases import OpenStoreAt, PostgresServer
from sqlalchemy import Connection
from stored import completion

from bond_core.errors import ConfigError, StoreUnavailableError
from bond_core.store import open_store
from bond_core.store.copies import require_database
from bond_core.store.power import require_power
from bond_core.store.urls import parse_url, plain_url


def pragma(name: str) -> Callable[[Connection], object]:
    def read(connection: Connection) -> object:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()

    return read


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
async def test_sqlite_is_set_up_for_its_durability(
    tmp_path: Path, open_store_at: OpenStoreAt, durability: str, synchronous: int
) -> None:
    file = tmp_path / "new" / "folder" / "bond.db"
    store = await open_store_at(f"sqlite+aiosqlite:///{file}", durability=durability)
    assert file.exists()
    for run in (store.database.write, store.database.read):
        assert await run(pragma("journal_mode")) == "wal"
        assert await run(pragma("foreign_keys")) == 1
        assert await run(pragma("busy_timeout")) == 5000
        assert await run(pragma("synchronous")) == synchronous
    assert await store.database.read(pragma("query_only")) == 1
    assert await store.database.write(pragma("query_only")) == 0


@pytest.mark.parametrize(("durability", "setting"), [("process", "off"), ("power", "on")])
async def test_postgresql_is_set_up_for_its_durability(
    postgres: PostgresServer, open_store_at: OpenStoreAt, durability: str, setting: str
) -> None:
    url = postgres.migrated()

    def show(connection: Connection) -> object:
        return connection.exec_driver_sql("SHOW synchronous_commit").scalar_one()

    with postgres.having(fsync="on"):
        store = await open_store_at(url, durability=durability)
        assert await store.database.write(show) == setting
        assert await store.database.read(show) == setting


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_power_is_refused_on_a_server_that_does_not_keep_what_it_commits(
    postgres: PostgresServer, open_store_at: OpenStoreAt, setting: str
) -> None:
    url = postgres.empty()
    with postgres.having(**{"fsync": "on", "full_page_writes": "on", setting: "off"}):
        with pytest.raises(ConfigError, match=rf"durability is power.* has {setting} = off") as no:
            await open_store(url, "power")
        assert f"ALTER SYSTEM SET {setting} = on" in no.value.message
        with pytest.raises(ConfigError, match="at revision none"):  # nothing was made in it
            await open_store(url, migrate=False)
        await open_store_at(url, durability="process")


async def test_power_is_refused_where_a_pool_drops_our_settings(
    postgres: PostgresServer, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(postgres.migrated())  # of which the server is told to be quick

    with (
        postgres.having(fsync="on"),
        pytest.raises(ConfigError, match="synchronous_commit = off"),
    ):
        await store.database.read(require_power)


async def test_a_reader_cannot_write(store_url_sqlite: str, open_store_at: OpenStoreAt) -> None:
    store = await open_store_at(store_url_sqlite)
    with pytest.raises(StoreUnavailableError, match="readonly"):
        await store.database.read(lambda c: c.exec_driver_sql("DELETE FROM policies").close())
    assert await store.policies.active() == "v0000"


@pytest.fixture
def store_url_sqlite(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'bond.db'}"


async def test_what_was_written_is_there_after_reopening(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    first = await open_store_at(database_url)
    await first.completions.record(completion("a"))
    await first.close()
    await first.close()
    again = await open_store_at(database_url)
    assert await again.completions.count() == 1


async def test_sqlite_takes_one_gateway_beside_any_trainer(store_url_sqlite: str) -> None:
    gateway = await open_store(store_url_sqlite, exclusive_gateway=True)
    trainer = await open_store(store_url_sqlite)
    with pytest.raises(ConfigError, match=r"another gateway \(process \d+\).*PostgreSQL"):
        await open_store(store_url_sqlite, exclusive_gateway=True)
    await trainer.ping()
    await trainer.close()
    await gateway.ping()  # the refused one has not disturbed it
    await gateway.close()
    successor = await open_store(store_url_sqlite, exclusive_gateway=True)
    await successor.close()


async def test_postgresql_takes_many_gateways(
    postgres: PostgresServer, open_store_at: OpenStoreAt
) -> None:
    url = postgres.migrated()
    one = await open_store_at(url, exclusive_gateway=True)
    other = await open_store_at(url, exclusive_gateway=True)
    await one.completions.record(completion("a"))
    assert await other.completions.count() == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("not a url", "is not a database URL: write postgresql://"),
        ("postgresql://bob@host:port/bond", "is not a database URL: write postgresql://"),
        ("postgresql://bob@host/bond?channel_binding=require", "has channel_binding behind its ?"),
        ("mysql://localhost/bond", "'mysql'; the store runs on sqlite and postgresql"),
        ("sqlite+aiosqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
async def test_urls_that_cannot_be_used(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        await open_store(url)


@pytest.mark.parametrize(
    ("sslmode", "words"),
    [("verify-full", "root certificate file .* does not exist"), ("always", "must be one of")],
)
async def test_an_sslmode_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sslmode: str, words: str
) -> None:
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreUnavailableError, match=words):
        await open_store(f"postgresql://bob@127.0.0.1:1/bond?sslmode={sslmode}")


@pytest.mark.parametrize(
    ("query", "theirs"),
    [
        ("ssl=verify-full&prepared_statement_cache_size=0", "?sslmode=verify-full"),
        ("sslmode=require&command_timeout=5", "?sslmode=require"),
        ("host=/run/postgresql", "?host=%2Frun%2Fpostgresql"),
    ],
)
def test_what_postgresqls_own_programs_are_given(query: str, theirs: str) -> None:
    url = parse_url(f"postgresql+asyncpg://bob:secret@db:5433/bond?{query}")
    given = plain_url(url).render_as_string(hide_password=False)
    assert given == f"postgresql://bob@db:5433/bond{theirs}"


def test_the_error_of_a_url_does_not_quote_its_password() -> None:
    for url in ("host=db password=s3cr3t", "postgresql://bob:s3cr3t@host:port/bond"):
        with pytest.raises(ConfigError) as raised:
            require_database(url)
        assert "s3cr3t" not in str(raised.value)


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError, match="check data_dir"):
        await open_store(f"sqlite:///{tmp_path}/file/bond.db")


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "bond.db").write_bytes(b"this is a text, and a rather long one at that. " * 100)
    with pytest.raises(StoreUnavailableError, match="not a database"):
        await open_store(f"sqlite:///{tmp_path}/bond.db")


@pytest.mark.parametrize("host", ["/nonexistent", "127.0.0.1"])
async def test_a_server_that_is_not_there(host: str, unused_tcp_port: int) -> None:
    with pytest.raises(StoreUnavailableError, match="Check that the database is up"):
        await open_store(f"postgresql://postgres@/bond?host={host}&port={unused_tcp_port}")


async def test_a_database_that_is_not_there(postgres: PostgresServer) -> None:
    with pytest.raises(StoreUnavailableError, match='"nothing" does not exist'):
        await open_store(postgres.url("nothing"))


async def test_a_server_that_ends_the_connections_is_reconnected_to(
    postgres: PostgresServer, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(postgres.migrated())
    await store.completions.record(completion("a"))
    postgres.disconnect_all()
    await store.completions.record(completion("b"))
    assert await store.completions.count() == 2
    assert await store.completions.count() == 2


async def test_a_server_that_takes_connections_and_says_nothing_is_told_of_as_it_was_waited_for(
    open_store_at: OpenStoreAt,
) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent:
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.2 s"):
            await open_store_at(f"postgresql+asyncpg://u@127.0.0.1:{port}/d", commit_timeout_s=0.2)
