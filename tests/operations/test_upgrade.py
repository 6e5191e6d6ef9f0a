"""docs/operations.md, "Upgrade" and "Rolling back a release": tables that change under gateways."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from databases import OpenStoreAt, PostgresServer
from killed_gateway import Nursery, client_of, write_config
from sqlalchemy import Connection
from stored import completion
from typer.testing import CliRunner

from bond_cli.main import app
from bond_core.errors import ConfigError
from bond_core.store import Store, open_database
from bond_core.store.migrate import (
    current_revision,
    differences,
    downgrade,
    head_revision,
    known_revisions,
    upgrade,
)

HI = {"messages": [{"role": "user", "content": "hi"}]}
REVISIONS = known_revisions()[::-1]
"""Oldest first."""
STEPS = list(itertools.pairwise(REVISIONS))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


Tables = dict[str, dict[str, dict[str, Any]]]


def tables_of(connection: Connection) -> Tables:
    """Every table's columns, each with its type, whether it may be null, and its default."""
    inspector = sa.inspect(connection)
    return {
        table: {str(c["name"]): dict(c) for c in inspector.get_columns(table)}
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


@pytest.mark.parametrize(("older", "newer"), STEPS, ids=[f"{a}-{b}" for a, b in STEPS])
async def test_a_migration_adds_and_takes_nothing_from_the_release_before_it(
    empty_database_url: str, older: str, newer: str
) -> None:
    """Expand, then contract: the release before can read what it read and write what it wrote."""
    database, _ = open_database(empty_database_url)
    try:
        await database.write(lambda c: upgrade(c, older))
        before = await database.read(tables_of)
        await database.write(lambda c: upgrade(c, newer))
        after = await database.read(tables_of)
    finally:
        await database.close()
    for table, columns in before.items():
        assert table in after, f"{newer} drops {table}"
        for name, column in columns.items():
            now = after[table].get(name)
            assert now is not None, f"{newer} drops {table}.{name}"
            assert str(now["type"]) == str(column["type"]), f"{newer} changes {table}.{name}"
            assert now["nullable"] == column["nullable"], f"{newer} changes {table}.{name}"
        for name in after[table].keys() - columns.keys():
            column = after[table][name]
            assert column["nullable"] or column["default"] is not None, (
                f"{newer} adds {table}.{name}, which the release before does not fill"
            )


async def at_revision(store: Store, revision: str) -> None:
    """The store with three rows, as a release of that revision left it."""
    for id in ("a", "b", "c"):
        await store.completions.record(completion(id))
    await store.database.write(lambda c: downgrade(c, revision))
    await store.close()


async def test_two_gateways_that_start_at_once_migrate_once(
    nursery: Nursery, tmp_path: Path, postgres: PostgresServer, open_store_at: OpenStoreAt
) -> None:
    url = postgres.create("bond_upgraded")
    await at_revision(await open_store_at(url), "0001")
    config = write_config(tmp_path, url)
    starting = await nursery.start_together(config, 2)
    try:
        store = await open_store_at(url, migrate=False)
        assert await store.database.read(differences) == []
        for _, address in starting:
            async with client_of(address) as client:
                assert (await client.post("/v1/distilled", json=HI)).status_code == 200
        assert await store.completions.count() == 5
    finally:
        for pid, _ in starting:
            await nursery.kill(pid)


async def test_one_migrates_under_the_lock_and_the_others_wait(
    empty_database_url: str, open_store_at: OpenStoreAt
) -> None:
    await at_revision(await open_store_at(empty_database_url), "0010")
    log: list[tuple[str, float]] = []
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(connection: Connection) -> None:
        upgrade(connection)
        log.append(("migrated", time.monotonic()))
        loop.call_soon_threadsafe(entered.set)
        hold(connection, 0.6)
        log.append(("commits", time.monotonic()))

    async def second() -> None:
        await entered.wait()
        store = await open_store_at(empty_database_url)
        log.append(("the other is open", time.monotonic()))
        assert await store.completions.count() == 3

    first, _ = open_database(empty_database_url)
    try:
        await asyncio.gather(first.write(slowly), second())
        assert await first.read(differences) == []
    finally:
        await first.close()
    assert [what for what, _ in sorted(log, key=lambda entry: entry[1])] == [
        "migrated",
        "commits",
        "the other is open",
    ]


def hold(connection: Connection, seconds: float) -> None:
    """Keep the transaction open, without holding up the loop."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
    else:
        time.sleep(seconds)  # on the writer's own thread


@asynccontextmanager
async def asked_all_the_time(client: httpx.AsyncClient) -> AsyncIterator[list[int]]:
    """Statuses of requests that are sent one after the other meanwhile, on four connections."""
    statuses: list[int] = []

    async def ask() -> None:
        while True:
            statuses.append((await client.post("/v1/distilled", json=HI)).status_code)

    workers = [asyncio.create_task(ask()) for _ in range(4)]
    try:
        yield statuses
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def migrate_as_the_next_release(connection: Connection) -> None:
    """What a release after this one may do: add a column with a default, an index, a table."""
    later = (
        "ALTER TABLE completions ADD COLUMN later TEXT NOT NULL DEFAULT 'x'",
        "CREATE INDEX ix_completions_later ON completions (later)",
        "CREATE TABLE later_things (id INTEGER PRIMARY KEY)",
        "UPDATE completions SET later = 'y'",
        "UPDATE alembic_version SET version_num = '9999'",
    )
    for statement in later:
        connection.exec_driver_sql(statement).close()
    hold(connection, 0.3)  # a large log takes its time, with the tables locked


def undo_the_next_release(connection: Connection) -> None:
    for statement in (
        "DROP INDEX ix_completions_later",
        "ALTER TABLE completions DROP COLUMN later",
        "DROP TABLE later_things",
        f"UPDATE alembic_version SET version_num = '{head_revision()}'",
    ):
        connection.exec_driver_sql(statement).close()


@pytest.fixture(params=["sqlite", "postgresql"])
def own_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'bond.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create("bond_rolling")


async def test_a_gateway_serves_on_while_the_next_release_migrates_and_is_rolled_back(
    nursery: Nursery, tmp_path: Path, own_url: str
) -> None:
    config = write_config(tmp_path, own_url)
    pid, address = await nursery.start(config)
    database, _ = open_database(own_url)
    try:
        async with client_of(address) as client:
            async with asked_all_the_time(client) as statuses:
                while len(statuses) < 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await database.write(migrate_as_the_next_release)
                seen = len(statuses)
                while len(statuses) < seen + 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert set(statuses) == {200}
        await nursery.kill(pid)
        with pytest.raises(ConfigError, match=rf"newer release .*db downgrade {head_revision()}"):
            await open_and_close(own_url)
        await database.write(undo_the_next_release)
        pid, address = await nursery.start(config)
        async with client_of(address) as client:
            assert (await client.post("/v1/distilled", json=HI)).status_code == 200
        assert await database.read(differences) == []
    finally:
        await nursery.kill(pid)
        await database.close()


async def open_and_close(url: str) -> None:
    from bond_core.store import open_store

    await (await open_store(url)).close()


def bond_db(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["db", *map(str, arguments)], env={"COLUMNS": "240"})
    return done.exit_code, done.output


def test_down_and_up_by_the_command(tmp_path: Path, own_url: str) -> None:
    config = write_config(tmp_path, own_url)
    where = ("--config", config)
    if own_url.startswith("postgresql"):
        code, said = bond_db("status", *where)
        assert (code, "no tables yet: the first start of a gateway makes them" in said) == (1, True)
    asyncio.run(filled(own_url))
    head = head_revision()
    assert bond_db("status", *where) == (
        0,
        f"tables: revision {head}; this release needs {head}\n",
    )
    code, said = bond_db("downgrade", "0010", *where)
    assert (code, said) == (
        0,
        f"tables: revision {head} before, 0010 now; start the older release\n",
    )
    assert bond_db("status", *where)[1].startswith("tables: revision 0010;")
    assert bond_db("downgrade", head, *where)[0] == 2
    assert bond_db("upgrade", *where) == (0, f"tables: revision 0010 before, {head} now\n")
    assert asyncio.run(rows_of(own_url)) == 3
    assert asyncio.run(revision_of(own_url)) == head


async def filled(url: str) -> None:
    from bond_core.store import open_store

    store = await open_store(url)
    for id in ("a", "b", "c"):
        await store.completions.record(completion(id))
    await store.close()


async def rows_of(url: str) -> int:
    from bond_core.store import open_store

    store = await open_store(url)
    try:
        return await store.completions.count()
    finally:
        await store.close()


async def revision_of(url: str) -> str | None:
    database, _ = open_database(url)
    try:
        return await database.read(current_revision)
    finally:
        await database.close()


async def test_a_downgrade_is_refused_while_somebody_works_on_the_store(
    nursery: Nursery, tmp_path: Path, own_url: str
) -> None:
    config = write_config(tmp_path, own_url)
    pid, address = await nursery.start(config)
    try:
        code, said = await asyncio.to_thread(bond_db, "downgrade", "0010", "--config", config)
        assert code == 1
        assert "leases: controller" in said
        async with client_of(address) as client:
            assert (await client.post("/v1/distilled", json=HI)).status_code == 200
        await nursery.kill(pid, 15)
        code, said = await asyncio.to_thread(bond_db, "downgrade", "0010", "--config", config)
        assert code == 0, said
        assert await revision_of(own_url) == "0010"
    finally:
        await nursery.kill(pid)
