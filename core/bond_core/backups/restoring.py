"""Restoring a backup into a store and a data folder that hold nothing yet.

The adapters are put first and the database last: a gateway that found versions without their
adapters would roll them back, and that is final.
"""

import asyncio
import shutil
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.adapters import adapter_path, verify_adapter
from bond_core.backups.database import FILES, kind_of, put_database
from bond_core.backups.description import (
    ADAPTERS_FOLDER,
    CHECKPOINTS_FOLDER,
    Description,
    read_description,
)
from bond_core.backups.taking import copy_folder
from bond_core.backups.whole import missing_adapters, version_states
from bond_core.config import BondConfig
from bond_core.errors import AdapterError, ConfigError
from bond_core.store import open_database, open_store
from bond_core.store.migrate import known_revisions
from bond_core.store.sqlite import database_file
from bond_core.store.tables import policies
from bond_core.types import REFERENCE_VERSION


async def restore_backup(config: BondConfig, folder: Path) -> Description:
    """Put a backup in place and bring it to this release's schema.

    Raises `ConfigError` if something is there already, for another kind of database and for a
    backup of a newer release, `StoreUnavailableError` for a database that does not take it, and
    `AdapterError` if the backup lacks the adapters of a version that its database needs.
    """
    description = read_description(folder)
    url = sa.make_url(config.store_url)
    if description.database != kind_of(url):
        raise ConfigError(
            f"{folder} is of {description.database} and store.url names {kind_of(url)}; a backup "
            "is restored into the kind of database that it was taken from"
        )
    if description.revision not in known_revisions():
        raise ConfigError(
            f"{folder} was taken at revision {description.revision} by bondserve "
            f"{description.release}, which this release does not know: restore it with that one"
        )
    for version in description.versions:
        verify_adapter(folder / ADAPTERS_FOLDER / version)
    await _refuse_what_is_there(config, url, description)
    await asyncio.to_thread(_put_folders, config, folder, description)
    await asyncio.to_thread(put_database, url, folder / FILES[kind_of(url)])
    await _settle(config, description)
    return description


async def _refuse_what_is_there(config: BondConfig, url: sa.URL, description: Description) -> None:
    there = [adapter_path(config.adapters_dir, version) for version in description.versions]
    if description.checkpoint is not None:
        there.append(config.checkpoints_dir)
    if kind_of(url) == "sqlite":
        file = database_file(url)
        there += [file, file.with_name(f"{file.name}-wal")]
    found = [str(path) for path in there if path.exists()]
    if kind_of(url) == "postgresql":
        database, _ = open_database(config.store_url)
        try:
            if await database.read(lambda c: sa.inspect(c).get_table_names()):
                found.append(f"tables in {url.database}")
        finally:
            await database.close()
    if found:
        raise ConfigError(
            f"restoring would overwrite {', '.join(found)}: move it away, or restore into another "
            "data_dir and an empty database"
        )


def _put_folders(config: BondConfig, folder: Path, description: Description) -> None:
    for version in description.versions:
        to = adapter_path(config.adapters_dir, version)
        copy_folder(folder / ADAPTERS_FOLDER / version, to)
    if description.checkpoint is not None:
        name = description.checkpoint
        copy_folder(folder / CHECKPOINTS_FOLDER / name, config.checkpoints_dir / name)


async def _settle(config: BondConfig, description: Description) -> None:
    """Migrate, let versions be found where they now are, and look whether all is there."""
    store = await open_store(config.store_url, config.store.durability)
    try:
        states = await store.database.read(version_states)
        for version in set(description.versions) - set(states):
            # proposed while the backup was taken; the name will be given again
            shutil.rmtree(adapter_path(config.adapters_dir, version))
        await store.database.write(lambda c: _move(c, config.adapters_dir.resolve()))
    finally:
        await store.close()
    if wrong := missing_adapters(states, config.adapters_dir):
        raise AdapterError(
            f"the backup lacks adapters that its database needs: {'; '.join(wrong.values())}. Put "
            "them there before a gateway starts, or it rolls these versions back"
        )


def _move(connection: Connection, adapters_dir: Path) -> None:
    query = sa.select(policies.c.version).where(policies.c.version != REFERENCE_VERSION)
    for version in connection.execute(query).scalars().all():
        connection.execute(
            policies.update()
            .where(policies.c.version == version)
            .values(path=str(adapters_dir / version))
        )
