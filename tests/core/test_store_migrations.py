"""Migrations: up, exactly what the code expects, down, and two processes at once."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import OpenStoreAt
from sqlalchemy import Connection
from stored import completion

from bond_core.errors import ConfigError
from bond_core.store import Scope
from bond_core.store.migrate import differences, downgrade, upgrade
from bond_core.store.tables import metadata

ROOT = Path(__file__).resolve().parents[2]
OPEN_AND_SAY = """
import asyncio, sys
from bond_core.store import open_store

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    store = await open_store(sys.argv[1])
    await store.policies.next_version()
    print(await store.policies.active(), len(await store.policies.all()), flush=True)
    await store.close()

asyncio.run(main())
"""


def table_names(connection: Connection) -> set[str]:
    return set(sa.inspect(connection).get_table_names())


async def test_up_is_what_the_code_expects_and_down_leaves_nothing(
    empty_database_url: str, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(empty_database_url)
    database = store.database
    assert await database.read(differences) == []
    assert await database.read(table_names) == {*metadata.tables, "alembic_version"}
    await store.completions.record(completion("a"))

    await database.write(lambda connection: downgrade(connection, "base"))
    assert await database.read(table_names) == {"alembic_version"}
    assert len(await database.read(differences)) >= len(metadata.tables)

    await database.write(upgrade)
    assert await database.read(differences) == []
    assert await store.completions.count() == 0
    assert await store.policies.active() == "v0000"


async def test_a_difference_is_noticed(store_with_extra_column: list[object]) -> None:
    assert any("extra" in str(difference) for difference in store_with_extra_column)


@pytest.fixture
async def store_with_extra_column(
    empty_database_url: str, open_store_at: OpenStoreAt
) -> list[object]:
    store = await open_store_at(empty_database_url)
    change = "ALTER TABLE leases ADD COLUMN extra TEXT"
    await store.database.write(lambda c: c.exec_driver_sql(change).close())
    return await store.database.read(differences)


async def test_a_migration_that_fails_leaves_the_database_as_it_was(
    empty_database_url: str, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(empty_database_url)

    def fail_half_way(connection: Connection) -> None:
        downgrade(connection, "base")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        await store.database.write(fail_half_way)
    assert await store.database.read(differences) == []
    assert await store.policies.active() == "v0000"


async def test_opening_again_changes_nothing(database_url: str, open_store_at: OpenStoreAt) -> None:
    first = await open_store_at(database_url)
    await first.completions.record(completion("a"))
    again = await open_store_at(database_url)
    unmigrated = await open_store_at(database_url, migrate=False)
    assert await again.completions.count() == 1
    assert await unmigrated.completions.count() == 1


async def test_without_migrating_the_tables_must_be_there(
    empty_database_url: str, open_store_at: OpenStoreAt
) -> None:
    with pytest.raises(ConfigError, match="the store is at revision none and this version needs"):
        await open_store_at(empty_database_url, migrate=False)


async def test_tables_of_a_newer_version_are_refused(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(database_url)
    newer = "UPDATE alembic_version SET version_num = '9999'"
    await store.database.write(lambda c: c.exec_driver_sql(newer).close())
    for migrate in (True, False):
        with pytest.raises(ConfigError, match="9999"):
            await open_store_at(database_url, migrate=migrate)


def start_processes(url: str, number: int) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OPEN_AND_SAY, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "core")},
        )
        for _ in range(number)
    ]


async def test_processes_that_start_together_migrate_once(
    empty_database_url: str, open_store_at: OpenStoreAt
) -> None:
    processes = start_processes(empty_database_url, 2)
    try:
        for process in processes:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        answers = await asyncio.gather(
            *(asyncio.to_thread(process.communicate, "go\n", 60) for process in processes)
        )
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [out for out, _ in answers] == ["v0000 1\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    store = await open_store_at(empty_database_url)
    assert await store.policies.next_version() == "v0003"
    assert await store.database.read(differences) == []


async def test_rows_outlive_the_way_down_to_the_first_schema_and_up_again(
    database_url: str, open_store_at: OpenStoreAt
) -> None:
    store = await open_store_at(database_url)
    row = completion("a", key="0123456789ab")
    await store.completions.record(row)
    await store.access.create("shop", {Scope.INFER})

    await store.database.write(lambda connection: downgrade(connection, "0001"))
    assert "api_keys" not in await store.database.read(table_names)
    await store.database.write(upgrade)

    assert await store.database.read(differences) == []
    found = await store.completions.get("a")
    assert found is not None
    assert found == replace(row, seq=1, key=None, stored=found.stored)
    assert await store.access.all() == []
    key, _ = await store.access.create("shop", {Scope.INFER})
    snapshot = await store.access.snapshot()
    assert snapshot is not None
    assert (snapshot.revision, snapshot.keys) == (1, (key,))
